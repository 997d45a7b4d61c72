"""How much each class weighs in the training loss."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Literal
from unicodedata import normalize

import numpy as np

from kbaseline.errors import DataError, did_you_mean, listed


def class_weights(
    setting: Mapping[str, float] | Literal["none", "auto"], labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray | None:
    """The weight of every class.

    Args:
        setting: `"none"`; `"auto"` for scikit-learn's `balanced` weights, `images / (classes * images of the class)`,
            with which every class weighs the same in an epoch and an image weighs 1 on average; or name -> weight,
            1 for a class that is not named.
        labels: int `(number,)`, of the training images.
        class_names: the name of each label.

    Returns:
        float32 `(classes,)`; None for `"none"`.

    Raises:
        DataError: a name that is no class.
    """
    if setting == "none":
        return None
    weights = np.ones(len(class_names), np.float32)
    if isinstance(setting, str):
        # A class of which a subset took no image has nothing to weigh.
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
                f"data.class_weights: {name!r} is none of the {len(places)} classes ({listed(class_names)})."
                f"{did_you_mean(name, class_names)}"
            )
        weights[places[name]] = weight
    return weights
