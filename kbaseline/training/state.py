"""The state of the compiled training step: its variables in Keras' order, put back, and not tracked at every step."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kbaseline.errors import InputError
from kbaseline.optimizer import optimizer_state


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """The state of the compiled training step, in Keras' order, metric sums last."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *optimizer_state(model.optimizer),
        *model.metrics_variables,
    ]


def restore(variables: Sequence[keras.Variable], state: Sequence[np.ndarray]) -> None:
    """Assigns arrays to variables.

    Raises:
        InputError: their number or shapes differ.
    """
    if [tuple(variable.shape) for variable in variables] != [array.shape for array in state]:
        raise InputError("checkpoint: does not match this model and optimizer; start a new run.")
    for variable, array in zip(variables, state, strict=True):
        # NumPy has no bfloat16 and stores it as two raw bytes.
        variable.assign(array.view(variable.dtype) if array.dtype.kind == "V" else array)


def restore_model(model: keras.Model, state: Sequence[np.ndarray]) -> None:
    """Assigns the state of a checkpoint. Raises as `restore` does."""
    variables, arrays = state_variables(model), list(state)
    if len(arrays) == len(variables) + 1:
        # Version 0.1 saved a constant rate, after the optimizer's count of steps.
        del arrays[len(model.trainable_variables) + len(model.non_trainable_variables) + 1]
    restore(variables, arrays)


def leave_state_untracked(model: keras.Model) -> None:
    """Keeps Keras from walking through the whole state at every step.

    `fit` and `predict` set the arrays of the state as an attribute of the model after every step. Keras looks into
    every attribute for variables and layers and wraps it; there are none in arrays. For the 778 arrays of a ResNet50
    that is most of what a step costs the host.
    """
    tracker = model._tracker
    own = tracker.track

    def track(value: Any) -> Any:
        return value if type(value) is dict and "trainable_variables" in value else own(value)

    tracker.track = track
