"""Folders of photos as people have them: what is trained on and scored, and that nothing is left out in silence."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kbaseline import ImageData
from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import load_source
from kbaseline.data.prepare import load_labelled
from kbaseline.errors import DataError

NAMES = ("bee", "cat", "dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))


def photo(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade,) * 3).save(path, "PNG")


def classes(folder: Path, names: tuple[str, ...] = NAMES, each: int = 4) -> Path:
    for label, name in enumerate(names):
        for number in range(each):
            photo(folder / name / f"{number}.png", 50 * label + number)
    return folder


def load(root: Path, **options: object) -> ImageData:
    return load_source(DataConfig(source=f"folder:{root}", **{"size": 8, **options}), 42)


def counts(data: ImageData) -> dict[str, list[int]]:
    number = len(data.class_names)
    return {name: np.bincount(split.labels, minlength=number).tolist() for name, split in data.splits.items()}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "valid"),
        ("training_set", "test_set", "valid"),
        ("train_data", "val_data", "valid"),
        ("train", "dev", "valid"),
        ("Train", "eval", "valid"),
        ("train2017", "val2017", "valid"),
        ("TrainImages", "TestImages", "valid"),
        ("train", "holdout", "valid"),
        ("seg_train", "seg_test", "valid"),
        ("cifar10-train", "cifar10-test", "valid"),
        ("train/train", "test/test", "valid"),
        ("train/images", "valid/images", "valid"),
        ("seg_train/seg_train", "seg_test/seg_test", "valid"),
    ],
)
def test_splits_as_people_name_them(tmp_path: Path, train: str, other: str, split: str) -> None:
    """Golden: two folders that hold the same classes are two splits, whatever they are called; never two classes."""
    classes(tmp_path / "d" / train)
    classes(tmp_path / "d" / other, each=2)
    data = load(tmp_path / "d")
    assert data.class_names == NAMES
    assert counts(data) == {"train": [4, 4, 4], split: [2, 2, 2]}
    assert data.skipped == ()


def test_splits_beside_folders_of_another_kind(tmp_path: Path) -> None:
    """Golden: the same classes in two of the folders make them splits; so does nothing but a flat test set beside."""
    root = tmp_path / "d"
    classes(root / "seg_train" / "seg_train")
    classes(root / "seg_test" / "seg_test", each=2)
    photo(root / "seg_pred" / "seg_pred" / "0.png")
    data = load(root)
    assert counts(data) == {"train": [4, 4, 4], "valid": [2, 2, 2]}
    assert data.skipped == ("seg_pred/: its 1 image is not used beside 'seg_test', 'seg_train'",)
    classes(tmp_path / "e" / "asl_train" / "asl_train")
    photo(tmp_path / "e" / "asl_test" / "asl_test" / "0.png")
    data = load(tmp_path / "e")
    assert counts(data) == {"train": [3, 3, 3], "valid": [1, 1, 1]}
    assert data.skipped == ("asl_test/asl_test/: 1 image is not in class folders, so not scored",)
    classes(tmp_path / "f" / "val")
    classes(tmp_path / "f" / "test")
    classes(tmp_path / "f" / "more")
    assert load_labelled(DataConfig(source=f"folder:{tmp_path / 'f'}", size=8), NAMES).split == "test"


def test_folders_that_only_look_like_splits_are_classes(tmp_path: Path) -> None:
    """Golden: photos lie in them at once, so they are classes; a vehicle's folder of one class is one."""
    assert load(classes(tmp_path / "a", ("steam_train", "test_tube"))).class_names == ("steam_train", "test_tube")
    assert load(classes(tmp_path / "b", ("bus", "test", "train"))).class_names == ("bus", "test", "train")
    classes(tmp_path / "c" / "train", ("bus", "train"))
    classes(tmp_path / "c" / "test", ("train",), 2)
    assert counts(load(tmp_path / "c")) == {"train": [4, 4], "valid": [0, 2]}


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    """Golden: a folder that is no split and photos in no class folder are counted."""
    root = tmp_path / "d"
    classes(root / "train")
    classes(root / "valid", each=2)
    classes(root / "old photos", each=1)
    (root / "models").mkdir()
    photo(root / "stray.png")
    photo(root / "train" / "loose.png")
    (root / "labels.csv").touch()
    data = load(root)
    assert data.skipped == (
        "old photos/: its 3 images are not used beside 'train', 'valid'",
        "stray.png: 1 image is beside the class folders, not in one, so not used",
        "train/loose.png: 1 image is beside the class folders, not in one, so not used",
        "no images, not used: labels.csv",
    )


