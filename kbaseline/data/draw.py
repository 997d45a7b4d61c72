"""Draws the images of every split from a source by their labels, and draws again where one cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kbaseline.config.schema import DataConfig
from kbaseline.data.decode import BadImageError, decode, quiet
from kbaseline.data.sources.listing import Listing
from kbaseline.data.splits import DEFAULT_VALID_FRACTION, choose, number_images
from kbaseline.errors import DataError, listed


def all_labels(listing: Listing) -> np.ndarray:
    """The label of every image of a source, int32 `(number,)`."""
    return np.concatenate(list(listing.labels.values())).astype(np.int32)


def of_trained_classes(listing: Listing) -> tuple[Listing, list[str]]:
    """The listing without the classes that `train` lacks, whose images have the label -1, and a line for each."""
    every = all_labels(listing)
    strange = np.setdiff1d(every, listing.labels["train"])
    notes = [
        f"{split}: {(own == label).sum():,} images of {listing.class_names[label]!r} left out; train lacks that class"
        for split, own in listing.labels.items()
        for label in np.intersect1d(own, strange)
    ]
    kept = np.setdiff1d(np.arange(len(listing.class_names)), strange)
    places = np.full(len(listing.class_names), -1)
    places[kept] = np.arange(len(kept))
    labels = {split: places[own] for split, own in listing.labels.items()}
    return replace(listing, labels=labels, class_names=tuple(listing.class_names[label] for label in kept)), notes


def draw(listing: Listing, usable: np.ndarray, config: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """`choose` of the usable images, bool `(number,)`.

    Raises:
        DataError: fewer than two classes, or an empty split.
    """
    parts = {name: usable[numbers] for name, numbers in number_images(listing.labels).items()}
    labels = {name: listing.labels[name][part] for name, part in parts.items() if name == "train" or part.any()}
    numbers = np.concatenate([number_images(listing.labels)[name][parts[name]] for name in labels])
    chosen = choose(
        labels,
        seed,
        valid_fraction=config.valid_fraction,
        limit=config.limit,
        limit_valid=config.limit_valid,
        groups=None if listing.groups is None else listing.groups[numbers],
        fold=config.fold,
    )
    found = {name: numbers[positions] for name, positions in chosen.items()}
    present = np.unique(all_labels(listing)[found["train"]])
    if len(present) < 2:
        names = ", ".join(repr(listing.class_names[label]) for label in present)
        raise DataError(f"source {config.source!r}: training needs at least two classes; got {names or 'none'}.")
    for name, part in found.items():
        if not len(part):
            whole = "images" if listing.groups is None else "groups of images"
            raise DataError(f"source {config.source!r}: {name} is empty; give each class two {whole} or more.")
    return found


def lost_by_chance(listing: Listing, chosen: Mapping[str, np.ndarray], usable: np.ndarray) -> bool:
    """Whether a class of which a split drew only unreadable images has others that it could have drawn."""
    every, sources = all_labels(listing), number_images(listing.labels)
    for numbers in chosen.values():
        pool = next(pool for pool in sources.values() if numbers[0] in pool)
        lost = np.setdiff1d(every[numbers], every[numbers[usable[numbers]]])
        if np.isin(lost, every[pool[usable[pool]]]).any():
            return True
    return False


def unreadable_splits(listing: Listing, chosen: Mapping[str, np.ndarray], config: DataConfig) -> dict[int, str]:
    """Number -> one line, for all images of the splits of which none can be read."""
    bad: dict[int, str] = {}
    if isinstance(listing.pictures, np.ndarray) or config.on_bad_image == "error":
        return bad
    for numbers in chosen.values():
        reasons = {}
        for number in numbers.tolist():
            try:
                with quiet():
                    decode(listing.pictures.open(number), config.size, config.size, config.resize)
                break
            except BadImageError as error:
                reasons[number] = f"{listing.pictures.name(number)}: {error}"
        else:
            bad |= reasons
    return bad


def check_every_class(listing: Listing, usable: np.ndarray, skipped: Mapping[int, str]) -> None:
    """Raises a `DataError` for a class of which no training image can be read."""
    own = number_images(listing.labels)["train"]
    every = all_labels(listing)
    for label in np.setdiff1d(every[own], every[own[usable[own]]]):
        line = next(line for number, line in skipped.items() if every[number] == label and number in own)
        raise DataError(
            f"{listing.display_name}: class {listing.class_names[label]!r} has no readable image left in train "
            f"({line}); repair or replace its images, or remove the class."
        )


def missing_classes(split: str, labels: np.ndarray, names: Sequence[str], wanted: np.ndarray) -> list[str]:
    """A line on the classes that a split lacks, or none."""
    lacking = np.setdiff1d(wanted, labels)
    return [f"{split}: has no image of {listed(names[label] for label in lacking)}"] if len(lacking) else []


def uneven_hold_out(listing: Listing, chosen: Mapping[str, np.ndarray], config: DataConfig) -> list[str]:
    """A line where whole groups make the hold-out less than half or more than twice what was asked for, or none."""
    by_source = config.valid_fraction is None and len(listing.labels) > 1
    if listing.groups is None or by_source or config.fold is not None or config.limit or config.limit_valid:
        return []
    asked = config.valid_fraction or DEFAULT_VALID_FRACTION
    share = len(chosen["valid"]) / (len(chosen["valid"]) + len(chosen["train"]))
    if asked / 2 <= share <= 2 * asked:
        return []
    return [f"groups: {100 * share:.0f} % of train are held out, not {100 * asked:g} %; no group is divided"]


def divided_groups(listing: Listing, chosen: Mapping[str, np.ndarray]) -> list[str]:
    """A line on groups that the source's own splits divide, or none."""
    if listing.groups is None:
        return []
    sides = [set(listing.groups[numbers].tolist()) for numbers in chosen.values()]
    divided = sum(len(side & set().union(*sides[:at])) for at, side in enumerate(sides))
    if not divided:
        return []
    names = " and ".join(chosen)
    return [
        f"groups: {divided:,} are on several sides of the source's own splits ({names}); accuracy is too optimistic"
    ]
