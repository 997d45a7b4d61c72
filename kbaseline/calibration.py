"""Calibration: how far probabilities lie from what comes true, and the temperature that brings them nearer.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599), sections 2 and 4.2.
Knows neither the model nor Keras: it takes arrays.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-7
"""Probabilities below it count as it, as in Keras, so that one confident mistake does not make the loss infinite."""

BINS = 15
"""Bins of equal width of the calibration error, as in the paper."""

_TEMPERATURES = (0.1, 10.0)
"""Between these a temperature is sought: predictions without a mistake have none, they only grow surer towards 0."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word, as they are and at a temperature.

    Attributes:
        error: expected calibration error of the probabilities as they are, 0 to 1.
        temperature: what logits are divided by before the softmax, 0.1 to 10; above 1, the network was too sure.
        error_at_temperature: the expected calibration error after that.
        loss_at_temperature: mean of -log of the probability of an image's own class after that, in nats.
        cross_fitted: whether the temperature was fitted on these same predictions. Then the two figures at
            temperature are taken crosswise: each half of the images at the temperature fitted on the other half.
    """

    error: float
    temperature: float
    error_at_temperature: float
    loss_at_temperature: float
    cross_fitted: bool


def calibrate(probabilities: Floats, labels: Labels, temperature: float | None = None) -> Calibration:
    """Measures calibration before and after temperature scaling.

    Args:
        probabilities: (images, classes), 0 to 1.
        labels: (images,).
        temperature: one fitted on other predictions of the same network; None fits it on these.
    """
    if temperature is None:
        scaled = np.empty_like(probabilities)
        half = np.random.default_rng(0).permutation(len(labels)) % 2 == 0
        for part in (half, ~half):
            other = fit_temperature(probabilities[~part], labels[~part])
            scaled[part] = at_temperature(probabilities[part], other)
    else:
        scaled = at_temperature(probabilities, temperature)
    return Calibration(
        error=expected_calibration_error(probabilities, labels),
        temperature=fit_temperature(probabilities, labels) if temperature is None else temperature,
        error_at_temperature=expected_calibration_error(scaled, labels),
        loss_at_temperature=float(losses(scaled, labels).mean()),
        cross_fitted=temperature is None,
    )


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = BINS) -> float:
    """Mean distance between how sure predictions are and how often they are right, 0 to 1 (equation 3).

    Images are put into `bins` of equal width by the probability of their most probable class; the distance of each
    bin counts by its images.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    # Bins hold their upper edge, as the paper's do.
    place = np.digitize(sure, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(place, right - sure)).sum() / len(labels))


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """The temperature with the least loss, between 0.1 and 10; 1 for no images at all."""
    if not len(labels):
        return 1.0
    # SciPy takes half a second to import; help and configuration do without.
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    own = logits[np.arange(len(labels)), labels].mean()

    def loss(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        # The greatest logit is 0 and stays it, so the sum of exponentials lies between 1 and the number of classes.
        return float(np.log(np.exp(beta * logits).sum(axis=1)).mean() - beta * own)

    # The loss is convex in 1 / temperature, so it has one valley and a bounded search finds it.
    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities of the same logits divided by `temperature`, float64 (images, classes)."""
    powers = np.exp(_logits(probabilities) / temperature)
    scaled: Floats = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def losses(probabilities: Floats, labels: Labels) -> Floats:
    """-log of the probability of each image's own class, float64 (images,), in nats."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(own, SMALLEST, 1.0)), dtype=np.float64)


def _logits(probabilities: Floats) -> Floats:
    """Logits of probabilities, up to a constant that makes the greatest of each row 0."""
    # What float32 rounded to 0 counts as its smallest number.
    logs = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    logits: Floats = logs - logs.max(axis=1, keepdims=True)
    return logits
