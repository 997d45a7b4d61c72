"""What a classifier should doubt: calibrated probabilities, prediction sets, and images unlike its training images.

Fitted once, on images that were not trained on, and kept with the run. Works on NumPy arrays, without Keras.

Prediction sets: split conformal prediction with the score of Sadinle et al. 2019, "Least Ambiguous Set-Valued
Classifiers With Bounded Error Levels" (https://arxiv.org/abs/1609.00451), and the most probable class always in the
set. Unfamiliarity: the Mahalanobis distance of Lee et al. 2018, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples" (https://arxiv.org/abs/1807.03888), its covariance that of probabilistic PCA. Features
have unit length: an image that excites the network little would otherwise lie near the middle of everything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kbaseline.calibration import at_temperature
from kbaseline.errors import InputError
from kbaseline.storage.npz import DamagedError, read_arrays

FILE = "doubt.npz"
"""Name of the file in a run folder."""

LEVELS = (0.9, 0.95)
"""Share of images whose class the prediction sets hold; `predict` and `serve` show the first."""

FALSE_ALARMS = (0.05, 0.01)
"""Shares of images of the known classes that may be called unfamiliar; `predict` and `serve` use the first."""

IMAGES = 2000
"""Most training images, and most validation images, whose features are computed."""

_DIRECTIONS = 16
"""Directions in which the features' variance is measured; in all others it is taken to be the same."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Doubt:
    """When to doubt a classifier's answer.

    Attributes:
        temperatures: by kind of prediction (`plain`, `tta`), what the logits are divided by before the softmax.
        thresholds: by kind, then by level: a class is in the set of that level if its calibrated probability is at
            least this, and so is the most probable class. 1: that class alone. 0: every class, for want of images.
        limits: share of images of the known classes -> the unfamiliarity that at most so many exceed; 1 for the first.
        mean, scale: float32 `(features,)`; features of unit length become `x = (features - mean) * scale`.
        directions: float32 `(features, directions)`, whose squared coordinates are taken off the squared length.
        slopes, offsets: float32 `(features, classes)` and `(classes,)`, the term that depends on the class.

    A squared distance is `|x|^2 - |x @ directions|^2 + min(x @ slopes + offsets)`, in units of the largest distance
    that is still familiar.
    """

    temperatures: Mapping[str, float]
    thresholds: Mapping[str, Mapping[float, float]]
    limits: Mapping[float, float]
    mean: Floats
    scale: Floats
    directions: Floats
    slopes: Floats
    offsets: Floats

    def calibrated(self, probabilities: np.ndarray, kind: str) -> np.ndarray:
        """Probabilities at the temperature of their kind of prediction, float32 `(images, classes)`."""
        return at_temperature(probabilities.astype(np.float64), self.temperatures[self._known(kind)]).astype(np.float32)

    def sets(self, probabilities: np.ndarray, kind: str, level: float = LEVELS[0]) -> NDArray[np.bool_]:
        """Which classes are in each image's set.

        Args:
            probabilities: calibrated, `(images, classes)`.
            kind: `plain` or `tta`.
            level: one of `LEVELS`.

        Returns:
            bool `(images, classes)`, at least one class in each row.
        """
        # The file holds float64, the probabilities are float32: the class that set the threshold must meet it.
        inside = probabilities >= np.float32(self.thresholds[self._known(kind)][level])
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
        return np.asarray(inside, bool)

    def unfamiliarity(self, features: np.ndarray) -> NDArray[np.float32]:
        """Distance from the nearest class of training images, float32 `(images,)`; above 1: unlike all of them.

        Args:
            features: float32 `(images, features)`, of the network's average pooling.
        """
        squared = _squared_distances(features, self.mean, self.scale, self.directions, self.slopes, self.offsets)
        return np.sqrt(np.maximum(squared, 0)).astype(np.float32)

    def summary(self, kind: str = "plain") -> dict[str, Any]:
        """Its numbers for one kind of prediction as plain Python: temperature, thresholds of sets and unfamiliarity."""
        kind = self._known(kind)
        return {
            "temperature": self.temperatures[kind],
            "set_thresholds": {f"{level:g}": threshold for level, threshold in self.thresholds[kind].items()},
            "unfamiliar_above": {f"{share:.2g}": limit for share, limit in self.limits.items()},
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays of the file."""
        kinds = list(self.temperatures)
        return {
            "kinds": np.array(kinds),
            "temperatures": np.array([self.temperatures[kind] for kind in kinds]),
            "levels": np.array(LEVELS),
            "thresholds": np.array([[self.thresholds[kind][level] for level in LEVELS] for kind in kinds]),
            "limits": np.array(list(self.limits.items())),
            **{name: getattr(self, name) for name in ("mean", "scale", "directions", "slopes", "offsets")},
        }

    def _known(self, kind: str) -> str:
        """A kind that was fitted: a run whose configuration got a `tta` section later has only `plain`."""
        return kind if kind in self.temperatures else "plain"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The doubt of a run, or None for a run without the file, as older versions left it.

        Raises:
            InputError: the file is damaged.
        """
        if not (folder / FILE).is_file():
            return None
        try:
            found = read_arrays(folder / FILE)
            kinds = [str(kind) for kind in found["kinds"]]
            levels = [float(level) for level in found["levels"]]
            rows = found["thresholds"].astype(float).tolist()
            return cls(
                dict(zip(kinds, found["temperatures"].astype(float).tolist(), strict=True)),
                {kind: dict(zip(levels, row, strict=True)) for kind, row in zip(kinds, rows, strict=True)},
                dict(found["limits"].astype(float).tolist()),
                *(found[name].astype(np.float32) for name in ("mean", "scale", "directions", "slopes", "offsets")),
            )
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"run {str(folder)!r}: {FILE} is damaged ({error}); run it again, or remove the file to predict "
                "without it."
            ) from None


