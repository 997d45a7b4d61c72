"""Keeps what was built and compiled for a model exactly as long as the model lives, and reads the model's values."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import keras

_Made = TypeVar("_Made")

MOST = 4
"""Entries kept per model and kind; the oldest goes first."""


class _Kept:
    """The entries of one model, by kind and key; not a container, because Keras would save what is in one."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[Hashable, Any]] = {}


_ATTRIBUTE = "_kbaseline_programs"
_building = threading.RLock()


def kept(model: keras.Model, kind: str, key: Hashable, make: Callable[[], _Made]) -> _Made:
    """`make()`, called once for a model, a kind and a key; only one thread at a time makes anything.

    What is made may refer to the model. A global cache would keep the model alive through it.
    """
    with _building:
        # Keras' `__setattr__` would track it as a part of the model.
        found = vars(model).setdefault(_ATTRIBUTE, _Kept()).entries.setdefault(kind, {})
        if key not in found:
            made = make()
            while len(found) >= MOST:
                del found[next(iter(found))]
            found[key] = made
        else:
            found[key] = found.pop(key)
        result: _Made = found[key]
        return result


def values(model: keras.Model, variables: Sequence[keras.Variable]) -> list[Any]:
    """The present values of variables of a model, in the form `keras.StatelessScope` takes.

    Within a batch of `fit`, Keras holds the values elsewhere, and a variable would read as its initial value.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return [variable.value for variable in variables]
