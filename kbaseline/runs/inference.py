"""Predicts image arrays with a classifier, plain or with test-time augmentation, by a run's configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.format import clock, html_table, interval, percent
from kbaseline.console.training import PredictBar
from kbaseline.data.batches import ImageBatches
from kbaseline.data.image_data import checked_images
from kbaseline.devices.predict import predict_batches, prediction_batch_size
from kbaseline.devices.programs import kept, values
from kbaseline.devices.xla import explain_oom
from kbaseline.errors import InputError
from kbaseline.metrics import Evaluation, compare_paired, score_rows
from kbaseline.models.classifier import with_features
from kbaseline.render.notebook import Gallery, Table, fragment, paragraphs
from kbaseline.tta import tta_predict

if TYPE_CHECKING:
    from kbaseline.render.plots import Plot


@dataclass(frozen=True, eq=False)
class TTAResult:
    """Plain and test-time-augmented predictions of the same images, each scored.

    >>> from kbaseline.metrics import evaluate_predictions
    >>> from kbaseline.runs.inference import TTAResult
    >>> plain, tta = (evaluate_predictions([[p, 1 - p], [0.3, 0.7]], [0, 1], ("cat", "dog")) for p in (0.4, 0.6))
    >>> TTAResult(plain, tta, seconds=0.5)
    TTAResult of 2 images: accuracy 100.00 % with TTA (95 % interval 34.24 – 100.00 %), 50.00 % plain
    by TTA: 1 corrected, 0 spoilt; 00:00

    Attributes:
        plain: evaluation of the plain predictions.
        tta: evaluation of the augmented predictions.
        seconds: duration of the augmented prediction.
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
        """Whether the augmented predictions are at least as accurate as the plain ones."""
        return self.tta.accuracy >= self.plain.accuracy

    def plot_confusion(self) -> "Plot":
        """Plots the confusion matrix of the augmented predictions; a Matplotlib figure."""
        return self.tta.plot_confusion()

    def worst(self, n: int = 9) -> Gallery:
        """The `n` images with the highest loss in the augmented predictions; see `Evaluation.worst`."""
        return self.tta.worst(n)

    def per_class(self) -> Table:
        """Precision, recall and F1 of each class, of the augmented predictions."""
        return self.tta.per_class

    def __repr__(self) -> str:
        paired = compare_paired(self.plain, self.tta)
        return (
            f"TTAResult of {len(self.tta.labels):,} images: accuracy {percent(self.tta.accuracy)} with TTA (95 % "
            f"interval {interval(self.tta.interval)}), {percent(self.plain.accuracy)} plain\n"
            f"by TTA: {paired.only_second:,} corrected, {paired.only_first:,} spoilt; {clock(self.seconds)}"
        )

    def _repr_html_(self) -> str:
        kinds = {"plain": self.plain, "tta": self.tta}
        scores = html_table(("score", "plain", "with TTA"), ((name, *cells) for name, cells in score_rows(kinds)))
        return fragment(paragraphs(repr(self)), scores)


def predict_plain(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    console: Console,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> np.ndarray:
    """Class probabilities.

    Args:
        model: from uint8 images to logits.
        images: uint8 or float `(number, height, width, 3)`, 0-255, all of one size.
        config: twice its training batch size is the default batch size, less on a CPU; see `prediction_batch_size`.
        console: where progress is shown.
        batch_size: images per batch.
        callbacks: further Keras callbacks.

    Returns:
        Float32 `(number, classes)`.

    Raises:
        DataError: there are no images, or values outside 0-255.
        RunError: the accelerator runs out of memory.
    """
    return np.asarray(keras.ops.softmax(_outputs(model, images, config, console, batch_size, callbacks)))


def predict_with_features(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    console: Console,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities and the averages of the backbone's feature map, in one pass.

    Args, errors: as `predict_plain`.

    Returns:
        Float32 `(number, classes)` and float32 `(number, channels)`.
    """
    both = kept(model, "features", None, lambda: with_features(model))
    values(model, ())  # within a fit, brings back what the two share
    outputs, classes = _outputs(both, images, config, console, batch_size, callbacks), model.output_shape[-1]
    return np.asarray(keras.ops.softmax(outputs[:, :classes])), outputs[:, classes:]


def _outputs(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    console: Console,
    batch_size: int | None,
    callbacks: Sequence[keras.callbacks.Callback],
) -> np.ndarray:
    images = checked_images("prediction", images)
    size = min(prediction_batch_size(2 * config.data.batch, config.data.size**2, batch_size), len(images))
    batches = ImageBatches(images, batch_size=size, pad=True)
    with PredictBar("predict", len(batches), console) as bar, explain_oom("prediction", config.data.batch):
        return predict_batches(model, batches, [bar, *callbacks])


def predict_views(
    model: keras.Model,
    images: np.ndarray,
    config: Config,
    source: str,
    console: Console,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities, plain and with test-time augmentation as configured by `config.tta`.

    Args:
        model, images, console: as for `predict_plain`.
        config: its `tta` section, seed and training batch size are used.
        source: where the images came from, for `tta.flip: auto`.
        batch_size: images per forward pass, where each image counts 1 + views times; default: four times the
            training batch size, less on a CPU.
        callbacks: further Keras callbacks.

    Returns:
        Two float32 `(number, classes)`.

    Raises:
        DataError, RunError: as `predict_plain`.
        InputError: the run is without test-time augmentation.
    """
    settings = config.tta
    if settings is None:
        raise InputError(
            "tta: the run turns test-time augmentation off (tta: null), or left it out as worse (keep: best)."
        )
    images = checked_images("prediction", images)
    batch_size = prediction_batch_size(4 * config.data.batch, config.data.size**2, batch_size)
    batches = math.ceil(len(images) / max(1, batch_size // (1 + settings.views)))
    with PredictBar("tta", batches, console) as bar, explain_oom("tta", config.data.batch):
        plain, mean = tta_predict(
            model,
            images,
            settings.views,
            None,
            settings.scale,
            settings.mirrors(source),
            from_logits=True,
            batch_size=batch_size,
            seed=config.seed,
            callbacks=[bar, *callbacks],
        )
    return plain, settings.beta * plain + (1 - settings.beta) * mean
