"""A source as a set to be scored on: one split of it or all of it, nothing held out, labels as a trained network's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.cache import Target, decoded
from kbaseline.data.prepare import Listing
from kbaseline.errors import DataError, listed

ALL = "all"
"""The name for every image of a source, whatever split it is in."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images to be scored on.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`.
        labels: int32 `(number,)`, an index into the network's class names.
        split: the split they are, `train`, `valid`, `test` or `all`.
        skipped: one line for each image that was left out, for it is unreadable or its row is.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str
    skipped: tuple[str, ...] = ()


def prepare_labelled(
    listing: Listing, class_names: Sequence[str], split: str | None, config: DataConfig, console: Console | None
) -> Labelled:
    """Decodes one split of a source.

    Args:
        listing: the source.
        class_names: the network's classes, to which the source's are matched by name; it may lack some of them.
        split: see `chosen_split`.
        config: `size`, `resize`, `on_bad_image` and `cache_dir` count.
        console: where to show progress; None shows nothing.

    Raises:
        DataError: no such split, a class the network does not know, or no image that can be read.
        RunError: the cache folder cannot be written.
    """
    chosen = chosen_split(listing.labels, split, listing.display_name)
    indices, own = _numbered(listing.labels, chosen)
    labels = matched(own, listing.class_names, class_names, listing.display_name)
    target = Target(config.size, config.resize, strict=config.on_bad_image == "error")
    done = decoded(listing.pictures, {chosen: indices}, target, config.cache_folder, console)[chosen]
    skipped = tuple(f"{listing.pictures.name(int(indices[i]))}: {reason}" for i, reason in done.bad.items())
    return Labelled(done.images, np.delete(labels, list(done.bad)), chosen, listing.skipped + skipped)


def chosen_split(labels: Mapping[str, np.ndarray], split: str | None, display_name: str) -> str:
    """The split to score: the one asked for, else test, else valid, else all.

    Raises:
        DataError: there is no such split.
    """
    if split is None:
        return next((name for name in ("test", "valid") if name in labels), ALL)
    if split != ALL and split not in labels:
        raise DataError(f"{display_name}: has no split {split!r}; give one of {', '.join(labels)} or {ALL}.")
    return split


def matched(labels: np.ndarray, own: Sequence[str], known: Sequence[str], display_name: str) -> np.ndarray:
    """Labels that index `own` names as labels that index `known` ones, int32 `(number,)`.

    Raises:
        DataError: an image's class is not among the known.
    """
    places = {name: place for place, name in enumerate(known)}
    present = [own[label] for label in np.unique(labels)]
    if strange := [name for name in present if name not in places]:
        raise DataError(
            f"{display_name}: classes must be among the run's; it has {listed(strange, 20)}, and the run knows "
            f"{listed(known, 20)}. Rename or remove them."
        )
    table = np.array([places.get(name, -1) for name in own], dtype=np.int32)
    found: np.ndarray = table[labels]
    return found


def _numbered(labels: Mapping[str, np.ndarray], chosen: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the chosen split's images in the listing, and their labels."""
    ends = np.cumsum([len(part) for part in labels.values()])
    ranges = {name: np.arange(end - len(labels[name]), end) for name, end in zip(labels, ends, strict=True)}
    names = list(labels) if chosen == ALL else [chosen]
    return np.concatenate([ranges[name] for name in names]), np.concatenate([labels[name] for name in names])
