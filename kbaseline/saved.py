"""A finished run to predict with: its network, its class names, and test-time augmentation as it was configured."""

import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kbaseline.config import Config
from kbaseline.data.batches import ImageBatches
from kbaseline.data.image_data import checked_images
from kbaseline.errors import InputError, ModelError
from kbaseline.finished import read_run
from kbaseline.progress import PredictBar
from kbaseline.tta import tta_predict


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
        images = checked_images("prediction", images)
        if tta:
            return self._with_views(images, batch_size or 4 * self.config.data.batch_size)
        size = min(batch_size or 2 * self.config.data.batch_size, len(images))
        batches = ImageBatches(images, batch_size=size, pad=True)
        with PredictBar("predict", len(batches), self.console) as bar:
            logits = self.model.predict(batches, verbose=0, callbacks=[bar])[: len(images)]
        return np.asarray(keras.ops.softmax(logits))

    def _with_views(self, images: np.ndarray, looks: int) -> np.ndarray:
        settings = self.config.tta
        if settings is None:
            raise InputError(f"run {str(self.folder)!r}: its configuration leaves test-time augmentation out.")
        flip = self.result["data"]["flip_safe"] if settings.flip == "auto" else settings.flip
        batches = math.ceil(len(images) / max(1, looks // (1 + settings.views)))
        with PredictBar("tta", batches, self.console) as bar:
            found = tta_predict(
                self.model,
                images,
                settings.views,
                settings.beta,
                settings.scale,
                flip,
                batch_size=looks,
                seed=self.config.seed,
                callbacks=[bar],
            )
        return np.asarray(found)


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
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"run {str(run)!r}: model.keras cannot be loaded ({reason}); run it again.") from None
    return SavedRun(read.folder, read.config, model, read.class_names, read.result)