def test_what_lies_beside_a_folder_too_many_is_named(tmp_path: Path) -> None:
    """Golden: photos and other files in a split, beside the only folder in it that holds its classes."""
    classes(tmp_path / "d" / "train" / "images")
    classes(tmp_path / "d" / "valid" / "images", each=2)
    photo(tmp_path / "d" / "train" / "loose.png")
    (tmp_path / "d" / "valid" / "notes.txt").touch()
    assert load(tmp_path / "d").skipped == (
        "train/loose.png: 1 image is beside the class folders, not in one, so not used",
        "no images, not used: valid/notes.txt",
    )


def test_an_evaluation_set_for_which_there_is_no_split_is_named(tmp_path: Path) -> None:
    """Golden: with valid and test there is nothing for a fourth folder to be."""
    for split in ("train", "valid", "test", "eval"):
        classes(tmp_path / "d" / split, each=2)
    data = load(tmp_path / "d")
    assert counts(data) == {split: [2, 2, 2] for split in ("train", "valid", "test")}
    assert data.skipped == ("eval/: its 6 images are not used beside 'test', 'train', 'valid'",)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_may_lack_a_class(tmp_path: Path, split: str) -> None:
    """Golden: what there is is scored, what is missing is said; an empty class folder is named besides."""
    root = classes(tmp_path / "d" / "train").parent
    classes(root / split, ("bee", "cat"), 2)
    (root / split / "dog").mkdir()
    data = load(root)
    assert data.class_names == NAMES
    assert counts(data) == {"train": [4, 4, 4], "valid": [2, 2, 0]}
    assert data.skipped == (
        "valid: has no image of 'dog'",
        f"{split}/dog/: has no image that can be used, ignored",
    )


def test_empty_class_folders_are_named_and_ignored(tmp_path: Path) -> None:
    """Golden: at the top and below train; a folder of text is as empty."""
    root = classes(tmp_path / "d")
    (root / "emu").mkdir()
    (root / "fox" / "deep").mkdir(parents=True)
    (root / "fox" / "deep" / "a.txt").touch()
    data = load(root)
    assert data.class_names == NAMES
    assert data.skipped == (
        "emu/: has no image that can be used, ignored",
        "fox/: has no image that can be used, ignored",
        "no images, not used: fox/deep/a.txt",
    )


def test_a_class_that_train_lacks_is_left_out(tmp_path: Path) -> None:
    """Golden: folders and a table say the same of it, and the labels of the others keep their names."""
    root = tmp_path / "d"
    classes(root / "train", ("bee", "dog"))
    classes(root / "valid", NAMES, 2)
    table = [f"{file.relative_to(root)},{file.parent.name},{file.parts[-3]}" for file in sorted(root.rglob("*.png"))]
    (root / "t.csv").write_text("\n".join(["image,label,split", *table]))
    for data in (load(root), load_source(DataConfig(source=f"csv:{root / 't.csv'}", size=8), 42)):
        assert data.class_names == ("bee", "dog")
        assert counts(data) == {"train": [4, 4], "valid": [2, 2]}
        assert data.skipped[0] == "valid: 2 images of 'cat' left out; train lacks that class"
        shades = data.valid.images[:, 0, 0, 0]
        assert [shade >= 100 for shade in shades] == [
            name == "dog" for name in np.array(data.class_names)[data.valid.labels]
        ]


def test_a_split_of_strangers_alone_is_no_split(tmp_path: Path) -> None:
    """Golden: Kaggle's `test/unknown` is left out whole, and a part of train validates."""
    root = classes(tmp_path / "d" / "train").parent
    classes(root / "test", ("unknown",))
    data = load(root)
    assert counts(data) == {"train": [3, 3, 3], "valid": [1, 1, 1]}
    assert data.skipped == ("test: 4 images of 'unknown' left out; train lacks that class",)


@pytest.mark.parametrize("where", ["test", "test/test", "test/images"])
def test_an_unlabelled_test_set_is_not_scored(tmp_path: Path, where: str) -> None:
    """Golden: Kaggle's flat `test/` is said to be left out, and training goes on without it."""
    root = classes(tmp_path / "d" / "train").parent
    for number in range(3):
        photo(root / where / f"{number}.png")
    data = load(root)
    assert counts(data) == {"train": [3, 3, 3], "valid": [1, 1, 1]}
    assert data.skipped == (f"{where}/: 3 images are not in class folders, so not scored",)
    (root / "valid").mkdir()
    assert "valid/: is empty" in load(root).skipped


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_split_alone_can_be_scored(tmp_path: Path, split: str) -> None:
    """Golden: to train on it is refused with advice that works; to score it is not, even beside an empty train."""
    root = classes(tmp_path / "d" / split, ("bee", "dog")).parent
    with pytest.raises(DataError, match=f"has '{split}' but no 'train'; put the training photos in train/CLASS/"):
        load(root)
    config = DataConfig(source=f"folder:{root}", size=8)
    found = load_labelled(config, NAMES)
    assert (found.split, found.labels.tolist()) == (split, [0] * 4 + [2] * 4)
    assert found.skipped == (f"{split}: has no image of 'cat'",)
    (root / "train").mkdir()
    assert load_labelled(config, NAMES).labels.tolist() == found.labels.tolist()
    classes(root / "train", ("bee", "dog"))
    assert counts(load(root)) == {"train": [4, 4], "valid": [4, 4]}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("each", [2, 3])
