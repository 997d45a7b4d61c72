"""Calibration: expected calibration error and temperature scaling.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599), sections 2 and 4.2.
Works on NumPy arrays, without Keras.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-7
"""Probabilities are clipped to at least this, as in Keras, so that one confident mistake gives no infinite loss."""

BINS = 15
"""Equal-width bins of the calibration error, as in the paper."""

_TEMPERATURES = (0.1, 10.0)
"""Search range. Without it, predictions without a mistake would give temperature 0: their loss falls all the way."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Calibration of predicted probabilities, before and after temperature scaling.

    Attributes:
        error: expected calibration error (ECE) of the probabilities as predicted, 0 to 1.
        temperature: divides the logits before the softmax, 0.1 to 10; above 1, the network was overconfident.
        error_at_temperature: ECE after temperature scaling.
        loss_at_temperature: mean cross-entropy after temperature scaling, in nats.
        cross_fitted: whether the temperature was fitted on these same predictions. If so, the two scores at
            temperature are cross-fitted: each half of the images is scaled by the temperature of the other half.
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
        temperature: fitted on other predictions of the same network; None fits it on these.
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
    """Expected calibration error: mean distance between confidence and accuracy, 0 to 1 (equation 3).

    Images are grouped into `bins` equal-width bins by the probability of their most probable class. Each bin is
    weighted by its number of images.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    # Bins include their upper edge, as in the paper.
    place = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(place, right - confidence)).sum() / len(labels))


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """The temperature with the lowest loss, between 0.1 and 10; 1 if there are no images."""
    if not len(labels):
        return 1.0
    # SciPy takes half a second to import; help and configuration do not need it.
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    own = logits[np.arange(len(labels)), labels].mean()

    def loss(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        # The largest logit is always 0, so the sum of exponentials lies between 1 and the number of classes.
        return float(np.log(np.exp(beta * logits).sum(axis=1)).mean() - beta * own)

    # The loss is convex in 1 / temperature, so a bounded search finds the only minimum.
    minimum = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(minimum.x))


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities after dividing the logits by `temperature`, float64 (images, classes)."""
    powers = np.exp(_logits(probabilities) / temperature)
    scaled: Floats = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def losses(probabilities: Floats, labels: Labels) -> Floats:
    """Cross-entropy of each image, float64 (images,), in nats."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(own, SMALLEST, 1.0)), dtype=np.float64)


def _logits(probabilities: Floats) -> Floats:
    """Logits of probabilities, shifted so that the largest of each row is 0."""
    # Probabilities that float32 rounded to 0 are replaced by its smallest number.
    logs = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    logits: Floats = logs - logs.max(axis=1, keepdims=True)
    return logits
