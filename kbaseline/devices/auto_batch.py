"""`data.batch_size: auto`: the largest batch whose training step fits into the accelerator's memory.

Powers of two are tried in descending order, so that a large accelerator compiles one program. Each trial compiles and
runs one training step of the whole network with nothing frozen. A size fits if that step runs, and if what is in use
and what its program needs leave a tenth of the memory free. JAX's peak of memory use is no measure: it never falls, so
one size too large, or an earlier `Learner`, would spoil all that follow. The size is at most 1,024, and at most an
eighth of the training images, so that an epoch has at least eight steps.

A CPU does not raise an error when memory runs out, it swaps. There the size is 64, as in the article.

The chosen number is saved in the run folder's configuration and in `result.json`, so a resumed or repeated run uses the
same one. Configured learning rates do not change. To choose the rate for the new batch size, use the finder with
`max_lr: auto`.
"""

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.bars import status
from kbaseline.data import ImageData
from kbaseline.devices.xla import explain_oom
from kbaseline.errors import RunError

ON_CPU = 64
MOST = 1024
STEPS = 8
"""Smallest number of steps per epoch."""

USED = 0.9
"""Largest fraction of the memory that a step may use; the rest is for other parts of the run and other programs."""


def resolve_batch_size(
    config: Config, model: keras.Model, data: ImageData, console: Console, devices: int = 1
) -> Config:
    """Replaces `data.batch_size` by a number that the training images fill, and prints it if it is another.

    Args:
        config: the run's configuration.
        model: the classifier, with every layer trainable; it is restored bit for bit.
        data: the number of training images limits the size.
        console: where to print.
        devices: how many share a batch equally.

    Returns:
        The configuration with the number; `config` itself if its batch size is a number already that fits.

    Raises:
        RunError: a batch of one image does not fit.
    """
    if config.data.batch_size != "auto":
        return _filled(config, config.data.batch_size, len(data.train) // devices * devices, console)
    # BatchNorm's statistics of a single image say nothing of others.
    most = power_of_two(min(MOST, max(2, len(data.train) // STEPS), len(data.train)))
    if _devices()[0].platform == "cpu":
        size, why = min(ON_CPU, most), "chosen for a CPU"
    else:
        with status(console, "data.batch_size auto: trying sizes"):
            size = largest(lambda batch: _fits(model, data, batch), most)
        why = f"tested on {_devices()[0].device_kind}"
    if size == most:
        why += f", limited by {len(data.train):,} training images" if most < MOST else ", the upper limit"
    text = f"data.batch_size auto: {size}, {why}; learning rates are unchanged"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return _with_size(config, size)


def _filled(config: Config, size: int, most: int, console: Console) -> Config:
    """The configuration with at most so many images a batch."""
    if not 0 < most < size:
        return config
    text = f"data.batch_size: {most}, since there are not enough training images for {size}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return _with_size(config, most)


def _with_size(config: Config, size: int) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": size})})


def power_of_two(number: int) -> int:
    """The largest power of two up to `number`; 1 if there is none."""
    return 1 << max(0, number.bit_length() - 1)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to `most` that fits; 1 if none does. If a size fits, every smaller one must fit too.

    Args:
        fits: returns whether a size fits.
        most: a power of two.
    """
    size = most
    while not fits(size) and size > 1:
        size //= 2
    return size


def _fits(model: keras.Model, data: ImageData, batch: int) -> bool:
    """Whether one training step with this batch size fits; restores the variables."""
    # A second model over the same variables: the given model stays uncompiled.
    trial = keras.Model(model.inputs, model.outputs)
    trial.compile(keras.optimizers.AdamW(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trial.optimizer.build(trial.trainable_variables)
    # Copies: a step donates the variables' buffers, which are then gone.
    values = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.variables]
    images = np.zeros((batch, *data.train.images.shape[1:]), np.uint8)
    try:
        with explain_oom("data.batch_size auto", batch):
            inputs = _state(trial), jax.device_put((images, np.zeros(batch, np.int32)))
            step = compiled_step(trial, inputs)
            if batch > 1 and _share_used(step.memory_analysis()) > USED:
                return False
            jax.block_until_ready(step(*inputs))
    except RunError:
        if batch == 1:
            raise
        return False
    finally:
        for variable, value in values:
            variable.assign(value)
    return True


def _state(model: keras.Model) -> tuple[list[jax.Array], ...]:
    """What `model.train_step` takes and gives back."""
    optimizer, metrics = model.optimizer.variables, model.metrics_variables
    kinds = (model.trainable_variables, model.non_trainable_variables, optimizer, metrics)
    return tuple([variable.value for variable in kind] for kind in kinds)


def compiled_step(model: keras.Model, inputs: tuple[Any, Any]) -> Any:
    """The training step that `fit` would compile, for inputs of these shapes: state and batch."""
    return jax.jit(model.train_step, donate_argnums=0).lower(*inputs).compile()


def _devices() -> list[jax.Device]:
    found: list[jax.Device] = jax.local_devices()
    return found


def _share_used(program: Any) -> float:
    """What is in use and what a program needs besides, as a fraction of the fullest accelerator's memory.

    0 where the devices do not report it.
    """
    reports = [device.memory_stats() or {} for device in _devices()]
    needs = 0
    if program is not None:
        needs = program.temp_size_in_bytes + program.output_size_in_bytes - program.alias_size_in_bytes
    limited = [stats for stats in reports if stats.get("bytes_limit")]
    shares = [(stats.get("bytes_in_use", 0) + needs) / stats["bytes_limit"] for stats in limited]
    return float(max(shares, default=0))
