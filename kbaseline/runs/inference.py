"""Predicts arrays with a classifier, plain or with test-time augmentation, as a run's configuration says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.training import PredictBar
from kbaseline.data.batches import ImageBatches
from kbaseline.data.image_data import checked_images
from kbaseline.devices.parallel import predict_batches
from kbaseline.devices.xla import explain_oom
from kbaseline.errors import InputError
from kbaseline.metrics import Evaluation
from kbaseline.tta import tta_predict


@dataclass(frozen=True, eq=False)
class TTAResult:
    """Plain and test-time-augmented predictions of the same images, each scored.

    Attributes:
        plain: the evaluation of the plain predictions.
        tta: that of the augmented ones.
        seconds: what the augmented prediction took.
    """

    plain: Evaluation
    tta: Evaluation
    seconds: float

    @property
    def probabilities(self) -> np.ndarray:
        """Float32 `(number, classes)`, augmented."""
        return self.tta.probabilities.astype(np.float32)

    @property
    def plain_probabilities(self) -> np.ndarray:
        """Float32 `(number, classes)`."""
        return self.plain.probabilities.astype(np.float32)

    @property
    def helped(self) -> bool:
        """Whether augmentation is at least as accurate."""
        return self.tta.accuracy >= self.plain.accuracy


def predict_plain(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    console: Console,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> np.ndarray:
    """Probabilities of classes.

    Args:
        model: uint8 images in, logits out.
        images: uint8 or float `(number, height, width, 3)`, 0-255, all of one size.
        config: gives the default batch size, twice that of training.
        console: where progress goes.
        batch_size: images at once.
        callbacks: further Keras callbacks.

    Returns:
        Float32 `(number, classes)`.

    Raises:
        DataError: no images, or values outside 0-255.
        RunError: the accelerator's memory does not suffice.
    """
    images = checked_images("prediction", images)
    size = min(batch_size or 2 * config.data.batch, len(images))
    batches = ImageBatches(images, batch_size=size, pad=True)
    with PredictBar("predict", len(batches), console) as bar, explain_oom("prediction", config.data.batch):
        logits = predict_batches(model, batches, [bar, *callbacks])
    return np.asarray(keras.ops.softmax(logits))


def predict_views(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    source: str,
    console: Console,
    looks: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of classes, plain and with test-time augmentation as `config.tta` says.

    Args:
        model, images, console: as for `predict_plain`.
        config: `tta`, the seed, and the default of `looks`, four times the batch size of training.
        source: where the images came from, for `tta.flip: auto`.
        looks: looks at images (1 + views for each) at once.
        callbacks: further Keras callbacks.

    Returns:
        Two float32 `(number, classes)`.

    Raises:
        DataError, RunError: as `predict_plain`.
        InputError: the configuration leaves test-time augmentation out.
    """
    settings = config.tta
    if settings is None:
        raise InputError("tta: the configuration leaves test-time augmentation out (tta: null); give it a section.")
    images = checked_images("prediction", images)
    looks = looks or 4 * config.data.batch
    batches = math.ceil(len(images) / max(1, looks // (1 + settings.views)))
    with PredictBar("tta", batches, console) as bar, explain_oom("tta", config.data.batch):
        plain, mean = tta_predict(
            model,
            images,
            settings.views,
            None,
            settings.scale,
            settings.mirrors(source),
            batch_size=looks,
            seed=config.seed,
            callbacks=[bar, *callbacks],
        )
    return plain, settings.beta * plain + (1 - settings.beta) * mean
