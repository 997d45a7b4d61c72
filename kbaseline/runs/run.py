"""`load`: a finished run with its network, to predict with; and its data, read again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, overload

import keras
import numpy as np
from PIL import Image
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.format import shortened
from kbaseline.data import ImageData
from kbaseline.data.fit import fit_batch
from kbaseline.data.image_data import checked_images, load_source
from kbaseline.devices.settings import check_settings
from kbaseline.devices.xla import set_compilation_cache, start_jax
from kbaseline.doubt import Doubt
from kbaseline.errors import DataError, InputError, ModelError, listed
from kbaseline.models.adapt import adapt_to_device
from kbaseline.models.backbones import read_model
from kbaseline.render.notebook import Gallery, Table, fragment, paragraphs
from kbaseline.runs.copies import copies_of_run
from kbaseline.runs.examples import Picture, prediction_gallery, read_pictures
from kbaseline.runs.inference import predict_plain, predict_views, predict_with_features
from kbaseline.runs.record import RunRecord, RunResult, read_run


@dataclass(frozen=True, eq=False)
class Answer:
    """What a run says of images, and how far to believe it.

    Attributes:
        probabilities: float32 `(number, classes)`, calibrated if the run has a `Doubt`.
        sets: bool `(number, classes)`: the classes of each image's 90 % prediction set; None without a `Doubt`.
        unfamiliarity: float32 `(number,)`, above 1 for an image unlike the training images; None without a `Doubt`.
    """

    probabilities: np.ndarray
    sets: np.ndarray | None = None
    unfamiliarity: np.ndarray | None = None


PathOrImage = str | Path | Image.Image
"""An image as people have it: a file, or one that is open in PIL."""


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A finished run and its network; several threads may predict with it, and it can be pickled.

    >>> from kbaseline import load
    >>> run = load("runs/quickstart")  # left by run_baseline("quickstart")
    >>> run.class_names[:3], run.image_size
    (('0', '1', '2'), (8, 8))

    Attributes:
        folder: the run folder.
        config: its configuration.
        model: from uint8 images of any size to float32 logits.
        class_names: names by label.
        result: its result.
        console: where progress is shown.
        doubt: what calibrates its probabilities; None for a run of an older version, which predicts without.
    """

    folder: Path
    config: Config
    model: keras.Model
    class_names: tuple[str, ...]
    result: RunResult
    console: Console = field(default_factory=lambda: Console(stderr=True))
    doubt: Doubt | None = None

    @overload
    def predict(self, images: np.ndarray, *, tta: bool = ..., batch_size: int | None = ...) -> np.ndarray: ...

    @overload
    def predict(
        self, images: PathOrImage | Sequence[PathOrImage], *, tta: bool = ..., batch_size: int | None = ...
    ) -> Table: ...

    def predict(
        self,
        images: np.ndarray | PathOrImage | Sequence[PathOrImage],
        *,
        tta: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray | Table:
        """Class probabilities, calibrated if the run has a `doubt`; of files and PIL images the names of classes.

        Args:
            images: uint8 or float `(number, height, width, 3)`, 0-255, all of one size; fitted like the run's own. Or
                paths of image files or PIL images of any size; a single one needs no list.
            tta: use test-time augmentation.
            batch_size: images per batch; with `tta`, images per forward pass, where each image counts 1 + views
                times. Default: twice the training batch size, with `tta` four times; less on a CPU.

        Returns:
            Float32 `(number, classes)`. Of files and PIL images a row each: `image` (the path, or `image N`), `class`
            (the most probable one's name) and `probability` (0 to 1).

        Raises:
            DataError: there are no images, one cannot be read, a wrong shape (also one image without its batch axis)
                or dtype, or values outside 0-255.
            InputError: `tta` is true, but the run is without it; or `batch_size` is below 1.
        """
        if _are_pictures(images):
            pixels = read_pictures(images, self.image_size, self.config.data.resize)
            found = self.predict(np.stack(pixels), tta=tta, batch_size=batch_size)
            return _named(images, found, self.class_names)
        images, source = self._fitted(images, batch_size), self.result.data.source
        if tta:
            found = predict_views(self.model, images, self.config, source, self.console, batch_size)[1]
        elif self.doubt is None:
            found = predict_plain(self.model, images, self.config, self.console, batch_size)
        else:
            # The program of `answer`: another could round the last bit otherwise.
            found = predict_with_features(self.model, images, self.config, self.console, batch_size)[0]
        return found if self.doubt is None else self.doubt.calibrated(found, "tta" if tta else "plain")

    def answer(self, images: np.ndarray, *, tta: bool = False, batch_size: int | None = None) -> Answer:
        """Class probabilities, prediction sets, and how unfamiliar the images are.

        Args, errors: as `predict`. The unfamiliarity is that of the plain image.
        """
        if self.doubt is None:
            return Answer(self.predict(images, tta=tta, batch_size=batch_size))
        images, kind = self._fitted(images, batch_size), "tta" if tta else "plain"
        size = None if tta else batch_size  # with TTA, it counts the views of an image too
        plain, features = predict_with_features(self.model, images, self.config, self.console, size)
        found = self.predict(images, tta=True, batch_size=batch_size) if tta else self.doubt.calibrated(plain, kind)
        return Answer(found, self.doubt.sets(found, kind), self.doubt.unfamiliarity(features))

    def _fitted(self, images: Any, batch_size: int | None) -> np.ndarray:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: must be at least 1; got {batch_size}.")
        return fit_batch(checked_images("prediction", images), *self.image_size, self.config.data.resize)

    def __reduce__(self) -> tuple[Any, ...]:
        # A console holds locks, and the model's convolutions belong to this machine's device.
        return _restored, (self.folder, self.config, self.model, self.class_names, self.result, self.doubt)

    def show(self, images: Picture | Sequence[Picture], *, top: int = 3, tta: bool = False) -> Gallery:
        """Predicts images and shows them with their most probable classes, in a notebook.

        Args:
            images: paths of image files, PIL images, or uint8 arrays `(height, width, 3)`; a single one needs no list.
            top: number of classes.
            tta: use test-time augmentation.

        Raises:
            DataError: there are no images, or one cannot be read.
            InputError: `tta` is true, but the run's configuration turns it off.
        """
        pixels = read_pictures(images, self.image_size, self.config.data.resize)
        return prediction_gallery(images, pixels, self.predict(np.stack(pixels), tta=tta), self.class_names, top)

    def __repr__(self) -> str:
        network, names = self.config.model.backbone, ", ".join(self.class_names[:8])
        more = f" and {len(self.class_names) - 8} more" if len(self.class_names) > 8 else ""
        height, width = self.image_size
        return (
            f"SavedRun of {shortened(str(self.folder), 120)}: {shortened(network, 80)}, images of {width}x{height}\n"
            f"{len(self.class_names)} classes: {shortened(names, 160)}{more}\n"
            + "\n".join(repr(self.result).split("\n")[:2])
        )

    def _repr_html_(self) -> str:
        return fragment(paragraphs(repr(self)), self.result.steps_table().html())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that every image is fitted to before the network; see `data.fit`."""
        return self.result.image_size


def _are_pictures(images: Any) -> TypeGuard[PathOrImage | Sequence[PathOrImage]]:
    """Whether these are paths or PIL images, one of them or several."""
    first = images[0] if isinstance(images, list | tuple) and images else images
    return isinstance(first, str | Path | Image.Image)


def _named(images: Any, probabilities: np.ndarray, class_names: Sequence[str]) -> Table:
    """A row for each picture with its most probable class."""
    every = images if isinstance(images, list | tuple) else [images]
    best = probabilities.argmax(axis=1).tolist()
    return Table(
        {
            "image": str(one) if isinstance(one, str | Path) else f"image {number}",
            "class": class_names[label],
            "probability": float(probabilities[number, label]),
        }
        for number, (one, label) in enumerate(zip(every, best, strict=True))
    )


def load(run: str | Path) -> SavedRun:
    """Loads a finished run from its folder, to predict with; needs no data and executes no code from the folder.

    On a CPU the 1x1 convolutions of its model run as matrix products, as in training. A saved model has stock layers.

    >>> import numpy as np
    >>> from kbaseline import load
    >>> run = load("runs/quickstart")  # left by run_baseline("quickstart")
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype="uint8")
    >>> probabilities = run.predict(images)
    >>> print(probabilities.shape, run.class_names[:3])
    (2, 10) ('0', '1', '2')

    Args:
        run: the run folder.

    Returns:
        The run, with `model`, `class_names`, `config`, `result` and `predict(images, tta=False)`. `predict` takes
        uint8 or float images `(number, height, width, 3)`, 0-255, of any one size, and returns float32 probabilities
        `(number, classes)`, calibrated on the run's validation images; `answer` also gives prediction sets and says
        how unfamiliar an image is.

    Raises:
        InputError: the folder holds no finished run, or Keras or JAX is set to what it cannot use.
        ModelError: its model is missing or cannot be loaded.
    """
    check_settings()
    read = read_run(Path(run))
    path = read.folder / "model.keras"
    if not path.is_file():
        raise ModelError(f"run {str(run)!r}: has no model.keras; run it again.")
    _prepare(read.config)
    model = read_model(path, f"run {str(run)!r}: model.keras")
    adapt_to_device(model)
    return SavedRun(read.folder, read.config, model, read.class_names, read.result, doubt=Doubt.read(read.folder))


def _prepare(config: Config) -> None:
    set_compilation_cache(config.data.cache_folder if config.runtime.compilation_cache else None)
    start_jax()


def _restored(
    folder: Path,
    config: Config,
    model: keras.Model,
    class_names: tuple[str, ...],
    result: RunResult,
    doubt: Doubt | None,
) -> SavedRun:
    """A run from its pickle, made ready for this machine."""
    _prepare(config)
    adapt_to_device(model)
    return SavedRun(folder, config, model, class_names, result, doubt=doubt)


def read_data(run: RunRecord, console: Console | None = None) -> ImageData:
    """The data of a finished run, read again from its source with the same split.

    Args:
        run: the run.
        console: where progress is shown, for work of more than two seconds; None shows nothing.

    Raises:
        DataError: the data can no longer be read, or its classes changed.
        DownloadError, RunError: as `load_source`.
    """
    config = run.config
    copies = copies_of_run(run.folder, config.data, console)
    data = load_source(config.data, config.seed, console, image_size=run.result.image_size, copies=copies)
    if data.class_names != run.class_names:
        raise DataError(
            f"source {config.data.source!r}: its classes are {listed(data.class_names)}, but the run was trained on "
            f"{listed(run.class_names)}; restore them, or use kbaseline.load(run), which needs no data."
        )
    return data
