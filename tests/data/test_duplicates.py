"""Exact duplicates: which images are equal, which of them leak, and the warning of a run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kbaseline.data.duplicates import Place, find_duplicates, leak_warning
from kbaseline.data.image_data import ImageData


def images(*values):
    """One image of 2x2 pixels a value."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 2, 2, 3))


def data(train, valid, test=None):
    """`ImageData` of such images, labelled by whether the position is odd."""
    splits = [None if part is None else (images(*part), np.arange(len(part)) % 2) for part in (train, valid, test)]
    return ImageData.from_arrays(*splits)


def test_groups_leaks_and_contradictions():
    """Golden: copies within a split, across splits, and under two labels, each with its place."""
    found = find_duplicates(data([1, 2, 1, 3], [4, 2, 1], [4, 5, 3, 6]))
    train, valid, test = (lambda row, split=split: Place(split, row, row % 2) for split in ("train", "valid", "test"))
    assert found.groups == (
        (train(0), train(2), valid(2)),
        (train(1), valid(1)),
        (train(3), test(2)),
        (valid(0), test(0)),
    )
    assert found.leaks == {"valid": 2, "test": 2}
    assert found.contradictions == ((train(3), test(2)),)


def test_leak_warning():
    """Golden: one line with the counts and the command that lists the images; empty without a leak."""
    assert leak_warning(data([1, 2, 3], [4, 5])) == ""
    said = leak_warning(data([1, 2, 3], [2, 5], [5, 6, 7]))
    assert said.startswith(
        "leak: 1 of 2 valid images are also in train and 1 of 3 test images are also in train or valid, pixel for pixel"
    )
    assert said.endswith("`kbaseline data arrays` lists them")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(*[st.lists(st.integers(0, 12), min_size=2, max_size=12) for _ in range(3)])
def test_groups_are_those_of_a_plain_search(train, valid, test):
    """Reference: the same groups as comparing every image with every other; a copy from an earlier split is a leak."""
    splits = {"train": train, "valid": valid, "test": test}
    expected = {}
    for name, values in splits.items():
        for row, value in enumerate(values):
            expected.setdefault(value, []).append((name, row))
    found = find_duplicates(data(train, valid, test))
    groups = [[(place.split, place.row) for place in group] for group in found.groups]
    assert groups == [group for group in expected.values() if len(group) > 1]
    for name in ("valid", "test"):
        assert found.leaks.get(name, 0) == sum(expected[value][0][0] != name for value in splits[name])


@pytest.mark.parametrize("limit", [None, 12])
def test_photos_bring_digests_of_their_own_rows(tmp_path, monkeypatch, limit):
    """Invariant: after bad files, splits and subsets, a photo's digest and name are still those of its pixels."""
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    for number in range(20):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Every fourth is a copy of the one before of its class.
        Image.new("RGB", (8, 8), (number - 2 * (number % 4 == 3),) * 3).save(path)
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"")
    for _ in ("decoded now", "from the cache"):
        loaded = ImageData.from_source(f"folder:{tmp_path}/photos", size=8, limit=limit)
        plain = ImageData.from_arrays(*[(part.images, part.labels) for part in loaded.splits.values()])
        assert find_duplicates(loaded) == find_duplicates(plain)
        assert limit or len(find_duplicates(loaded).groups) == 5
        for split in loaded.splits.values():
            for row, image in enumerate(split.images):
                number = int(split.provenance.name(row).split("/")[1][:-4])
                assert image[0, 0, 0] == number - 2 * (number % 4 == 3)
