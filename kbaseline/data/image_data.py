"""`ImageData`: images, labels and class names, split and ready to train on, from any source or from arrays."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.config.schema import DataConfig, TransformsConfig
from kbaseline.data.prepare import Split, prepare
from kbaseline.data.rows import Rows
from kbaseline.data.sample import spread_rows, transformed
from kbaseline.data.sources.registry import open_source
from kbaseline.data.splits import choose
from kbaseline.errors import DataError
from kbaseline.render.notebook import Card, Gallery, Table, fragment, paragraphs


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images, labels and class names, split and ready to train on; made by `from_source` or `from_arrays`.

    >>> import numpy as np
    >>> from kbaseline import ImageData
    >>> ImageData.from_source("digits", size=32)
    ImageData('digits': train 1,438, valid 359; 10 classes; 8x8 shown at 32)
    >>> images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype="uint8")
    >>> ImageData.from_arrays((images, np.arange(100) % 2), class_names=("cat", "dog"))
    ImageData('arrays': train 80, valid 20; 2 classes; 32x32 shown at 32)

    Attributes:
        train: training images: `images`, uint8 `(number, height, width, 3)` 0-255, and `labels`, int32 `(number,)`.
        valid: the same for validation after every epoch.
        test: the same for the final test; None if the source's test split is used as `valid`.
        class_names: the name of each label, from label 0.
        size: side of the network's square input, in pixels. `images` keep the source's own size where possible, so
            that the model combines resize and augmentation in one resample.
        source: the source string, or a name for arrays.
        skipped: one line for everything of the source that was left out, with the reason, or is missing.

    Raises:
        DataError, DownloadError: from `from_source` and `from_arrays`; the constructor itself does no checks.
    """

    train: Split
    valid: Split
    class_names: tuple[str, ...]
    size: int
    test: Split | None = None
    source: str = "arrays"
    skipped: tuple[str, ...] = field(default=())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of all `images`, in pixels."""
        height, width = self.train.images.shape[1:3]
        return height, width

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits, by name."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def fingerprint(self, *, contents: bool = True) -> str:
        """A digest of class names, labels and images; it changes when images are added, moved, replaced or removed.

        Of decoded images it takes the digests that were made when they were decoded, so that it costs milliseconds.

        Args:
            contents: whether it also depends on the pixels; checkpoints of the first versions hold one without.
        """
        digest = hashlib.sha256(repr((self.class_names, self.size)).encode())
        for name, split in self.splits.items():
            digest.update(f"{name} {split.images.shape}".encode())
            digest.update(np.ascontiguousarray(split.labels).tobytes())
            if contents:
                pixels = split.images if split.provenance is None else split.provenance.digests
                digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    @classmethod
    def from_source(cls, source: str, size: int = 128, *, seed: int = 42, **options: Any) -> Self:
        """Loads images from a source string.

        Args:
            source: `"tfds:cifar10"`, `"folder:PATH"`, `"csv:PATH"` (an existing path needs no prefix) or `"digits"`.
            size: side of the network's square input, in pixels.
            seed: fixes random splits and subsets.
            **options: the other keys of the configuration's `data` section: `limit`, `limit_valid`,
                `valid_fraction`, `data_dir`, `cache_dir`, `resize`, `on_bad_image`.

        Raises:
            DataError: the source is unknown, or its images or labels are invalid.
            DownloadError: the images are not on this machine and could not be downloaded.
        """
        config = load_config({"seed": seed, "data": {"source": source, "size": size, **options}})
        data = load_source(config.data, config.seed)
        return cls(**{name: getattr(data, name) for name in cls.__dataclass_fields__})

    @classmethod
    def from_arrays(
        cls,
        train: tuple[Any, Any],
        valid: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        size: int | None = None,
        valid_fraction: float | None = None,
        seed: int = 42,
        source: str = "arrays",
    ) -> Self:
        """Takes arrays that are already in memory.

        Args:
            train: images `(number, height, width, 3)`, or `(number, height, width)` for grey ones, integer or float,
                values 0-255; and integer labels `(number,)` from 0.
            valid: the same; None to use `test`, or if that is None too, a stratified part of `train`.
            test: the same, or None.
            class_names: the name of each label; default `"0"`, `"1"`, ...
            size: side of the network's square input, in pixels; default: the images' shorter side.
            valid_fraction: hold out this fraction of `train` as `valid`, even if `test` is given.
            seed: fixes the hold-out.
            source: a name for reports.

        Raises:
            DataError: a wrong shape or dtype, values outside 0-255, labels that do not match the images or the class
                names, or fewer than two classes.
        """
        arrays = {"train": train, "valid": valid, "test": test}
        splits = {name: _checked(name, *pair) for name, pair in arrays.items() if pair is not None}
        highest = max(int(split.labels.max()) for split in splits.values())
        names = tuple(str(name) for name in (range(highest + 1) if class_names is None else class_names))
        _check_classes(names, highest, splits["train"].labels)
        labels = {name: split.labels for name, split in splits.items()}
        chosen = choose(labels, seed, valid_fraction=valid_fraction)
        taken = {name: _taken(source, name, splits, numbers) for name, numbers in chosen.items()}
        return cls(
            train=taken["train"],
            valid=taken["valid"],
            test=taken.get("test"),
            class_names=names,
            size=size or min(splits["train"].images.shape[1:3]),
            source=source,
        )

    def show(
        self, n: int = 10, split: str = "train", *, augmented: bool | TransformsConfig = False, seed: int = 0
    ) -> Gallery:
        """Shows images with their classes, in a notebook.

        Args:
            n: number of images, of evenly spaced classes if there are more than that.
            split: `"train"`, `"valid"` or `"test"`.
            augmented: show them as training may: with these transforms, or those of the default configuration if True.
            seed: fixes the choice and the augmentation.

        Raises:
            DataError: the split does not exist.
        """
        part = self.split(split)
        chosen = spread_rows(part.labels, max(n, 1), seed)
        images = np.asarray(part.images[chosen])
        title = f"{len(chosen)} of {len(part):,} images of {split}"
        if augmented:
            transforms = augmented if isinstance(augmented, TransformsConfig) else TransformsConfig()
            images = transformed(images, self.size, transforms, seed, training=True)
            title += ", augmented as training may show them"
        from kbaseline.render.images import SMALL, picture

        small = max(images.shape[1:3]) <= SMALL
        names = [self.class_names[label] for label in part.labels[chosen]]
        return Gallery(title, [Card((picture(one),), (name,), small) for one, name in zip(images, names, strict=True)])

    def split(self, name: str) -> Split:
        """The split of this name.

        Raises:
            DataError: it does not exist.
        """
        if name not in self.splits:
            raise DataError(f"split {name!r}: does not exist; this data has {', '.join(self.splits)}.")
        return self.splits[name]

    def _repr_html_(self) -> str:
        counts = {name: np.bincount(part.labels, minlength=self.num_classes) for name, part in self.splits.items()}
        rows = Table(
            {"split": name, "images": len(self.splits[name])}
            | {"fewest of a class": int(each.min()), "most of a class": int(each.max())}
            for name, each in counts.items()
        )
        skipped = f"<p>skipped: {len(self.skipped):,}; see data.skipped</p>" if self.skipped else ""
        return fragment(paragraphs(repr(self)), rows.html(), skipped, self.show().html())

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        height, width = self.image_size
        return (
            f"ImageData({self.source!r}: {counts}; {self.num_classes} classes; {width}x{height} shown at {self.size})"
        )


def load_source(
    config: DataConfig,
    seed: int,
    console: Console | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    copies: np.ndarray | None = None,
) -> ImageData:
    """Loads the images a configuration asks for: its source, validation split, subset and size.

    Args:
        config: the `data` section.
        seed: fixes random splits and subsets.
        console: where work of more than two seconds shows its progress; None shows nothing.
        image_size: height and width to fit the images to, those of a run; None to choose them, see `cache.decoded`.
        copies: of `data.group: auto`, int `(number of images in the source,)`, the same for copies of one picture.

    Returns:
        Images uint8 0-255, `(number, height, width, 3)`, in memory or memory-mapped.

    Raises:
        DataError: the source is unknown, its data are invalid, or the copies are missing or those of other images.
        DownloadError: the images are not on this machine and could not be downloaded.
        RunError: a folder cannot be written, or TFDS fails.
    """
    with open_source(config, console) as listing:
        splits, class_names, skipped = prepare(listing, config, seed, console, image_size, copies)
    return ImageData(
        train=splits["train"],
        valid=splits["valid"],
        test=splits.get("test"),
        class_names=class_names,
        size=config.size,
        source=config.source,
        skipped=skipped,
    )


def checked_images(name: str, images: Any) -> np.ndarray:
    """Checks images and returns them as uint8 `(number, height, width, 3)`; those of a decoded copy stay on disk.

    Raises:
        DataError: no images, a wrong shape or dtype, or values outside 0-255.
    """
    try:
        images = images if isinstance(images, Rows) else np.asanyarray(images)
    except ValueError:
        raise DataError(f"{name} images: must be one array, all of one size; got images of several sizes.") from None
    if images.ndim == 3 and images.shape[-1] <= 4:  # one photo: nobody has grey ones of such a width
        raise DataError(
            f"{name} images: shape must be (number, height, width, 3); got {images.shape}. Give one image as "
            "images[None]."
        )
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{name} images: shape must be (number, height, width, 3); got {images.shape}.")
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    if not len(images):
        raise DataError(f"{name} images: there are none; give at least one per class.")
    return images if images.dtype == np.uint8 else _as_uint8(name, images)


def _checked(name: str, images: Any, labels: Any) -> Split:
    """Checks images and labels: uint8 `(number, height, width, 3)` and int32 `(number,)`, or a `DataError`."""
    images, labels = checked_images(name, images), np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name} labels: must be {len(images)} integers, one per image; got {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0:
        raise DataError(f"{name} labels: must start at 0; got {labels.min()}.")
    return Split(images, labels.astype(np.int32))


def _taken(source: str, name: str, splits: Mapping[str, Split], numbers: np.ndarray) -> Split:
    """The images of a split that `choose` selected; without a copy if it selected all of them."""
    if not len(numbers):
        raise DataError(f"source {source!r}: {name} is empty; give each class two images or more.")
    rows = numbers
    for split in splits.values():
        if rows[0] < len(split):
            break
        rows = rows - len(split)
    return split if len(rows) == len(split) else split.take(rows)


def _as_uint8(name: str, images: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(images.dtype, np.floating) or np.issubdtype(images.dtype, np.integer)):
        raise DataError(f"{name} images: dtype must be uint8, integer or float; got {images.dtype}.")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):
        raise DataError(f"{name} images: values must lie in 0-255; got {low:g} to {high:g}. Rescale them first.")
    if np.issubdtype(images.dtype, np.floating) and 0 < high <= 1:
        raise DataError(f"{name} images: values must lie in 0-255; got 0-1 ({high:g} at most). Multiply by 255.")
    rounded: np.ndarray = np.rint(images).astype(np.uint8)
    return rounded


def _check_classes(names: tuple[str, ...], highest: int, train_labels: np.ndarray) -> None:
    if highest >= len(names):
        raise DataError(f"label {highest}: there are only {len(names)} class names; name every label from 0.")
    if len(names) < 2 or len(np.unique(train_labels)) < 2:
        raise DataError(f"classes: training needs at least two; got {', '.join(names)}.")
