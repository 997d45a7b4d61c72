"""Which images train, validate and test: chosen on labels alone, and the same for a seed for ever."""

import hashlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import ImageData, load_source
from kbaseline.data.prepare import prepare
from kbaseline.data.sources.listing import Listing
from kbaseline.data.splits import choose, number_images, stratified_split
from kbaseline.errors import DataError

LABELS = {
    name: np.random.default_rng(seed).integers(0, 5, count)
    for name, count, seed in (("train", 100, 1), ("valid", 30, 2), ("test", 40, 3))
}
SETTINGS = [
    dict(zip(("limit", "limit_valid", "valid_fraction"), values, strict=True))
    for values in product((None, 20), (None, 6), (None, 0.3))
]


def present(splits):
    return {name: LABELS[name] for name in splits.split("+")}


def digest(splits):
    """Of the names and arrays of `(name, [array, ...])`."""
    found = hashlib.blake2b(digest_size=8)
    for name, arrays in splits:
        found.update(name.encode())
        for array in arrays:
            found.update(np.ascontiguousarray(array, np.int64).tobytes())
    return found.hexdigest()


def rows(data):
    return [(name, [split.images, split.labels]) for name, split in data.splits.items()]


@pytest.mark.parametrize(
    ("splits", "golden"),
    [
        ("train", "180bc35d3dbafcc0"),
        ("train+valid", "9bf3b6b1378ab3fb"),
        ("train+test", "77542cc07c0a8199"),
        ("train+valid+test", "8fdd13b4cd35b1e9"),
    ],
)
def test_choices_stay(splits, golden):
    """Golden, from kbaseline 0.1.0: the same seed chooses the same images in the same order, whatever the settings."""
    labels = present(splits)
    assert digest((n, [part]) for one in SETTINGS for n, part in choose(labels, 7, **one).items()) == golden


@pytest.mark.parametrize(
    ("options", "golden"),
    [
        ({}, "b0cb80bb259fb069"),
        ({"limit": 50}, "cf2c2e84f123a7f8"),
        ({"limit": 50, "limit_valid": 20}, "d923682c682f82ed"),
        ({"valid_fraction": 0.5}, "7af452a9f8d6a797"),
        ({"limit": 50, "limit_valid": 20, "valid_fraction": 0.5}, "f38e6f0148aedd5e"),
    ],
)
def test_digits_stay(options, golden):
    """Golden, from kbaseline 0.1.0: every pixel and label of the digits, split and limited."""
    assert digest(rows(load_source(DataConfig(source="digits", **options), 42))) == golden


@pytest.mark.parametrize(
    ("splits", "golden"),
    [
        ("train", "d4007b50522a439e"),
        ("train+valid", "7e16f0019331fcc6"),
        ("train+test", "cbd2e4494566b800"),
        ("train+valid+test", "f93e56309a36d5af"),
    ],
)
def test_arrays_stay(splits, golden):
    """Golden, from kbaseline 0.1.0: arrays are split by the same function, with and without a hold-out."""
    found = []
    for fraction in (None, 0.3):
        arrays = {name: (numbered(len(y)), y) for name, y in present(splits).items()}
        found += rows(ImageData.from_arrays(**arrays, valid_fraction=fraction, seed=7))
    assert digest(found) == golden


def numbered(count):
    """Images that are their own number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))


@pytest.mark.parametrize(
    ("splits", "fraction", "expected"),
    [
        ("train", None, {"train": "train", "valid": "train"}),
        ("train+valid", None, {"train": "train", "valid": "valid"}),
        ("train+test", None, {"train": "train", "valid": "test"}),
        ("train+valid+test", None, {"train": "train", "valid": "valid", "test": "test"}),
        ("train+valid", 0.5, {"train": "train", "valid": "train", "test": "valid"}),
        ("train+test", 0.5, {"train": "train", "valid": "train", "test": "test"}),
        ("train+valid+test", 0.5, {"train": "train", "valid": "train", "test": "test"}),
    ],
)
def test_which_split_validates(splits, fraction, expected):
    """Golden: a split of its own, else test, else a part of train; no image is in two of them."""
    labels = present(splits)
    numbers = number_images(labels)
    chosen = choose(labels, 0, valid_fraction=fraction)
    assert list(chosen) == list(expected)
    for name, theirs in expected.items():
        assert set(chosen[name]) <= set(numbers[theirs])
    every = np.concatenate(list(chosen.values()))
    assert len(set(every)) == len(every)


def test_arrays_are_not_copied():
    """Invariant: a split that is taken whole keeps its own array, so a memory map stays one."""
    arrays = {name: (numbered(len(y)), y) for name, y in LABELS.items()}
    data = ImageData.from_arrays(**arrays)
    assert all(split.images is arrays[name][0] for name, split in data.splits.items())


def test_names_of_classes_may_be_an_array():
    """Golden: as scikit-learn's `target_names`; of none there are too few."""
    images, labels = numbered(10), np.arange(10) % 2
    assert ImageData.from_arrays((images, labels), class_names=np.array(["a", "b"])).class_names == ("a", "b")
    with pytest.raises(DataError, match="class"):
        ImageData.from_arrays((images, labels), class_names=[])


