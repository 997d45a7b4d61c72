"""The floor: what a linear probe reaches on all images, cross-validated, and how that grows with their number."""

from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.data.splits import fold_indices, stratified_sample
from kbaseline.metrics import accuracy_interval
from kbaseline.models.probe import fit_probe

FOLDS = 5
"""Parts of the cross-validation."""

FRACTIONS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the training images at which the learning curve is measured."""

_REPEATS = 3


@dataclass(frozen=True)
class Floor:
    """Cross-validated accuracy of a linear probe.

    Attributes:
        accuracy: share of the images that a probe which has not seen them gets right, 0 to 1.
        interval: its 95 % interval.
        folds: parts of the cross-validation.
        majority: share of the most frequent class, 0 to 1.
        strength: of the probes' regularisation; see `Probe`.
        probabilities: float64 `(images, classes)`, of the probes that have not seen the image.
    """

    accuracy: float
    interval: tuple[float, float]
    folds: int
    majority: float
    strength: float | None
    probabilities: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class CurvePoint:
    """One point of the learning curve.

    Attributes:
        images: training images.
        repeats: accuracy on each part held out, 0 to 1; the parts are the same at every point.
    """

    images: int
    repeats: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean over the parts."""
        return float(np.mean(self.repeats))

    @property
    def spread(self) -> float:
        """Standard deviation over the parts."""
        return float(np.std(self.repeats))

    def gain(self, before: "CurvePoint") -> tuple[float, float]:
        """How much more accurate it is than a point with fewer images, part by part: mean and standard error."""
        gains = np.subtract(self.repeats, before.repeats)
        return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    groups: np.ndarray,
    seed: int = 42,
    console: Console | None = None,
) -> Floor:
    """Measures the floor on all images.

    The strength of the probe is chosen on the first fold's training images and kept: it is one of five, so that what it
    saw of the other folds is worth less than five times the time.

    Args:
        features: float `(images, any)`.
        labels: int `(images,)`, from 0.
        classes: number of classes.
        groups: int `(images,)`; copies of one picture are never on both sides.
        seed: fixes the folds.
        console: where to show progress; None shows nothing.
    """
    probabilities = np.full((len(labels), classes), 1 / classes)
    strength: float | None = None
    parts = fold_indices(labels, FOLDS, seed, groups)
    with Bar(console, "Cross-validating a probe", len(labels)) as bar:
        for kept, held in parts:
            if len(np.unique(labels[kept])) > 1:
                probe = fit_probe(
                    features[kept], labels[kept], classes, seed=seed, groups=groups[kept], strength=strength
                )
                strength = probe.strength
                probabilities[held] = probe.probabilities(features[held])
            bar.advance(len(held))
    right = int((probabilities.argmax(axis=1) == labels).sum())
    return Floor(
        right / len(labels),
        accuracy_interval(right, len(labels)),
        len(parts),
        float(np.bincount(labels).max() / len(labels)),
        strength,
        probabilities,
    )


def learning_curve(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    groups: np.ndarray,
    seed: int = 42,
    console: Console | None = None,
    strength: float | None = None,
) -> tuple[CurvePoint, ...]:
    """Accuracy of the probe with a part of the training images, on a fifth held out; see `cross_validate`.

    With fewer images the same `strength` regularises more, for the loss is a sum over images.
    """
    parts = fold_indices(labels, FOLDS, seed, groups)[:_REPEATS]
    points = []
    with Bar(console, "Measuring the learning curve", len(FRACTIONS) * len(parts), "probes") as bar:
        for fraction in FRACTIONS:
            sizes, scores = [], []
            for repeat, (kept, held) in enumerate(parts):
                size = round(fraction * len(kept))
                part = kept[stratified_sample(labels[kept], size, seed + repeat)] if size < len(kept) else kept
                if len(np.unique(labels[part])) > 1:
                    probe = fit_probe(
                        features[part], labels[part], classes, seed=seed, groups=groups[part], strength=strength
                    )
                    sizes.append(len(part))
                    scores.append(float((probe.logits(features[held]).argmax(axis=1) == labels[held]).mean()))
                bar.advance()
            if len(scores) == len(parts) > 1:
                points.append(CurvePoint(round(np.mean(sizes)), tuple(scores)))
    return tuple(points)
