"""Images of a source, chosen by their labels alone and only then decoded: to train on, or to score a network on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import ALL
from kbaseline.data.cache import Target, decoded
from kbaseline.data.fit import fit_batch
from kbaseline.data.pictures import Provenance
from kbaseline.data.sources.listing import Listing
from kbaseline.data.sources.registry import open_source
from kbaseline.data.splits import choose, number_images
from kbaseline.errors import DataError, listed


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`; an array in memory or a memory map.
        labels: int32 `(number,)`, an index into the class names.
        provenance: what the images were decoded from; None for arrays.
    """

    images: np.ndarray
    labels: np.ndarray
    provenance: Provenance | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """What to call an image: where it came from, or its number."""
        return f"image {row}" if self.provenance is None else self.provenance.name(row)

    def take(self, indices: np.ndarray) -> "Split":
        """The images at `indices`, in that order."""
        provenance = None if self.provenance is None else self.provenance.take(indices)
        return Split(self.images[indices], self.labels[indices], provenance)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images to score a network on.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`.
        labels: int32 `(number,)`, an index into the network's class names.
        split: the split they are, `train`, `valid`, `test` or `all`.
        skipped: one line for each image or row that was left out because it cannot be read.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str
    skipped: tuple[str, ...] = ()


def prepare(
    listing: Listing,
    config: DataConfig,
    seed: int,
    console: Console | None,
    image_size: tuple[int, int] | None = None,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Chooses the images to train, validate and test on, decodes them and leaves out what cannot be read.

    Args:
        listing: the source.
        config: the `data` section.
        seed: fixes the hold-out and the subsets.
        console: where to show progress; None shows nothing.
        image_size: height and width to fit the images to; None to choose them, see `cache.decoded`.

    Returns:
        `train`, `valid` and perhaps `test` -> images and labels; one line for each image that was left out.

    Raises:
        DataError: fewer than two classes, or an empty split; an image that cannot be read, if `config.on_bad_image`
            says so; a class of which no image can be read.
        RunError: the cache folder cannot be written.
    """
    if listing.untrainable:
        raise DataError(listing.untrainable)
    chosen = choose(
        listing.labels,
        seed,
        valid_fraction=config.valid_fraction,
        limit=config.limit,
        limit_valid=config.limit_valid,
    )
    labels = {name: _labels(listing)[numbers] for name, numbers in chosen.items()}
    present = np.unique(labels["train"])
    if len(present) < 2:
        names = ", ".join(repr(listing.class_names[label]) for label in present)
        raise DataError(f"source {config.source!r}: training needs at least two classes; got {names or 'none'}.")
    for name, numbers in chosen.items():
        if not len(numbers):
            raise DataError(f"source {config.source!r}: {name} is empty; give each class two images or more.")
    splits, bad = _decode(listing, chosen, config, console, image_size)
    for name, split in splits.items():
        # In a small subset a class may lack readable images by chance; elsewhere that is the source's fault.
        whole = name == "train" or (config.limit is None and config.limit_valid is None)
        for label in np.setdiff1d(labels[name], split.labels) if whole else ():
            line = next(line for position, line in bad[name].items() if labels[name][position] == label)
            raise DataError(
                f"{listing.display_name}: class {listing.class_names[label]!r} has no readable image left in {name} "
                f"({line}); repair or replace them."
            )
    return splits, listing.skipped + tuple(line for lines in bad.values() for line in lines.values())


def load_labelled(
    config: DataConfig,
    class_names: Sequence[str],
    split: str | None = None,
    console: Console | None = None,
    *,
    image_size: tuple[int, int] | None = None,
) -> Labelled:
    """Loads images to score a trained network on: nothing is held out and nothing left out, whatever `config` says.

    Args:
        config: its `source`, and how photos are read: `size`, `resize`, `on_bad_image`, `data_dir`, `cache_dir`.
        class_names: the network's classes; the source's are matched to them by name, in any order. The source may lack
            some of them.
        split: `train`, `valid`, `test` or `all`; None for test, else valid, else all: a plain folder of class folders
            is one set.
        console: where work of more than two seconds shows its progress; None shows nothing.
        image_size: height and width to fit the images to, those of the run; None to choose as for training.

    Raises:
        DataError: an unknown source or split, data that break a rule, a class that is not the network's, or no image
            that can be read.
        DownloadError: the images are not here and could not be fetched.
        RunError: a folder cannot be written, or TFDS fails.
    """
    with open_source(config, console) as listing:
        chosen = _chosen_split(listing, split)
        own = number_images(listing.labels)
        numbers = np.concatenate(list(own.values())) if chosen == ALL else own[chosen]
        labels = _places(listing, numbers, class_names)
        splits, bad = _decode(listing, {chosen: numbers}, config, console, image_size)
        skipped = listing.skipped + tuple(bad[chosen].values())
    return Labelled(splits[chosen].images, labels[splits[chosen].labels], chosen, skipped)


def _labels(listing: Listing) -> np.ndarray:
    """The label of every image of a source, int32 `(number,)`."""
    return np.concatenate(list(listing.labels.values())).astype(np.int32)


def _decode(
    listing: Listing,
    chosen: Mapping[str, np.ndarray],
    config: DataConfig,
    console: Console | None,
    image_size: tuple[int, int] | None,
) -> tuple[dict[str, Split], dict[str, dict[int, str]]]:
    """The chosen images by split; by split, the position in `chosen` of each that cannot be read -> one line on it."""
    pictures, labels = listing.pictures, _labels(listing)
    if isinstance(pictures, np.ndarray):
        height, width = image_size or pictures.shape[1:3]
        found = {
            name: Split(fit_batch(pictures[numbers], height, width, config.resize), labels[numbers])
            for name, numbers in chosen.items()
        }
        return found, {name: {} for name in chosen}
    target = Target(config.size, config.resize, strict=config.on_bad_image == "error", image_size=image_size)
    splits, bad = {}, {}
    for name, done in decoded(pictures, chosen, target, config.cache_folder, console).items():
        numbers = chosen[name]
        bad[name] = {at: f"{pictures.name(int(numbers[at]))}: {reason}" for at, reason in done.bad.items()}
        kept = np.delete(numbers, list(done.bad))
        splits[name] = Split(done.images, labels[kept], Provenance(pictures, kept, done.digests))
    return splits, bad


def _chosen_split(listing: Listing, split: str | None) -> str:
    """The split to score: the one asked for, else test, else valid, else all."""
    labels = listing.labels
    if split is None:
        return next((name for name in ("test", "valid") if name in labels), ALL)
    if split != ALL and split not in labels:
        raise DataError(f"{listing.display_name}: has no split {split!r}; give one of {', '.join(labels)} or {ALL}.")
    return split


def _places(listing: Listing, numbers: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """The source's label -> the label of the same name among `known`, int32 `(classes,)`; -1 where it has no image.

    Raises:
        DataError: the class of an image is not among the known.
    """
    places = {name: place for place, name in enumerate(known)}
    present = [listing.class_names[label] for label in np.unique(_labels(listing)[numbers])]
    if strange := [name for name in present if name not in places]:
        raise DataError(
            f"{listing.display_name}: classes must be among the run's; it has {listed(strange, 20)}, and the run knows "
            f"{listed(known, 20)}. Rename or remove them."
        )
    return np.array([places.get(name, -1) for name in listing.class_names], dtype=np.int32)
