"""Names that people give to their splits, and names that only look like one."""

import pytest

from kbaseline.config.splits import is_container, named_splits

NAMES = {
    "train": (
        "train",
        "Training",
        "TRAIN",
        "training_set",
        "train_data",
        "TrainSet",
        "trainset",
        "train2017",
        "imgs-train",
    ),
    "valid": ("val", "valid", "Validation", "val_data", "validation_set", "dev", "dev_set", "ValImages", "valid 1"),
    "test": ("test", "Testing", "test_set", "TestImages", "test1", "data.test", "testset"),
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_a_split_is_known_however_it_is_called(split: str, name: str) -> None:
    """Golden: case, plural, numbers and words such as `set` or `images` do not matter."""
    assert named_splits([name]) == {name: split}


@pytest.mark.parametrize(
    "name", ["cat", "steam_train", "test_tube", "contest", "trainer", "", "data", "evaluator", "1"]
)
def test_other_names_are_no_split(name: str) -> None:
    """Golden: a word that means a split must stand alone."""
    assert named_splits([name]) == {}


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (("train", "eval"), {"train": "train", "eval": "valid"}),
        (("train", "val", "evaluation"), {"train": "train", "val": "valid", "evaluation": "test"}),
        (("train", "val", "test", "eval"), {"train": "train", "val": "valid", "test": "test"}),
        (("train", "holdout"), {"train": "train", "holdout": "test"}),
        (("train", "test", "hold-out"), {"train": "train", "test": "test", "hold-out": "valid"}),
        (
            ("PrivateTest", "PublicTest", "Training"),
            {"PrivateTest": "test", "PublicTest": "valid", "Training": "train"},
        ),
    ],
)
def test_what_a_name_means_depends_on_its_neighbours(names: tuple[str, ...], meant: dict[str, str]) -> None:
    """Golden: `eval` validates unless something else does; a hold-out is the test unless there is one."""
    assert named_splits(names) == meant


def test_other_words_may_stand_beside_it_on_request() -> None:
    """Golden: `seg_train` is loosely a split; two such words are none."""
    names = ("seg_train", "seg_test", "seg_pred", "train_test")
    assert named_splits(names, loosely=True) == {"seg_train": "train", "seg_test": "test"}
    assert named_splits(names) == {}


def test_containers() -> None:
    """Golden: a name that says only that images are inside."""
    assert all(map(is_container, ("images", "data", "Dataset", "image_files", "photos")))
    assert not any(map(is_container, ("cat", "train", "cat_images", "", "1")))
