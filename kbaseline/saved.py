"""A finished run to predict with: its network, its class names, and test-time augmentation as it was configured."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kbaseline.backbones import read_model
from kbaseline.config import Config
from kbaseline.errors import ModelError
from kbaseline.finished import read_run
from kbaseline.inference import predict_plain, predict_views


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A finished run and its network.

    Attributes:
        folder: the run folder.
        config: what it ran with.
        model: from uint8 images of any size to float32 logits.
        class_names: the name of each label.
        result: what `result.json` holds.
        console: where progress goes.
    """

    folder: Path
    config: Config
    model: keras.Model
    class_names: tuple[str, ...]
    result: dict[str, Any]
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _views: dict[Any, keras.Model] = field(default_factory=dict, init=False, repr=False)

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
        flip_safe = self.result["data"]["flip_safe"]
        return predict_views(self.model, images, self.config, flip_safe, self.console, batch_size, self._views)[1]

    def forget(self) -> None:
        """Drops what was compiled: one program for each size of images, which adds up where there are many sizes."""
        self._views.clear()
        self.model.make_predict_function(force=True)


def load(run: str | Path) -> SavedRun:
    """Loads a finished run from its folder.

    Raises:
        InputError: it is no finished run's folder.
        ModelError: its model is not there or cannot be loaded.
    """
    read = read_run(Path(run))
    path = read.folder / "model.keras"
    if not path.is_file():
        raise ModelError(f"run {str(run)!r}: holds no model.keras; run it again.")
    model = read_model(path, f"run {str(run)!r}: model.keras")
    return SavedRun(read.folder, read.config, model, read.class_names, read.result)