def fit_doubt(
    temperatures: Mapping[str, float],
    probabilities: Mapping[str, np.ndarray],
    labels: np.ndarray,
    familiar: np.ndarray,
    familiar_labels: np.ndarray,
    held_out: np.ndarray,
) -> Doubt:
    """Fits all three.

    Args:
        temperatures: by kind of prediction, fitted on the images of `labels`.
        probabilities: by kind, as predicted, `(images, classes)`.
        labels: int `(images,)`, of images that were not trained on.
        familiar: features of training images, `(images, features)`.
        familiar_labels: int, their labels.
        held_out: features of images that were not trained on.
    """
    # In float32, as they are shown: the class that sets a threshold must meet it.
    scaled = {
        kind: at_temperature(probabilities[kind].astype(np.float64), temperature).astype(np.float32)
        for kind, temperature in temperatures.items()
    }
    thresholds = {kind: {level: set_threshold(p, labels, level) for level in LEVELS} for kind, p in scaled.items()}
    terms = _gaussian(_unit(familiar), familiar_labels)
    distances = np.sort(_squared_distances(held_out, *terms))
    limits = {}
    for share in FALSE_ALARMS:
        # The largest of them, where they are too few for the share: then the share is another, and that is said.
        count = min(len(distances), math.ceil((len(distances) + 1) * (1 - share)))
        # That image itself is familiar, also where the features are rounded otherwise.
        limits[1 - count / (len(distances) + 1)] = max(float(distances[count - 1]) * (1 + 1e-4), 1e-6)
    limit = next(iter(limits.values()))
    mean, scale, directions, slopes, offsets = terms
    return Doubt(
        dict(temperatures),
        thresholds,
        {share: math.sqrt(one / limit) for share, one in limits.items()},
        mean.astype(np.float32),
        (scale / math.sqrt(limit)).astype(np.float32),
        directions.astype(np.float32),
        (slopes / math.sqrt(limit)).astype(np.float32),
        (offsets / limit).astype(np.float32),
    )


def set_threshold(probabilities: np.ndarray, labels: np.ndarray, level: float) -> float:
    """The probability from which a class joins the set, so that sets hold the class of `level` of all images.

    The promise holds on average over images like these, of any number (split conformal prediction).

    Args:
        probabilities: `(images, classes)`, of images that were not trained on.
        labels: int `(images,)`.
        level: in (0, 1).
    """
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # The most probable class is always inside.
    needed = np.sort(np.where(probabilities.argmax(axis=1) == labels, 1.0, own))[::-1]
    count = math.ceil((len(needed) + 1) * level)
    return float(needed[count - 1]) if count <= len(needed) else 0.0


_Terms = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _gaussian(features: NDArray[np.float64], labels: np.ndarray) -> _Terms:
    """Gaussians of one covariance around the mean of each class, as the terms of a squared distance.

    Along the leading directions the covariance has the variance of the images; in all others, their mean variance.
    """
    mean = features.mean(axis=0)
    classes = [features[labels == label].mean(axis=0) for label in np.unique(labels)]
    around = features - np.stack(classes)[np.unique(labels, return_inverse=True)[1]]
    # Few images show variance in few directions, and the mean variance of all others must not be 0.
    number = max(1, min(_DIRECTIONS, *(side // 2 for side in around.shape)))
    # scikit-learn takes a second to import; a loaded run does not need it.
    from sklearn.utils.extmath import randomized_svd

    _, lengths, axes = randomized_svd(around, number, random_state=0)
    variances = lengths**2 / len(around)
    left = np.square(around).sum() / len(around) - variances.sum()
    rest = left / max(1, features.shape[1] - number)
    # In float32 a square must not vanish in another. Without variance, distances count in parts of the features' size.
    rest = max(rest, 1e-4 * variances[0], 1e-6 * float(np.square(features).mean()), np.finfo(np.float32).tiny)
    shrunk = np.sqrt(np.maximum(1 - rest / np.maximum(variances, rest), 0))
    directions = axes.T * shrunk
    scale = np.full_like(mean, 1 / math.sqrt(rest))
    centers = (np.stack(classes) - mean) * scale
    across = centers @ directions
    slopes = -2 * (centers - across @ directions.T).T
    return mean, scale, directions, slopes, np.square(centers).sum(axis=1) - np.square(across).sum(axis=1)


def _squared_distances(features: np.ndarray, *terms: NDArray[Any]) -> NDArray[np.float64]:
    mean, scale, directions, slopes, offsets = (np.asarray(term, np.float64) for term in terms)
    x = (_unit(features) - mean) * scale
    nearest = (x @ slopes + offsets).min(axis=1)
    squared: NDArray[np.float64] = np.square(x).sum(axis=1) - np.square(x @ directions).sum(axis=1) + nearest
    return squared


def _unit(features: np.ndarray) -> NDArray[np.float64]:
    """Each row divided by its length, unless that is 0."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    scaled: NDArray[np.float64] = features / np.maximum(lengths, 1e-12)
    return scaled
