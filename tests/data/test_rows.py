"""Rows of a memory map behave as the array of these rows would, and stay on disk."""

import numpy as np
import pytest

from kbaseline.data.batches import ImageBatches
from kbaseline.data.image_data import checked_images
from kbaseline.data.rows import Rows, rows

NUMBERS = np.array([7, 2, 9, 0, 4])


@pytest.fixture
def stored(tmp_path, rng):
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (10, 4, 6, 3), dtype=np.uint8))
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(3),
        slice(1, 4),
        slice(None, None, -2),
        [3, 1, 1],
        np.array([4, 0]),
        np.arange(5) > 2,
        (slice(None), 0, 0, 0),
        (2, 1),
        ([0, 3], slice(1), 2),
        (..., 0),
    ],
    ids=str,
)
def test_indexing_is_that_of_an_array(stored, index):
    """Golden: whatever asks for images gets those that the array would give."""
    np.testing.assert_array_equal(Rows(stored, NUMBERS)[index], np.array(stored[NUMBERS])[index])


def test_measures_are_those_of_an_array(stored):
    """Golden: so is all that kbaseline asks of images besides."""
    view, array = Rows(stored, NUMBERS), np.array(stored[NUMBERS])
    for name in ("shape", "dtype", "ndim", "nbytes"):
        assert getattr(view, name) == getattr(array, name)
    assert len(view) == 5
    np.testing.assert_array_equal(np.asarray(view), array)
    np.testing.assert_array_equal(np.stack(list(view)), array)
    assert np.asarray(view, np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        view[5]


def test_rows_that_follow_each_other_are_a_part_of_the_map(stored):
    """Then nothing at all stands between the array and who uses it."""
    part = rows(stored, np.arange(3, 8))
    assert isinstance(part, np.memmap)
    np.testing.assert_array_equal(part, stored[3:8])
    assert isinstance(rows(stored, NUMBERS), Rows)


def test_batches_read_only_their_own_rows(stored, monkeypatch):
    """Invariant: neither the check of images nor batches of them ever hold more than a batch in memory."""
    monkeypatch.setattr(Rows, "__array__", lambda *_: pytest.fail("all rows were read"))
    view = Rows(stored, NUMBERS)
    assert checked_images("train", view) is view
    batches = ImageBatches(view, np.arange(5), batch_size=2)
    np.testing.assert_array_equal(np.concatenate([batches[i][0] for i in range(3)]), stored[NUMBERS])


def test_the_map_is_let_go_of(stored, monkeypatch):
    """Memory does not grow with the images that were read through rows, no more than with a map itself."""
    monkeypatch.setattr("kbaseline.data.batches.RESIDENT_BYTES", 1)
    batches, told = ImageBatches(Rows(stored, NUMBERS), batch_size=2), []
    monkeypatch.setattr(stored, "_mmap", type("Map", (), {"madvise": lambda _, what: told.append(what)})())
    batches[0]
    assert len(told) == 1