def test_a_split_without_images_is_refused():
    """Golden: of classes of one image each nothing can be held out."""
    images, labels = numbered(3), np.arange(3)
    with pytest.raises(DataError, match="source 'arrays': valid is empty; give each class two images or more"):
        ImageData.from_arrays((images, labels))
    listing = Listing(images, {"train": labels}, tuple("abc"), "three")
    with pytest.raises(DataError, match="source 'x': valid is empty; give each class two images or more"):
        prepare(listing, DataConfig(source="x"), 0, None)


def test_a_hold_out_divides_no_group():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    groups = np.where(np.arange(300) % 3 == 0, labels * 50 + rng.integers(0, 12, 300), 1000 + np.arange(300))
    for fraction in (0.1, 0.2, 0.5, 0.8):
        chosen = choose({"train": labels}, 7, valid_fraction=fraction, groups=groups)
        kept, held = chosen["train"], chosen["valid"]
        assert not set(groups[kept]) & set(groups[held])
        assert sorted([*kept, *held]) == list(range(300))
        np.testing.assert_allclose(np.bincount(labels[held]) / 100, fraction, atol=0.08)
    assert len(choose({"train": labels}, 7, groups=np.zeros(300, int))["valid"]) == 0


def test_a_class_of_one_group_is_trained_on():
    """Invariant: over a hundred sets of groups, no class is held out whole while another split would keep it."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        owners = np.repeat(np.arange(5), [1, *rng.integers(4, 12, 4)])
        groups = np.repeat(np.arange(len(owners)), rng.integers(3, 20, len(owners)))
        kept, held = stratified_split(owners[groups], 0.2, seed, groups)
        assert set(owners[groups][kept]) == set(range(5))
        assert 0 not in owners[groups][held]
        assert 0.05 < len(held) / len(groups) < 0.35


def test_a_large_group_is_not_held_out_for_a_small_share():
    """Golden: of folds of 110 or 74 images and of ten, one of ten is nearer to the twenty that were asked for."""
    for size in (100, 60):
        groups = np.where(np.arange(200) < size, 1000, np.arange(200))
        for seed in range(6):
            _, held = stratified_split(np.arange(200) % 2, 0.1, seed, groups)
            assert 10 <= len(held) <= 20


def test_what_groups_do_to_a_hold_out_is_said(tmp_path):
    """Golden: a class without training images, a share far from the one asked for, and groups that leave nothing."""
    images = numbered(60)
    labels = np.repeat([0, 1, 2], 20).astype(np.int32)
    listing = Listing(images, {"train": labels}, tuple("abc"), "sixty", groups=np.arange(60) // 10)
    config = DataConfig(source="x", valid_fraction=0.05, cache_dir=tmp_path)
    *_, notes = prepare(listing, config, 0, None)
    assert "groups: 17 % of train are held out, not 5 %; no group is divided" in notes
    folds = DataConfig(source="x", fold=(1, 3), cache_dir=tmp_path)
    *_, notes = prepare(replace(listing, groups=np.repeat([0, 1, 2], 20)), folds, 0, None)
    assert any(note.startswith("train: has no image of '") for note in notes)
    with pytest.raises(DataError, match="valid is empty; give each class two groups of images or more"):
        prepare(replace(listing, groups=np.repeat([0, 1, 2], 20)), config, 0, None)


@pytest.fixture
def visits(tmp_path):
    """Photos of eight patients, two to six of each, some of them in both classes; and a table of them."""
    rows = ["image,label,patient"]
    for number in range(32):
        label, patient = "ab"[number % 2], f"p{number // 4}"
        file = tmp_path / "photos" / label / patient / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 7 * number, np.uint8)).save(file)
        rows.append(f"photos/{label}/{patient}/{number}.png,{label},{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "setting"), [("photos", {"group": "folder"}), ("labels.csv", {"group_column": "patient"})]
)
def test_photos_of_a_patient_stay_on_one_side(visits, source, setting):
    def patients(setting):
        config = DataConfig(source=str(visits / source), size=8, cache_dir=visits / "cache", **setting)
        data = load_source(config, 3)
        return [{Path(split.name(row)).parent.name for row in range(len(split))} for split in (data.train, data.valid)]

    train, valid = patients(setting)
    assert len(train) + len(valid) == 8
    assert not train & valid
    both = set.intersection(*patients({}))
    assert both


def test_groups_that_the_source_itself_divides_are_named(visits):
    table = (visits / "labels.csv").read_text().splitlines()
    split = ["split", *("valid" if number in (1, 2) else "train" for number in range(32))]
    (visits / "split.csv").write_text("\n".join(f"{row},{part}" for row, part in zip(table, split, strict=True)))
    config = DataConfig(source=str(visits / "split.csv"), size=8, cache_dir=visits / "cache", group_column="patient")
    assert any(line.startswith("groups: 1 are on several sides") for line in load_source(config, 3).skipped)
