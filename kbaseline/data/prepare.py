"""Images of a source, chosen by their labels alone and only then decoded: to train on, or to score a network on."""

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import ALL
from kbaseline.data.cache import Target, decoded
from kbaseline.data.draw import (
    all_labels,
    check_every_class,
    divided_groups,
    draw,
    lost_by_chance,
    missing_classes,
    of_trained_classes,
    uneven_hold_out,
    unreadable_splits,
)
from kbaseline.data.fit import fit_batch
from kbaseline.data.pictures import Provenance, pixel_digest
from kbaseline.data.sources.listing import Listing
from kbaseline.data.sources.registry import open_source
from kbaseline.data.splits import merge_groups, number_images
from kbaseline.errors import DataError, listed

_SURVEYED = 32
"""Images that a survey decodes."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`; an array in memory or a memory map.
        labels: int32 `(number,)`, an index into the class names.
        provenance: what the images were decoded from; None for arrays.
        groups: int `(number,)`, the same for images that no split of these may divide; None where each is for itself.
    """

    images: np.ndarray
    labels: np.ndarray
    provenance: Provenance | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digests(self) -> np.ndarray:
        """uint64 `(number,)`, `pixel_digest` of each image; known already where they were decoded from files."""
        if self.provenance is not None:
            return self.provenance.digests
        return np.array([pixel_digest(image.tobytes()) for image in self.images], np.uint64)

    @property
    def identity(self) -> str:
        """A digest of which images these are, in order: of their names, or of their pixels where they have none.

        Files that are decoded to another size are the same images.
        """
        if self.provenance is None:
            return hashlib.sha256(self.digests.tobytes()).hexdigest()
        names = "\0".join(self.name(row) for row in range(len(self)))
        return hashlib.sha256(names.encode()).hexdigest()

    def name(self, row: int) -> str:
        """What to call an image: where it came from, or its number."""
        return f"image {row}" if self.provenance is None else self.provenance.name(row)

    def take(self, indices: np.ndarray) -> "Split":
        """The images at `indices`, in that order."""
        provenance = None if self.provenance is None else self.provenance.take(indices)
        groups = None if self.groups is None else self.groups[indices]
        return Split(self.images[indices], self.labels[indices], provenance, groups)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images to score a network on.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`.
        labels: int32 `(number,)`, an index into the network's class names.
        split: the split they are, `train`, `valid`, `test` or `all`.
        skipped: one line for whatever of the source was left out, with the reason, or is missing.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of a source before its images are decoded.

    Attributes:
        images: number of images in each split, those that cannot be read among them.
        class_names: the name of each label.
        image_size: height and width of a few images, in pixels, as they are decoded.
        keeps_size: whether these are the images' own, and not those the network sees.
        decoding: seconds to decode an image; 0 where the source has pixels.
    """

    images: dict[str, int]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    keeps_size: bool
    decoding: float

    def decoded_size(self, size: int) -> tuple[int, int]:
        """Height and width that images are decoded to for a network of so many pixels."""
        keeps = self.keeps_size and max(self.image_size) <= 2 * size
        return self.image_size if keeps else (size, size)


def prepare(
    listing: Listing,
    config: DataConfig,
    seed: int,
    console: Console | None,
    image_size: tuple[int, int] | None = None,
    copies: np.ndarray | None = None,
) -> tuple[dict[str, Split], tuple[str, ...], tuple[str, ...]]:
    """Chooses the images to train, validate and test on, decodes them and leaves out what cannot be read.

    Images of a class that `train` lacks are left out. `valid` and `test` may lack classes. Where an image that cannot
    be read was drawn for a split and its class has no other there, the splits are drawn again without it.

    Args:
        listing: the source.
        config: the `data` section.
        seed: fixes the hold-out and the subsets.
        console: where to show progress; None shows nothing.
        image_size: height and width to fit the images to; None to choose them, see `cache.decoded`.
        copies: of `data.group: auto`, int `(number of images in the source,)`, the same for copies of one picture.

    Returns:
        `train`, `valid` and perhaps `test` -> images and labels; the name of each label; one line for whatever was left
        out or is missing.

    Raises:
        DataError: fewer than two classes, or an empty split; an image that cannot be read, if `config.on_bad_image`
            says so; a class of which no image can be read; copies that are missing, or those of other images.
        RunError: the cache folder cannot be written.
    """
    if listing.untrainable:
        raise DataError(listing.untrainable)
    listing, notes = of_trained_classes(_with_copies(listing, config, copies))
    usable = all_labels(listing) >= 0
    skipped: dict[int, str] = {}
    while True:
        chosen = draw(listing, usable, config, seed)
        try:
            splits, bad = _decode(listing, chosen, config, console, image_size)
        except DataError:
            splits, bad = {}, unreadable_splits(listing, chosen, config)
            usable[list(bad)] = False
            if not bad or not usable[number_images(listing.labels)["train"]].any():
                raise
        skipped |= bad
        usable[list(bad)] = False
        check_every_class(listing, usable, skipped)
        if splits and not lost_by_chance(listing, chosen, usable):
            break
    if config.limit is None and config.limit_valid is None:
        every = np.concatenate([split.labels for split in splits.values()])
        for name, split in splits.items():
            notes += missing_classes(name, split.labels, listing.class_names, every)
    if config.holds_out:
        notes += divided_groups(listing, chosen)
        notes += uneven_hold_out(listing, chosen, config)
    return splits, listing.class_names, (*notes, *listing.skipped, *skipped.values())


def load_undivided(config: DataConfig, console: Console | None = None) -> tuple[Split, np.ndarray]:
    """All images that a run could train, validate and test on, before they are divided.

    Args:
        config: the `data` section.
        console: where work of more than two seconds shows its progress; None shows nothing.

    Returns:
        The images; bool `(number of images in the source,)`, which of the source's these are, in the same order.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    with open_source(config, console) as listing:
        if listing.untrainable:
            raise DataError(listing.untrainable)
        listing, _ = of_trained_classes(listing)
        used = all_labels(listing) >= 0
        splits, bad = _decode(listing, {ALL: np.flatnonzero(used)}, config, console, None)
    used[list(bad)] = False
    return splits[ALL], used


def _with_copies(listing: Listing, config: DataConfig, copies: np.ndarray | None) -> Listing:
    """The listing whose groups hold copies together as well, if `config.group` asks for it."""
    if config.group != "auto":
        return listing
    if copies is None:
        raise DataError(
            "data.group 'auto': run_baseline and the commands compare all images first; give 'none' or 'folder' here."
        )
    number = len(all_labels(listing))
    if len(copies) != number:
        raise DataError(
            f"{listing.display_name}: has {number:,} images, and had {len(copies):,} when they were compared for "
            "data.group 'auto'; restore them, or start a new run."
        )
    if len(np.unique(copies)) == number:
        return listing  # Without copies the split is that of `none`.
    return replace(listing, groups=merge_groups([copies] if listing.groups is None else [listing.groups, copies]))


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
    found = labels[splits[chosen].labels]
    missing = missing_classes(chosen, found, class_names, np.arange(len(class_names)))
    return Labelled(splits[chosen].images, found, chosen, (*missing, *listing.skipped, *bad.values()))


def load_sample(
    config: DataConfig,
    seed: int,
    number: int,
    console: Console | None = None,
    *,
    image_size: tuple[int, int],
    copies: np.ndarray | None = None,
) -> np.ndarray:
    """Some validation images, evenly spaced, uint8 `(number or fewer, *image_size, 3)`; no others are decoded.

    Args:
        config: the `data` section.
        seed: fixes the hold-out and the subsets.
        number: how many images, at most; those that cannot be read are left out.
        console: where to show progress; None shows nothing.
        image_size: height and width to fit the images to, those of a run.
        copies: see `prepare`.

    Raises:
        DataError, DownloadError, RunError: as `load_labelled`.
    """
    with open_source(config, console) as listing:
        listing, chosen = _chosen(_with_copies(listing, config, copies), config, seed)
        return _decode_some(listing, chosen["valid"], number, config, console, image_size)


def survey(config: DataConfig, seed: int, console: Console | None = None) -> Survey:
    """Counts the images a run would use, and decodes a few of them to see how long that takes; copies are not sought.

    Args:
        config: the `data` section.
        seed: fixes the hold-out and the subsets.
        console: where to show progress; None shows nothing.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    with open_source(config, console) as listing:
        listing, chosen = _chosen(listing, config, seed)
        began = time.perf_counter()
        some = _decode_some(listing, chosen["train"], _SURVEYED, config, None, None)
        seconds = 0.0 if isinstance(listing.pictures, np.ndarray) else (time.perf_counter() - began) / len(some)
        height, width = some.shape[1:3]
        counts = {name: len(numbers) for name, numbers in chosen.items()}
        keeps = (height, width) != (config.size, config.size)
        return Survey(counts, listing.class_names, (height, width), keeps, seconds)


def _chosen(listing: Listing, config: DataConfig, seed: int) -> tuple[Listing, dict[str, np.ndarray]]:
    """The listing of the trained classes, and the images of each split, as if all could be read."""
    if listing.untrainable:
        raise DataError(listing.untrainable)
    listing, _ = of_trained_classes(listing)
    return listing, draw(listing, all_labels(listing) >= 0, config, seed)


def _decode_some(
    listing: Listing,
    numbers: np.ndarray,
    most: int,
    config: DataConfig,
    console: Console | None,
    image_size: tuple[int, int] | None,
) -> np.ndarray:
    """Some images, evenly spaced, without those that cannot be read."""
    with tempfile.TemporaryDirectory(prefix="kbaseline-") as scratch:
        # Beside the cache, which would keep a second copy of them.
        aside = config.model_copy(update={"cache_dir": Path(scratch), "on_bad_image": "skip"})
        some = numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)]
        splits, _ = _decode(listing, {"some": some}, aside, console, image_size)
        return np.array(splits["some"].images)


def _decode(
    listing: Listing,
    chosen: Mapping[str, np.ndarray],
    config: DataConfig,
    console: Console | None,
    image_size: tuple[int, int] | None,
) -> tuple[dict[str, Split], dict[int, str]]:
    """The chosen images by split; the number of each that cannot be read -> one line on it."""
    pictures, labels, groups = listing.pictures, all_labels(listing), listing.groups
    if isinstance(pictures, np.ndarray):
        height, width = image_size or pictures.shape[1:3]
        found = {
            name: Split(
                fit_batch(pictures[numbers], height, width, config.resize),
                labels[numbers],
                groups=None if groups is None else groups[numbers],
            )
            for name, numbers in chosen.items()
        }
        return found, {}
    target = Target(config.size, config.resize, strict=config.on_bad_image == "error", image_size=image_size)
    splits: dict[str, Split] = {}
    bad: dict[int, str] = {}
    for name, done in decoded(pictures, chosen, target, config.cache_folder, console).items():
        numbers = chosen[name]
        reasons = {int(numbers[at]): reason for at, reason in done.bad.items()}
        bad |= {number: f"{pictures.name(number)}: {reason}" for number, reason in reasons.items()}
        kept = np.delete(numbers, list(done.bad))
        provenance = Provenance(pictures, kept, done.digests)
        splits[name] = Split(done.images, labels[kept], provenance, None if groups is None else groups[kept])
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
    places = {normalize("NFC", name): place for place, name in enumerate(known)}
    places |= {name: place for place, name in enumerate(known)}
    found = [places.get(name, places.get(normalize("NFC", name), -1)) for name in listing.class_names]
    present = np.unique(all_labels(listing)[numbers])
    if strange := [listing.class_names[label] for label in present if found[label] < 0]:
        raise DataError(
            f"{listing.display_name}: classes must be among the run's; it has {listed(strange, 20)}, and the run knows "
            f"{listed(known, 20)}. Rename or remove them."
        )
    return np.array(found, dtype=np.int32)
