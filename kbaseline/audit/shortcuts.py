"""Shortcuts: how well a class can be told from what is not in the picture, as file size, format or camera."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kbaseline.data.splits import fold_indices
from kbaseline.metrics import accuracy_interval

MARGIN = 0.1
"""A shortcut is reported if it beats the majority class by this much, beyond its interval."""

_TREES = 50


@dataclass(frozen=True)
class Shortcut:
    """A property from which the class can be told.

    Attributes:
        property: `file size`, `width and height`, `aspect`, `format`, `camera`, `mean colour`, or `all of the file`.
        accuracy: cross-validated accuracy of a forest that sees nothing else, 0 to 1.
        interval: its 95 % interval.
        majority: share of the most frequent class, 0 to 1.
    """

    property: str
    accuracy: float
    interval: tuple[float, float]
    majority: float


def find_shortcuts(
    properties: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int = 42,
) -> tuple[Shortcut, ...]:
    """The properties that tell the class, the best first.

    Mean colour may well belong to a class: sky is blue. The others never do; a network that sees them through the
    traces of a camera or a codec fails on new photos.

    Args:
        properties: name -> float `(images,)` or `(images, any)`.
        labels: int `(images,)`.
        groups: int `(images,)`; copies must not be on both sides.
        seed: fixes the folds and the trees.
    """
    majority = float(np.bincount(labels).max() / len(labels))
    found = []
    for name, values in _with_all(properties).items():
        right = _right(values.reshape(len(labels), -1), labels, groups, seed)
        interval = accuracy_interval(right, len(labels))
        if interval[0] > majority + MARGIN:
            found.append(Shortcut(name, right / len(labels), interval, majority))
    return tuple(sorted(found, key=lambda one: -one.accuracy))


def _with_all(properties: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The properties that vary, and all of the file together."""
    varying = {name: values for name, values in properties.items() if len(np.unique(values, axis=0)) > 1}
    of_file: Sequence[np.ndarray] = [v.reshape(len(v), -1) for name, v in varying.items() if name != "mean colour"]
    return varying | ({"all of the file": np.concatenate(of_file, axis=1)} if len(of_file) > 1 else {})


def _right(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> int:
    """Images whose class a forest finds that was fitted without them and without their copies."""
    from sklearn.ensemble import RandomForestClassifier

    right = 0
    for kept, held in fold_indices(labels, 5, seed, groups):
        forest = RandomForestClassifier(_TREES, min_samples_leaf=3, random_state=seed)
        forest.fit(values[kept], labels[kept])
        right += int((forest.predict(values[held]) == labels[held]).sum())
    return right
