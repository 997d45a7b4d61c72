"""Finds near-duplicates: copies of one picture that were resized, recompressed, cropped a little, recoloured, mirrored.

Two measures must agree. Each image's nearest neighbours are proposed by the features of a network, which see what a
picture shows, and by its coarse light and shade, which see how. The alignment of the pixels decides; it tells a copy
from another photo of the same thing.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kbaseline.audit.alignment import SIDE, agreement, thumbnail
from kbaseline.console.bars import Bar
from kbaseline.data import ImageData
from kbaseline.data.duplicates import Place, all_places, find_duplicates

NEIGHBOURS = 6
"""Nearest neighbours of each image that are compared with it: a group of copies is found through its links."""

SIMILAR = 0.5
"""Least cosine of the features of a pair, both taken from their mean, that is compared pixel by pixel."""

SHADED_ALIKE = 0.8
"""The same for light and shade on a grid of `_GRID` x `_GRID`, that of the mirrored image added."""

SAME = 0.85
"""Least agreement of a copy; chosen on photos of waste with copies made of them. docs/audit.md counts what it finds."""

SMALLEST = 16
"""Images of fewer pixels a side are compared for identical pixels alone: too little to be seen apart."""

_GRID = 8

_BATCH = 256
"""Pairs aligned together."""

_ROWS = 512
"""Images whose neighbours are sought together."""


@dataclass(frozen=True)
class NearDuplicates:
    """One group of copies.

    Attributes:
        places: its images, first those in train, then valid, then test.
        score: agreement of its most certain pair, -1 to 1.
        pair: the two of `places` that agree most.
    """

    places: tuple[Place, ...]
    score: float
    pair: tuple[Place, Place]

    @property
    def leaks(self) -> bool:
        """Whether it has images in more than one split."""
        return len({place.split for place in self.places}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether its images have different labels."""
        return len({place.label for place in self.places}) > 1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest images of every image, by their features taken from the mean.

    Attributes:
        numbers: int `(images, k)`, the nearest first.
        cosines: float32 `(images, k)`.
    """

    numbers: np.ndarray
    cosines: np.ndarray

    def pairs(self, least: float) -> np.ndarray:
        """Every image with each of its neighbours that is so similar, int `(pairs, 2)`."""
        rows = np.repeat(np.arange(len(self.numbers)), self.numbers.shape[1])
        return np.stack([rows, self.numbers.ravel()], 1)[self.cosines.ravel() >= least]


def find_near_duplicates(
    data: ImageData, near: Neighbours, console: Console | None = None, *, across: bool = False
) -> tuple[NearDuplicates, ...]:
    """Groups of copies within and across splits, most certain first; identical images are copies too.

    Args:
        data: the images, at least `SMALLEST` pixels a side; of smaller ones only identical images are found.
        near: the neighbours of all images, of all splits in their order.
        console: where to show progress; None shows nothing.
        across: compare images of different splits only, which takes a fraction of the time; identical ones are found
            within a split, too.
    """
    pairs = _identical(data)
    scores = np.ones(len(pairs))
    if min(data.image_size) >= SMALLEST:
        small = _thumbnails(data, console)
        likely = np.concatenate([near.pairs(SIMILAR), nearest(_shades(small)).pairs(SHADED_ALIKE)])
        likely = np.unique(np.sort(likely, axis=1), axis=0)
        if across:
            split = np.repeat(np.arange(len(data.splits)), [len(part) for part in data.splits.values()])
            likely = likely[split[likely[:, 0]] != split[likely[:, 1]]]
        agreed = _agreements(small, likely, console)
        pairs = np.concatenate([pairs, likely[agreed >= SAME]])
        scores = np.concatenate([scores, agreed[agreed >= SAME]])
    return _groups(data, pairs, scores)


def leaked_rows(groups: Sequence[NearDuplicates], splits: Sequence[str]) -> dict[str, list[int]]:
    """Split -> rows of its images that have a copy in an earlier one of `splits`; without splits that have none."""
    rows: dict[str, set[int]] = {}
    for group in groups:
        first = min(splits.index(place.split) for place in group.places)
        for place in group.places:
            if splits.index(place.split) > first:
                rows.setdefault(place.split, set()).add(place.row)
    return {split: sorted(rows[split]) for split in splits if split in rows}


def nearest(features: np.ndarray, console: Console | None = None) -> Neighbours:
    """The nearest images of every image.

    Args:
        features: float `(images, any)`.
        console: where to show progress; None shows nothing.
    """
    centred = np.asarray(features, np.float32) - np.mean(features, axis=0, dtype=np.float32)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)
    wanted = min(NEIGHBOURS, len(unit) - 1)
    numbers, cosines = [], []
    with Bar(console, "Comparing features", len(unit)) as bar:
        for start in range(0, len(unit), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(unit)))
            found = unit[rows] @ unit.T
            found[rows - start, rows] = -np.inf
            best = np.argpartition(-found, wanted - 1, axis=1)[:, :wanted]
            values = np.take_along_axis(found, best, 1)
            order = np.argsort(-values, axis=1, kind="stable")
            numbers.append(np.take_along_axis(best, order, 1))
            cosines.append(np.take_along_axis(values, order, 1))
            bar.advance(len(rows))
    return Neighbours(np.concatenate(numbers), np.concatenate(cosines))


def _identical(data: ImageData) -> np.ndarray:
    """Links between images with equal pixels, int `(links, 2)`."""
    starts = dict(zip(data.splits, np.cumsum([0, *map(len, data.splits.values())]), strict=False))
    links = [
        (starts[group[0].split] + group[0].row, starts[place.split] + place.row)
        for group in find_duplicates(data).groups
        for place in group[1:]
    ]
    return np.array(links, np.int64).reshape(-1, 2)


def _thumbnails(data: ImageData, console: Console | None) -> np.ndarray:
    """Every image as `thumbnail` makes it, float32 `(images, side, side)`."""
    small = np.empty((sum(map(len, data.splits.values())), SIDE, SIDE), np.float32)
    with Bar(console, "Making thumbnails", len(small)) as bar:
        for number, image in enumerate(image for split in data.splits.values() for image in split.images):
            small[number] = thumbnail(np.asarray(image))
            bar.advance()
    return small


def _shades(small: np.ndarray) -> np.ndarray:
    """Light and shade of thumbnails, whatever their contrast and whether mirrored, float32 `(images, _GRID²)`."""
    side = SIDE // _GRID
    grid = small.reshape(len(small), _GRID, side, _GRID, side).mean((2, 4))
    both = (grid + grid[:, :, ::-1]).reshape(len(grid), -1)
    found: np.ndarray = (both - both.mean(1, keepdims=True)) / (both.std(1, keepdims=True) + 1)
    return found


def _agreements(small: np.ndarray, pairs: np.ndarray, console: Console | None) -> np.ndarray:
    """`agreement` of every pair, float64 `(pairs,)`."""

    def compared(start: int) -> np.ndarray:
        first, second = pairs[start : start + _BATCH].T
        return agreement(small[first], small[second])

    scores = [np.empty(0)]
    # NumPy lets go of the interpreter while it computes.
    with Bar(console, "Comparing pixels", len(pairs), "pairs") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(compared, range(0, len(pairs), _BATCH)):
            scores.append(found)
            bar.advance(len(found))
    return np.concatenate(scores)


def _groups(data: ImageData, pairs: np.ndarray, scores: np.ndarray) -> tuple[NearDuplicates, ...]:
    places = all_places(data)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(places),) * 2)
    member = connected_components(links, directed=False)[1]
    groups: dict[int, list[int]] = {}
    for position in np.argsort(-scores, kind="stable").tolist():
        groups.setdefault(int(member[pairs[position, 0]]), []).append(position)
    return tuple(_group(places, pairs, scores, positions) for positions in groups.values())


def _group(places: Sequence[Place], pairs: np.ndarray, scores: np.ndarray, positions: Sequence[int]) -> NearDuplicates:
    """The group linked by the pairs at `positions`, of which the first agrees most."""
    best = positions[0]
    members = np.unique(pairs[list(positions)]).tolist()
    first, second = pairs[best].tolist()
    return NearDuplicates(
        tuple(places[number] for number in members), float(scores[best]), (places[first], places[second])
    )
