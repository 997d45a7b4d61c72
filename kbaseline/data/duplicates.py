"""Finds images with equal pixels, and leaks: those in more than one split."""

import shlex
from dataclasses import dataclass

import numpy as np

from kbaseline.data.image_data import ImageData

EARLIER = {"valid": "train", "test": "train or valid"}
"""Split -> the splits that must not contain its images, for the warning."""


@dataclass(frozen=True)
class Place:
    """One image: its split, its row in the split and its label."""

    split: str
    row: int
    label: int


def all_places(data: ImageData) -> list[Place]:
    """Every image of every split, in order."""
    return [
        Place(name, row, int(label)) for name, split in data.splits.items() for row, label in enumerate(split.labels)
    ]


@dataclass(frozen=True)
class Duplicates:
    """Groups of images whose pixels are equal after decoding and resizing, so that no network can tell them apart.

    Attributes:
        groups: two or more images each, first those in train, then valid, then test.
    """

    groups: tuple[tuple[Place, ...], ...]

    @property
    def leaks(self) -> dict[str, int]:
        """Split -> number of its images that are also in an earlier split: train, or for test, train or valid."""
        splits = [place.split for group in self.groups for place in group if place.split != group[0].split]
        return {split: splits.count(split) for split in ("valid", "test") if split in splits}

    @property
    def contradictions(self) -> tuple[tuple[Place, ...], ...]:
        """The groups whose images have different labels."""
        return tuple(group for group in self.groups if len({place.label for place in group}) > 1)


def find_duplicates(data: ImageData) -> Duplicates:
    """Compares all images of all splits.

    Photos are compared by digests saved when they were decoded, 200,000 in a tenth of a second. Arrays are read once.
    """
    names, splits = list(data.splits), list(data.splits.values())
    digests = np.concatenate([split.digests for split in splits])
    order = np.argsort(digests, kind="stable")
    changes = np.flatnonzero(np.diff(digests[order])) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(order))
    firsts = np.cumsum([0, *map(len, splits)])

    def place(index: int) -> Place:
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        row = index - int(firsts[number])
        return Place(names[number], row, int(splits[number].labels[row]))

    several = np.flatnonzero(ends - starts > 1)
    groups = sorted((order[starts[i] : ends[i]].tolist() for i in several), key=lambda group: group[0])
    return Duplicates(tuple(tuple(map(place, group)) for group in groups))


def leak_warning(data: ImageData) -> str:
    """One line on images that are in more than one split; an empty string if there are none."""
    counts = [
        f"{count:,} of {len(data.splits[split]):,} {split} images are also in {EARLIER[split]}"
        for split, count in find_duplicates(data).leaks.items()
    ]
    if not counts:
        return ""
    return (
        f"leak: {' and '.join(counts)}, pixel for pixel, so accuracy is too optimistic; "
        f"`kbaseline data {shlex.quote(data.source)}` lists them"
    )
