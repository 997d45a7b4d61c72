"""Builds a network whose weights are read from a file, without drawing random ones first."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

_RANDOM = (
    keras.initializers.Orthogonal,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)
"""What Keras' random initializers are, or are made from."""

_CONSTANT = {keras.initializers.Zeros: np.zeros, keras.initializers.Ones: np.ones}

_patching = threading.RLock()


@contextmanager
def blank_weights() -> Iterator[None]:
    """Layers that this thread builds within start from zeros where they would start from random numbers.

    XLA compiles a program for each shape of random numbers, and a network has dozens: 16 seconds for an
    EfficientNet-Lite0. Constants are what they were, but need no program. A layer's configuration is untouched, so
    that a clone of it is random.
    """
    with _patching:
        original, owner = keras.Layer.add_weight, threading.get_ident()

        def add_weight(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == owner:
                if len(args) > 1:
                    args = (args[0], _blank(args[1]), *args[2:])
                elif "initializer" in kwargs:
                    kwargs["initializer"] = _blank(kwargs["initializer"])
            return original(layer, *args, **kwargs)

        keras.Layer.add_weight = add_weight
        try:
            yield
        finally:
            keras.Layer.add_weight = original


def _blank(initializer: Any) -> Any:
    found = keras.initializers.get(initializer)
    fill = np.zeros if isinstance(found, _RANDOM) else _CONSTANT.get(type(found))
    if fill is None:
        return initializer
    return lambda shape, dtype=None: fill(shape, keras.backend.standardize_dtype(dtype))
