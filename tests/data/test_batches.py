"""Splits and batches: shares, sizes, orders."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbaseline.data.batches import ImageBatches
from kbaseline.data.splits import stratified_sample, stratified_split
from kbaseline.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)
QUICK = settings(max_examples=100, deadline=None, derandomize=True)


def numbered(count: int) -> np.ndarray:
    """Images that are their own number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))


def numbers(batches: ImageBatches) -> list[list[int]]:
    return [batches[i][0][:, 0, 0, 0].tolist() for i in range(len(batches))]


def test_split_golden() -> None:
    """Golden: a fifth of 50, 30 and 20 images is 10, 6 and 4."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert np.bincount(labels[held]).tolist() == [10, 6, 4]
    assert np.bincount(labels[kept]).tolist() == [40, 24, 16]


@QUICK
@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_is_a_partition_with_every_class_on_both_sides(labels: np.ndarray, fraction: float, seed: int) -> None:
    """Property: each image is on one side; a class of two or more is on both, within one image of its share."""
    kept, held = stratified_split(labels, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label in np.unique(labels):
        total, out = int((labels == label).sum()), int((labels[held] == label).sum())
        assert out == 0 if total == 1 else 1 <= out <= total - 1
        assert abs(out - fraction * total) <= 1


@QUICK
@given(LABELS, st.floats(0, 1), st.integers(0, 5))
def test_sample_has_exact_size_and_shares(labels: np.ndarray, share: float, seed: int) -> None:
    """Property: exactly the size asked for, no image twice, one of each class where it fits, and fair shares."""
    size = max(1, int(share * len(labels)))
    chosen = stratified_sample(labels, size, seed)
    assert len(set(chosen.tolist())) == len(chosen) == size
    assert chosen.tolist() == sorted(chosen.tolist())
    classes = np.unique(labels)
    counts = np.array([(labels[chosen] == c).sum() for c in classes])
    if size >= len(classes):
        assert counts.min() >= 1
    exact = np.array([(labels == c).sum() for c in classes]) * size / len(labels)
    if (exact >= 1).all():
        assert np.abs(counts - exact).max() < 1 + 1e-9


def test_sample_golden() -> None:
    """Golden: 10 of 50, 30 and 20 images are 5, 3 and 2; 11 give the spare one to the largest remainder."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    assert np.bincount(labels[stratified_sample(labels, 10, 0)]).tolist() == [5, 3, 2]
    assert np.bincount(labels[stratified_sample(labels, 11, 0)]).tolist() == [6, 3, 2]


@pytest.mark.parametrize(
    "choose", [lambda y, s: stratified_split(y, 0.3, s)[1], lambda y, s: stratified_sample(y, 9, s)]
)
def test_choices_are_seeded(choose: Callable) -> None:
    """Determinism: a seed fixes the choice; another seed chooses otherwise."""
    labels = np.repeat([0, 1, 2], 10)
    np.testing.assert_array_equal(choose(labels, 1), choose(labels, 1))
    assert choose(labels, 1).tolist() != choose(labels, 2).tolist()


def test_plain_batches_are_in_order_and_complete() -> None:
    """Golden: without shuffling, ten images by four are 0-3, 4-7, 8-9, with their labels."""
    batches = ImageBatches(numbered(10), np.arange(10) * 2, 4)
    assert numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[2][1].tolist() == [16, 18]
    assert batches[0][0].dtype == np.uint8


def test_padding_repeats_the_last_image() -> None:
    """Golden: padded, the last batch is full of the last image, and prediction gets no labels."""
    batches = ImageBatches(numbered(5), batch_size=3, pad=True)
    assert numbers(batches) == [[0, 1, 2], [3, 4, 4]]
    assert len(batches[0]) == 1


def test_shuffled_epochs() -> None:
    """Invariant: shuffled, the partial batch is dropped, labels stay with their images, every epoch has its order."""
    batches = ImageBatches(numbered(11), np.arange(11) * 2, 4, shuffle=True, seed=1)
    epochs = []
    for _ in range(6):
        assert len(batches) == 2
        seen = [number for batch in numbers(batches) for number in batch]
        assert len(set(seen)) == 8
        assert [2 * n for n in seen] == [*batches[0][1], *batches[1][1]]
        epochs.append(tuple(seen))
        batches.on_epoch_end()
    assert len(set(epochs)) == 6
    assert set().union(*epochs) == set(range(11))


def test_orders_repeat_by_seed() -> None:
    """Determinism: a seed fixes the orders of all epochs; another seed gives others."""

    def orders(seed: int) -> list[list[list[int]]]:
        batches, found = ImageBatches(numbered(12), np.arange(12), 4, shuffle=True, seed=seed), []
        for _ in range(3):
            found.append(numbers(batches))
            batches.on_epoch_end()
        return found

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_fewer_images_than_a_batch() -> None:
    """Golden: training on less than one batch is refused with a batch size that would do; prediction is not."""
    with pytest.raises(DataError, match=r"3 images do not fill one batch of 4; set data\.batch_size to 2"):
        ImageBatches(numbered(3), np.arange(3), 4, shuffle=True)
    assert numbers(ImageBatches(numbered(3), np.arange(3), 4)) == [[0, 1, 2]]


def test_the_order_does_not_depend_on_the_workers() -> None:
    """Invariant: Keras hands out the same batches in the same order however many threads make them."""
    image = keras.Input((2, 2, 3), dtype="uint8")
    same = keras.Model(image, keras.layers.Identity()(image))
    seen = []
    for workers in (1, 5):
        batches = ImageBatches(numbered(200), np.arange(200), 8, shuffle=True, seed=3)
        batches.workers, batches.max_queue_size = workers, 2 * workers
        seen.append(same.predict(batches, verbose=0)[:, 0, 0, 0].tolist())
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 200


def test_an_epoch_can_be_entered_in_its_middle() -> None:
    """Invariant: after `go_to(e, k)` the next epoch gives the batches of epoch e + 1 from the k-th on, in order."""
    steady, entered = (ImageBatches(numbered(50), np.arange(50), 8, shuffle=True, seed=5) for _ in range(2))
    for _ in range(4):
        steady.on_epoch_end()
    entered.go_to(3, 2)
    entered.on_epoch_end()
    assert numbers(entered) == numbers(steady)[2:]
    assert len(entered) == 4


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a map is resident")
def test_memory_does_not_grow_with_a_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: an epoch over a map of 64 MiB leaves no more than about the allowed 8 of it resident, bytes intact."""
    monkeypatch.setattr("kbaseline.data.batches.RESIDENT_BYTES", 8 * 2**20)
    path = tmp_path / "images.npy"
    np.save(path, np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None, None], (64, 512, 512, 4)))
    images = np.load(path, mmap_mode="r")[..., :3]
    batches = ImageBatches(images, np.arange(64), 4, shuffle=True)
    for index in range(len(batches)):
        rows, labels = batches[index]
        assert (rows == labels[:, None, None, None]).all()
    assert resident(path) <= 12 * 2**20


def resident(path: Path) -> int:
    """Bytes of a mapped file in this process' memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.endswith(str(path)))
    size = next(line for line in lines[begin:] if line.startswith("Rss:"))
    return int(size.split()[1]) * 1024
