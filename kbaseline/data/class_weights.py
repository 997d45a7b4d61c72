"""Class weights in the training loss."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Literal
from unicodedata import normalize

import numpy as np

from kbaseline.errors import DataError, did_you_mean, listed


def class_weights(
    setting: Mapping[str, float] | Literal["none", "auto"], labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray | None:
    """Computes the weight of every class in the training loss.

    Args:
        setting: `"none"`; `"auto"` for scikit-learn's `balanced` weights, `images / (classes * images of the class)`,
            which give every class the same total weight and images a mean weight of 1; or a mapping from class name
            to weight, with 1 for every other class.
        labels: int `(number,)`, labels of the training images.
        class_names: the name of each label.

    Returns:
        float32 `(classes,)`; None for `"none"`.

    Raises:
        DataError: a name is not a class.
    """
    if setting == "none":
        return None
    weights = np.ones(len(class_names), np.float32)
    if isinstance(setting, str):
        # A class may have no image left in a subset; its weight is never used.
        present = np.unique(labels)
        balanced = import_module("sklearn.utils.class_weight").compute_class_weight
        weights[present] = balanced("balanced", classes=present, y=labels)
        return weights
    # The same letters may be composed in two ways.
    places = {normalize("NFC", name): place for place, name in enumerate(class_names)}
    for given, weight in setting.items():
        name = normalize("NFC", given)
        if name not in places:
            raise DataError(
                f"data.class_weights: {name!r} is not one of the {len(places)} classes ({listed(class_names)})."
                f"{did_you_mean(name, class_names)}"
            )
        weights[places[name]] = weight
    return weights
