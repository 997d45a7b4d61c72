"""A finished run to predict with: its network, its class names, test-time augmentation as configured; and its data."""

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.data import ImageData
from kbaseline.data.image_data import load_source
from kbaseline.devices.xla import prefer_eigen_convolutions, set_compilation_cache
from kbaseline.errors import DataError, ModelError, listed
from kbaseline.models.backbones import read_model
from kbaseline.models.cpu import adapt_to_cpu
from kbaseline.runs.inference import predict_plain, predict_views
from kbaseline.runs.record import RunRecord, RunResult, read_run


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A finished run and its network.

    Attributes:
        folder: the run folder.
        config: what it ran with.
        model: from uint8 images of any size to float32 logits.
        class_names: the name of each label.
        result: what the run found.
        console: where progress goes.
    """

    folder: Path
    config: Config
    model: keras.Model
    class_names: tuple[str, ...]
    result: RunResult
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def predict(self, images: np.ndarray, *, tta: bool = False, batch_size: int | None = None) -> np.ndarray:
        """Probabilities of classes.

        Args:
            images: uint8 or float `(number, height, width, 3)`, 0-255, all of one size.
            tta: with test-time augmentation.
            batch_size: images, or with `tta` looks at images, at once; default: twice that of training, or four times.

        Returns:
            Float32 `(number, classes)`.

        Raises:
            DataError: no images, or values outside 0-255.
            InputError: `tta`, and the run's configuration leaves it out.
        """
        if not tta:
            return predict_plain(self.model, images, self.config, self.console, batch_size)
        return predict_views(self.model, images, self.config, self.result.data.source, self.console, batch_size)[1]

    def forget(self) -> None:
        """Drops the compiled programs of plain prediction: one for each size of images, which adds up."""
        self.model.make_predict_function(force=True)


def load(run: str | Path) -> SavedRun:
    """Loads a finished run from its folder, to predict with; runs no code from it and needs none of its data.

    On a CPU the 1x1 convolutions of its model are matrix products, as in training; saved, they are stock layers.

    >>> import numpy as np
    >>> from kbaseline import load
    >>> run = load("runs/quickstart")  # left by run_baseline("quickstart")
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype="uint8")
    >>> probabilities = run.predict(images)
    >>> print(probabilities.shape, run.class_names[:3])
    (2, 10) ('0', '1', '2')

    Args:
        run: the run's folder.

    Returns:
        The run: `model`, `class_names`, `config`, its `result`, and `predict(images, tta=False)`, from
        uint8 or float images `(number, height, width, 3)`, 0-255, all of one size but of any, to float32 probabilities
        `(number, classes)`.

    Raises:
        InputError: it is no finished run's folder.
        ModelError: its model is not there or cannot be loaded.
    """
    read = read_run(Path(run))
    path = read.folder / "model.keras"
    if not path.is_file():
        raise ModelError(f"run {str(run)!r}: holds no model.keras; run it again.")
    set_compilation_cache(read.config.data.cache_folder if read.config.runtime.compilation_cache else None)
    prefer_eigen_convolutions()
    model = read_model(path, f"run {str(run)!r}: model.keras")
    adapt_to_cpu(model)
    return SavedRun(read.folder, read.config, model, read.class_names, read.result)


def read_data(run: RunRecord, console: Console | None = None) -> ImageData:
    """The data of a finished run, read again from its source and split as it was.

    Args:
        run: the run.
        console: where work of more than two seconds shows its progress; None shows nothing.

    Raises:
        DataError: it cannot be read any more, or has other classes now.
        DownloadError, RunError: as `load_source`.
    """
    config = run.config
    data = load_source(config.data, config.seed, console)
    if data.class_names != run.class_names:
        raise DataError(
            f"source {config.data.source!r}: has the classes {listed(data.class_names)} now, and the run knows "
            f"{listed(run.class_names)}; put them back, or use kbaseline.load(run), which needs no data."
        )
    return data