@pytest.mark.parametrize("limit", [None, 4])
def test_an_unreadable_image_never_refuses_a_run(tmp_path: Path, seed: int, each: int, limit: int | None) -> None:
    """Invariant: wherever the seed puts the one bad image of a small class, the others train and it is named."""
    root = classes(tmp_path / "d", ("bee", "cat"), 6)
    classes(root, ("dog",), each)
    (root / "dog" / "1.png").write_bytes(b"404")
    data = load_source(DataConfig(source=f"folder:{root}", size=8, limit=limit), seed)
    assert counts(data)["train"][2] >= 1
    assert data.class_names == NAMES
    if limit is None:
        assert sum(map(len, data.splits.values())) == 12 + each - 1
        assert "dog/1.png: not an image that Pillow can read" in data.skipped


@pytest.mark.parametrize("seed", range(6))
def test_not_even_where_it_validates_alone(tmp_path: Path, seed: int) -> None:
    """Invariant: the only image held out is drawn again where it cannot be read."""
    root = classes(tmp_path / "d", ("bee",), 1)
    classes(root, ("cat",), 3)
    (root / "cat" / "1.png").write_bytes(b"404")
    data = load_source(DataConfig(source=f"folder:{root}", size=8), seed)
    assert counts(data) == {"train": [1, 1], "valid": [0, 1]}
    assert data.skipped[-1] == "cat/1.png: not an image that Pillow can read"


def test_a_test_set_of_which_nothing_can_be_read_is_left_out(tmp_path: Path) -> None:
    """Golden: training goes on without it, and each of its images is named."""
    root = classes(tmp_path / "d" / "train").parent
    classes(root / "valid", each=1)
    for name in ("bee", "cat"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0.png").write_bytes(b"404")
    data = load(root)
    assert counts(data) == {"train": [4, 4, 4], "valid": [1, 1, 1]}
    assert [line.split(":")[0] for line in data.skipped] == ["test/bee/0.png", "test/cat/0.png"]


def test_what_is_left_out_is_an_error_on_request(tmp_path: Path) -> None:
    """Golden: `on_bad_image: error` names the telephone's photo; a text file is no bad image."""
    root = classes(tmp_path / "d")
    (root / "cat" / "notes.txt").touch()
    assert len(load(root, on_bad_image="error").skipped) == 1
    (root / "cat" / "a.heic").touch()
    with pytest.raises(DataError, match=r"'cat/a\.heic': cannot be used \(HEIC is not read; convert it to JPEG\)"):
        load(root, on_bad_image="error")
    assert load(root).skipped[0] == "cat/a.heic: HEIC is not read; convert it to JPEG"


def test_one_name_composed_in_two_ways_is_one_class(tmp_path: Path) -> None:
    """Golden: NFC and NFD, side by side and in different splits, to train on and to score."""
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    classes(tmp_path / "a", (composed, "dog"))
    photo(tmp_path / "a" / apart / "x.png")
    assert counts(load(tmp_path / "a")) == {"train": [4, 3], "valid": [1, 1]}
    classes(tmp_path / "b" / "train", (composed, "dog"))
    classes(tmp_path / "b" / "valid", (apart, "dog"), 1)
    data = load(tmp_path / "b")
    assert (data.class_names, counts(data)) == ((composed, "dog"), {"train": [4, 4], "valid": [1, 1]})
    config = DataConfig(source=f"folder:{tmp_path / 'b'}", size=8)
    for known in ((composed, "dog"), (apart, "dog")):
        assert load_labelled(config, known, "valid").labels.tolist() == [0, 1]


def test_a_name_that_is_not_utf8_is_text_at_once(tmp_path: Path) -> None:
    """Golden: names of classes and files can be written into any file, and two splits agree on them."""
    name = os.fsdecode(b"caf\xe9")
    for split in ("train", "valid"):
        classes(tmp_path / "d" / split, (name, "dog"), 2)
    photo(tmp_path / "d" / "train" / name / f"{name}.png")
    data = load(tmp_path / "d")
    assert data.class_names == ("caf\ufffd", "dog")
    assert counts(data) == {"train": [3, 2], "valid": [2, 2]}
    assert all(data.train.name(row).encode() for row in range(5))


def test_classes_that_differ_only_in_case_are_named(tmp_path: Path) -> None:
    """Golden: they stay apart, with a word; letters may differ so."""
    root = classes(tmp_path / "d", ("red", "A", "a"))
    assert load(root).skipped == ()
    classes(root, ("Red", "RED"))
    (line,) = load(root).skipped
    assert line.startswith("classes 'RED', 'Red', 'red': differ only in case and stay 3 classes")
