"""Settles which images of a source a run needs, then has only those decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.cache import Decoded, Target, decoded
from kbaseline.data.image_data import ImageData, Split
from kbaseline.data.pictures import Pictures, Provenance
from kbaseline.errors import DataError


@dataclass(frozen=True)
class Listing:
    """A source before anything is decoded.

    Attributes:
        pictures: all its images, numbered through the splits in the order of `labels`.
        labels: `train` and perhaps `valid` and `test` -> int `(number,)`, a class for every image.
        class_names: the name of each label.
        display_name: what the source is called in messages, for instance `folder 'photos'`.
        skipped: one line for each image that was left out already.
    """

    pictures: Pictures
    labels: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    display_name: str
    skipped: tuple[str, ...] = ()


def choose(data: ImageData, config: DataConfig, seed: int, *, has_valid: bool) -> ImageData:
    """Holds validation images out of train where they are wanted, then takes the subsets of `limit`.

    Raises:
        DataError: fewer than two classes are left to train on.
    """
    chosen = data.with_validation(config.valid_fraction, seed, has_valid=has_valid)
    chosen = chosen.limited(config.limit, config.limit_valid, seed)
    present = np.unique(chosen.train.labels)
    if len(present) < 2:
        names = ", ".join(repr(data.class_names[label]) for label in present)
        raise DataError(f"source {config.source!r}: training needs at least two classes; got {names or 'none'}.")
    for name, split in chosen.splits.items():
        if not len(split):
            raise DataError(f"source {config.source!r}: {name} is empty; give each class two images or more.")
    return chosen


def prepare(listing: Listing, config: DataConfig, seed: int, console: Console | None) -> ImageData:
    """Chooses images by their labels alone, decodes the chosen ones and leaves out what cannot be read.

    Raises:
        DataError: fewer than two classes; an image that cannot be read, if `config.on_bad_image` says so;
            a class of which no image can be read.
        RunError: the cache folder cannot be written.
    """
    chosen = choose(_numbered(listing, config), config, seed, has_valid="valid" in listing.labels)
    target = Target(config.size, config.resize, strict=config.on_bad_image == "error")
    indices = {name: split.images for name, split in chosen.splits.items()}
    done = decoded(listing.pictures, indices, target, config.cache_folder, console)
    splits: dict[str, Split] = {}
    skipped = list(listing.skipped)
    for name, split in chosen.splits.items():
        splits[name] = _without_bad(listing, name, split, done[name], whole=_is_whole(config, name))
        skipped += [
            f"{listing.pictures.name(int(split.images[position]))}: {reason}"
            for position, reason in done[name].bad.items()
        ]
    return replace(
        chosen, train=splits["train"], valid=splits["valid"], test=splits.get("test"), skipped=tuple(skipped)
    )


def _numbered(listing: Listing, config: DataConfig) -> ImageData:
    """`ImageData` whose images are still numbers: splits and subsets of these cost no decoding and no memory."""
    splits, start = {}, 0
    for name, labels in listing.labels.items():
        numbers = np.arange(start, start + len(labels))
        splits[name] = Split(numbers, np.asarray(labels, dtype=np.int32))
        start += len(labels)
    return ImageData(
        train=splits["train"],
        valid=splits.get("valid", splits["train"]),
        test=splits.get("test"),
        class_names=listing.class_names,
        size=config.size,
        source=config.source,
    )


def _is_whole(config: DataConfig, name: str) -> bool:
    """Whether a class without readable images is the source's fault, not that of a small subset."""
    return name == "train" or (config.limit is None and config.limit_valid is None)


def _without_bad(listing: Listing, name: str, split: Split, done: Decoded, *, whole: bool) -> Split:
    kept, numbers = (np.delete(values, list(done.bad)) for values in (split.labels, split.images))
    for label in np.setdiff1d(split.labels, kept) if whole else ():
        position = next(position for position in done.bad if split.labels[position] == label)
        raise DataError(
            f"{listing.display_name}: class {listing.class_names[label]!r} has no readable image left in {name} "
            f"({listing.pictures.name(int(split.images[position]))}: {done.bad[position]}); repair or replace them."
        )
    return Split(done.images, kept, Provenance(listing.pictures, numbers, done.digests))
