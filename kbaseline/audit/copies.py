"""Finds the copies in a source before it is divided (`data.group: auto`), and keeps them, and groups, on one side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.audit.near_duplicates import NearDuplicates, find_near_duplicates, nearest
from kbaseline.config.schema import DataConfig
from kbaseline.data import ImageData
from kbaseline.data.duplicates import all_places
from kbaseline.data.prepare import load_undivided
from kbaseline.data.splits import merge_groups

BACKBONE = "efficientnet_lite0"
"""The network whose features are compared: it comes with kbaseline."""

SMALL_SIZE = 128
"""Images of at most this many pixels a side are shown to the network at no more than this size."""


def network_features(data: ImageData, cache_dir: Path | None, console: Console | None) -> np.ndarray:
    """Features of `BACKBONE`, float32 `(images, channels)`, of all splits in their order; see `features`."""
    # Keras takes seconds to import, and most sources are divided without it.
    from kbaseline.feature_extraction import features

    if max(data.image_size) <= SMALL_SIZE:
        data = replace(data, size=min(data.size, SMALL_SIZE))
    by_split = features(data, BACKBONE, cache_dir=cache_dir, console=console)
    return np.concatenate([by_split[name] for name in data.splits])


def find_copies(config: DataConfig, console: Console | None = None) -> np.ndarray | None:
    """Which images of a source are copies of one picture; None unless `config.group` is `auto`.

    Args:
        config: the `data` section.
        console: where to show progress; None shows nothing.

    Returns:
        int `(number of images in the source,)`, the same for copies of one picture, as `load_source` takes it.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    if config.group != "auto":
        return None
    split, used = load_undivided(config, console)
    names = tuple(str(label) for label in range(int(split.labels.max()) + 1))
    data = ImageData(split, split.take(np.arange(0)), names, config.size, source=config.source)
    near = nearest(network_features(data, config.cache_folder, console), console)
    numbers, found = np.flatnonzero(used), np.arange(len(used))
    found[numbers] = numbers[first_copies(data, find_near_duplicates(data, near, console))]
    return found


def first_copies(data: ImageData, copies: Sequence[NearDuplicates]) -> np.ndarray:
    """Of every image the first that shows the same picture, int `(images,)`, counted through all splits."""
    numbers = {place: number for number, place in enumerate(all_places(data))}
    found = np.arange(len(numbers))
    for group in copies:
        found[[numbers[place] for place in group.places]] = numbers[group.places[0]]
    return found


def kept_together(data: ImageData, copies: Sequence[NearDuplicates]) -> np.ndarray:
    """The same for images that no fold may divide: copies of one picture, and those of one group of the data's own.

    Args:
        data: the images; its splits know the groups of `data.group_column` and `data.group`.
        copies: groups of copies, which share no image.
    """
    own = [split.groups for split in data.splits.values() if split.groups is not None]
    relations = [first_copies(data, copies)]
    # A source gives groups to all of its splits or to none.
    return merge_groups([*relations, np.concatenate(own)] if len(own) == len(data.splits) else relations)
