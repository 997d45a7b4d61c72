"""Data parallelism: Keras' `DataParallel` over the devices of this process, or of all processes of a run.

`batch_size` counts the images of all devices together, and each device computes an equal part of a batch. Gradients,
BatchNorm statistics and metrics are those of the whole batch. Random draws depend on an image's position in the batch,
not on the device.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import jax
import keras
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.devices.xla import unused_gpu
from kbaseline.errors import InputError

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")


def data_parallel(
    devices: int | Literal["all"], batch_size: int | Literal["auto"]
) -> keras.distribution.DataParallel | None:
    """The Keras distribution that splits every batch over `devices` of each process, or None for a single device.

    Args:
        devices: number of devices used in each process, or `"all"`.
        batch_size: images per step, over all devices.

    Raises:
        InputError: some process has fewer devices; or the batch size is `"auto"` or not a multiple of the number of
            devices.
    """
    groups = _by_process()
    fewest = min(map(len, groups))
    count = len(groups[0]) if devices == "all" else devices
    if count > fewest:
        raise InputError(f"runtime.devices {devices}: there are only {fewest}; set it to {fewest} or less.")
    chosen = [device for group in groups for device in group[:count]]
    if len(chosen) == 1:
        return None
    if batch_size == "auto":
        raise InputError(
            f"data.batch_size 'auto': works on one device only; give a number for the {len(chosen)} that share a batch."
        )
    if batch_size % len(chosen):
        nearest = max(1, round(batch_size / len(chosen))) * len(chosen)
        raise InputError(
            f"data.batch_size {batch_size}: must be a multiple of the {len(chosen)} devices that share a batch; the "
            f"nearest is {nearest}."
        )
    return keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)


def _by_process() -> list[list[jax.Device]]:
    processes = range(jax.process_count())
    return [[device for device in jax.devices() if device.process_index == process] for process in processes]


def available_devices(config: Config, console: Console) -> Config:
    """The configuration of a run from another machine, with as many of its devices as are here.

    Args:
        config: its `runtime.devices` may be more than there are, or not share the batch size equally here.
        console: a smaller number is printed.
    """
    groups, batch = _by_process(), config.data.batch
    there = min(map(len, groups))
    given = config.runtime.devices
    wanted = there if given == "all" else given
    equal = [count for count in range(1, min(wanted, there) + 1) if batch % (count * len(groups)) == 0]
    if not equal or equal[-1] == wanted:
        return config
    text = f"runtime.devices: {equal[-1]} of {there} here share a batch of {batch}; the run was configured for {given}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"devices": equal[-1]})})


def on_all_devices(
    verb: Callable[Concatenate[Any, _Arguments], _Found],
) -> Callable[Concatenate[Any, _Arguments], _Found]:
    """Decorates a method so that it runs in the scope of its object's `distribution`, if that is not None."""

    @functools.wraps(verb)
    def spread(owner: Any, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Found:
        with nullcontext() if owner.distribution is None else owner.distribution.scope():
            return verb(owner, *args, **kwargs)

    return spread


def device_summary(distribution: keras.distribution.DataParallel | None, batch_size: int) -> str | None:
    """One line on how devices share a batch, or on unused devices; None if there is only one device."""
    if distribution is not None:
        count, processes = distribution.num_model_replicas, jax.process_count()
        among = f" of {processes} processes" if processes > 1 else ""
        return f"{count} devices{among} share every batch, {batch_size // count} images each"
    if (there := jax.local_device_count()) > 1:
        return f"1 of {there} devices is used; set runtime.devices=all to split every batch over all of them"
    return unused_gpu()
