"""A linear probe: logistic regression on the features of a frozen network, the floor that training must beat.

The strength of its regularisation is chosen inside the images it is fitted to, so that its accuracy on others is
honest. scikit-learn does the fitting.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbaseline.data.splits import fold_indices

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's `C` on standardised features, from the strongest regularisation to the weakest."""

TEMPERATURE = 4.0
"""Divides the probe's logits where training starts from them. A probe is all but certain of each image that it was
fitted to, and with so small a loss there is little to learn from them. Measured with 1, 4 and a head of zeros
(docs/recipe.md)."""

_PARTS = 5
"""One of so many parts of the images is held out, to choose the strength on."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted linear classifier, `features @ weights + bias`.

    Attributes:
        weights: float32 `(features, classes)`.
        bias: float32 `(classes,)`; minus infinity for a class without training images.
        strength: the `C` that was chosen.
    """

    weights: np.ndarray
    bias: np.ndarray
    strength: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float32 `(images, classes)`."""
        found: np.ndarray = np.asarray(features, np.float32) @ self.weights + self.bias
        return found

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float64 `(images, classes)`, rows summing to 1."""
        logits = self.logits(features).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return found


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    seed: int = 42,
    groups: np.ndarray | None = None,
    strength: float | None = None,
    class_weights: np.ndarray | None = None,
) -> Probe:
    """Fits a probe.

    Args:
        features: float `(images, features)`.
        labels: int `(images,)`, from 0, of at least two classes.
        classes: number of classes, some of which may have no image.
        seed: fixes the choice of the strength.
        groups: int `(images,)`; images of one group are not separated when the strength is chosen.
        strength: scikit-learn's `C`; None to choose one of `STRENGTHS` on a fifth of the images.
        class_weights: float `(classes,)`, the weight in the loss for images of each label; None for no weights.
    """
    features = np.asarray(features, np.float32)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that never changes, as behind a ReLU, says nothing.
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0).astype(np.float32)
    standard = (features - mean) * scale
    weights = (np.ones(classes, np.float32) if class_weights is None else class_weights)[labels]
    chosen = _choose(standard, labels, weights, seed, groups) if strength is None else strength
    slopes, offsets = _fit(_logistic_regression(chosen), standard, labels, weights, classes)
    slopes = slopes * scale[:, None]
    return Probe(slopes, (offsets - mean @ slopes).astype(np.float32), chosen)


def _choose(
    standard: np.ndarray, labels: np.ndarray, weights: np.ndarray, seed: int, groups: np.ndarray | None
) -> float:
    """The strength with the least cross-entropy on a fifth of the images, the stronger of equals."""
    parts = fold_indices(labels, _PARTS, seed, groups)
    if not parts:
        return STRENGTHS[len(STRENGTHS) // 2]
    kept, held = parts[0]
    held = held[np.isin(labels[held], labels[kept])]
    if len(np.unique(labels[kept])) < 2 or not len(held):
        return STRENGTHS[len(STRENGTHS) // 2]
    classes = int(labels.max()) + 1
    model = _logistic_regression()
    losses = []
    for strength in STRENGTHS:
        # From the last solution on: a path costs little more than its last point.
        model.set_params(C=strength)
        probe = Probe(*_fit(model, standard[kept], labels[kept], weights[kept], classes), strength)
        right = probe.probabilities(standard[held])[np.arange(len(held)), labels[held]]
        losses.append(np.average(-np.log(right.clip(1e-12)), weights=weights[held]))
        if len(losses) > 1 and losses[-1] > losses[-2]:
            break  # The loss is convex in the logarithm of the strength, but for noise.
    return STRENGTHS[int(np.argmin(losses))]


def _logistic_regression(strength: float = 1.0) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=200, tol=1e-3, warm_start=True)


def _fit(
    model: Any, standard: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias by L-BFGS, float32 `(features, classes)` and `(classes,)`."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Enough steps for an accuracy; the last digits of the weights are not needed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(standard, labels, weights)
    found = np.zeros((standard.shape[1], classes), np.float32)
    bias = np.full(classes, -np.inf, np.float32)
    if len(model.classes_) == 2:
        # scikit-learn keeps the second class's logit alone.
        slopes, offsets = np.vstack([-model.coef_, model.coef_]) / 2, np.append(-model.intercept_, model.intercept_) / 2
    else:
        slopes, offsets = model.coef_, model.intercept_
    found[:, model.classes_], bias[model.classes_] = slopes.T, offsets
    return found, bias
