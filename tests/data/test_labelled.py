"""Sources as sets to score on: which images, which labels, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kbaseline.config.schema import DataConfig
from kbaseline.data.prepare import load_labelled
from kbaseline.errors import DataError

SHADES = {"bee": 40, "cat": 120, "dog": 200}


def folder(root: Path, *splits: str, names=tuple(SHADES), each: int = 3) -> DataConfig:
    """Class folders of grey images whose shade tells their class, below each split or below the root."""
    for number, split in enumerate(splits or ("",)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(each + number):
                shade = np.full((8, 8, 3), SHADES[name] + i, np.uint8)
                Image.fromarray(shade).save(root / split / name / f"{i}.png")
    return DataConfig(source=f"folder:{root}", size=8, limit=2)


def classes(found, class_names) -> list[str]:
    return [class_names[label] for label in found.labels]


def test_a_plain_folder_is_one_set(tmp_path):
    """All images of a folder of class folders are scored: nothing is held out, and no limit applies."""
    found = load_labelled(folder(tmp_path), ["bee", "cat", "dog"])
    assert (found.split, len(found.labels), found.images.dtype) == ("all", 9, np.uint8)


def test_labels_follow_the_networks_names(tmp_path):
    """Invariant: whatever the order of the network's classes, every image keeps the name of its folder."""
    config = folder(tmp_path)
    for names in (["bee", "cat", "dog"], ["dog", "ant", "bee", "cat"]):
        found = load_labelled(config, names)
        said = {name: SHADES[name] for name in classes(found, names)}
        shades = found.images[:, 4, 4, 0].astype(int)
        assert all(0 <= shade - said[name] <= 2 for shade, name in zip(shades, classes(found, names), strict=True))
        assert set(said) == set(SHADES)


@pytest.mark.parametrize(
    ("splits", "asked", "split", "count"),
    [
        (("train", "valid", "test"), None, "test", 15),
        (("train", "valid"), None, "valid", 12),
        (("train", "valid"), "train", "train", 9),
        (("train", "valid", "test"), "all", "all", 36),
        ((), "train", "train", 9),
    ],
)
def test_which_images_are_scored(splits, asked, split, count, tmp_path):
    """Golden: the split asked for, else test, else valid; each split with its own images."""
    names = ["bee", "cat", "dog"]
    found = load_labelled(folder(tmp_path, *splits), names, asked)
    assert (found.split, len(found.labels), len(found.images)) == (split, count, count)
    shades = found.images[:, 4, 4, 0].astype(int)
    assert all(abs(shade - SHADES[n]) < 10 for shade, n in zip(shades, classes(found, names), strict=True))


def test_a_set_may_lack_classes_but_not_bring_new_ones(tmp_path):
    """One class alone can be scored; a class the network does not know is refused with both lists."""
    config = folder(tmp_path, names=("cat",))
    assert classes(load_labelled(config, ["bee", "cat"]), ["bee", "cat"]) == ["cat"] * 3
    with pytest.raises(DataError, match=r"must be among the run's; it has 'cat', and the run knows 'bee', 'ant'\."):
        load_labelled(config, ["bee", "ant"])


def test_long_lists_are_cut(tmp_path):
    """A network of a thousand classes does not fill the screen."""
    with pytest.raises(DataError, match="'19' and 980 more") as caught:
        load_labelled(folder(tmp_path), [str(i) for i in range(1000)])
    assert len(str(caught.value)) < 500


def test_a_split_that_is_not_there_is_refused(tmp_path):
    """One line with the splits there are."""
    with pytest.raises(DataError, match=r"has no split 'test'; give one of train, valid or all"):
        load_labelled(folder(tmp_path, "train", "valid"), list(SHADES), "test")
    with pytest.raises(DataError, match=r"digits: has no split 'valid'"):
        load_labelled(DataConfig(source="digits"), "0123456789", "valid")


def test_digits_are_all_scored():
    """Reference: scikit-learn's targets, under names in another order."""
    from sklearn.datasets import load_digits

    found = load_labelled(DataConfig(source="digits", limit=10), "9876543210")
    np.testing.assert_array_equal(9 - found.labels, load_digits().target)
    assert found.images.shape == (1797, 8, 8, 3)


def test_unreadable_images_are_left_out_and_named(tmp_path):
    """A bad image is named and its label goes with it; a set of nothing else is refused."""
    config = folder(tmp_path)
    (tmp_path / "cat" / "1.png").write_text("no image")
    found = load_labelled(config, list(SHADES))
    assert len(found.images) == len(found.labels) == 8
    assert classes(found, list(SHADES)).count("cat") == 2
    assert "cat/1.png" in found.skipped[0]
    for file in tmp_path.rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(DataError, match="all images: none of 9 can be read"):
        load_labelled(config, list(SHADES))


def test_an_unknown_source_is_refused():
    """The rule is that of training."""
    with pytest.raises(DataError, match=r"data\.source 'floder:x': must be"):
        load_labelled(DataConfig(source="floder:x"), ["a"])
