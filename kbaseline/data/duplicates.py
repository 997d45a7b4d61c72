"""Finds images that are equal pixel by pixel, and those among them that leak from one split into another."""

from dataclasses import dataclass

import numpy as np

from kbaseline.data.image_data import ImageData
from kbaseline.data.pictures import pixel_digest
from kbaseline.data.prepare import Split

EARLIER = {"valid": "train", "test": "train or valid"}
"""Split -> the splits that must not hold its images too, for a message."""


@dataclass(frozen=True)
class Place:
    """One image: its split, its row there and its label."""

    split: str
    row: int
    label: int


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with the same pixels at the size they were decoded to, which no network can tell apart.

    Attributes:
        groups: two or more images each, those of train first, then valid, then test.
    """

    groups: tuple[tuple[Place, ...], ...]

    @property
    def leaks(self) -> dict[str, int]:
        """Split -> how many of its images are also in an earlier split: in train, or for test in train or valid."""
        splits = [place.split for group in self.groups for place in group if place.split != group[0].split]
        return {split: splits.count(split) for split in ("valid", "test") if split in splits}

    @property
    def contradictions(self) -> tuple[tuple[Place, ...], ...]:
        """The groups whose images have different labels."""
        return tuple(group for group in self.groups if len({place.label for place in group}) > 1)


def find_duplicates(data: ImageData) -> Duplicates:
    """Compares all images of all splits.

    Photos have digests from decoding, so 200,000 take a tenth of a second; arrays are read once.
    """
    names, splits = list(data.splits), list(data.splits.values())
    digests = np.concatenate([_digests(split) for split in splits])
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
    """One line on images that are in two splits; an empty string where there are none."""
    counts = [
        f"{count:,} of {len(data.splits[split]):,} {split} images are in {EARLIER[split]} too"
        for split, count in find_duplicates(data).leaks.items()
    ]
    if not counts:
        return ""
    return (
        f"leak: {' and '.join(counts)}, pixel for pixel, which makes accuracy look better than it is; "
        f"`kbaseline data {data.source}` names them"
    )


def _digests(split: Split) -> np.ndarray:
    if split.provenance is not None:
        return split.provenance.digests
    return np.array([pixel_digest(image.tobytes()) for image in split.images], np.uint64)
