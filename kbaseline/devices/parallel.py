"""Several devices as one: Keras' `DataParallel` over the devices of this process, or of all processes of a run.

A step's batch is that of one device, and each device computes its part of it; gradients, BatchNorm's statistics and
metrics are those of the whole batch, and random draws those of an image's place in it.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import jax
import keras
import numpy as np

from kbaseline.data.batches import ImageBatches
from kbaseline.errors import InputError

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")

_trainable: "WeakKeyDictionary[keras.Model, int]" = WeakKeyDictionary()
"""How many variables were trainable when a model's prediction was compiled."""


def data_parallel(
    devices: int | Literal["all"], batch_size: int | Literal["auto"]
) -> keras.distribution.DataParallel | None:
    """What spreads every batch over `devices` of each process, or None for a single device.

    Args:
        devices: how many of the devices a process sees, or `"all"`.
        batch_size: images a step, over all devices.

    Raises:
        InputError: there are fewer devices, or processes with different numbers of them; or a batch that cannot be
            cut into as many equal parts, or is not known yet.
    """
    groups = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(jax.process_count())
    ]
    fewest = min(map(len, groups))
    count = len(groups[0]) if devices == "all" else devices
    if count > fewest:
        raise InputError(f"runtime.devices {devices}: there are only {fewest}; set it to {fewest} or less.")
    chosen = [device for group in groups for device in group[:count]]
    if len(chosen) == 1:
        return None
    if batch_size == "auto":
        raise InputError(
            f"data.batch_size 'auto': is tried on one device; give a number for the {len(chosen)} that share a batch."
        )
    if batch_size % len(chosen):
        nearest = max(1, round(batch_size / len(chosen))) * len(chosen)
        raise InputError(
            f"data.batch_size {batch_size}: must be a multiple of the {len(chosen)} devices that share a batch; the "
            f"nearest is {nearest}."
        )
    return keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)


def on_all_devices(
    verb: Callable[Concatenate[Any, _Arguments], _Found],
) -> Callable[Concatenate[Any, _Arguments], _Found]:
    """A method whose variables, batches and steps are those of all devices of its object's `distribution`, if any."""

    @functools.wraps(verb)
    def spread(owner: Any, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Found:
        with nullcontext() if owner.distribution is None else owner.distribution.scope():
            return verb(owner, *args, **kwargs)

    return spread


def device_summary(distribution: keras.distribution.DataParallel | None, batch_size: int) -> str | None:
    """One line on how devices share a batch, or on those that are left out; None for the only device there is."""
    if distribution is not None:
        count, processes = distribution.num_model_replicas, jax.process_count()
        among = f" of {processes} processes" if processes > 1 else ""
        return f"{count} devices{among} share every batch, {batch_size // count} images each"
    if (there := jax.local_device_count()) > 1:
        return f"1 of {there} devices is used; --set runtime.devices=all has all of them share every batch"
    return None


def predict_batches(
    model: keras.Model, batches: ImageBatches, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> np.ndarray:
    """`model.predict`, on as many devices as the active `keras.distribution` has.

    Args:
        model: a functional model with one output.
        batches: padded.
        callbacks: Keras callbacks, for a progress bar.

    Returns:
        One row an image, in each process all of them.
    """
    if keras.distribution.distribution() is not None:
        model = _read_by_all(model) if jax.process_count() > 1 else model
        # A compiled prediction says where every variable lies, trainable ones first: another split needs another one.
        trainable = len(model.trainable_variables)
        if _trainable.get(model) != trainable:
            _trainable[model] = trainable
            model.make_predict_function(force=True)
    return batches.unpadded(model.predict(batches, verbose=0, callbacks=list(callbacks)))


@functools.lru_cache(maxsize=2)
def _read_by_all(model: keras.Model) -> keras.Model:
    """The model, with outputs that every process can read; kept, so that the next validation compiles nothing."""
    return keras.Model(model.inputs, _Everywhere()(model.output))


class _Everywhere(keras.layers.Layer):  # type: ignore[misc]
    """Hands on its input, whole on every device: a process can read nothing that lies on those of another."""

    def call(self, values: Any) -> Any:
        mesh = keras.distribution.distribution().device_mesh
        return keras.distribution.distribute_tensor(
            values, keras.distribution.TensorLayout([None] * len(values.shape), mesh)
        )
