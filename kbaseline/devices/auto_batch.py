"""`data.batch_size: auto`: the largest batch whose training step fits into the accelerator's memory.

Sizes are powers of two, tried upwards by one step each of the whole network, nothing frozen, until one does not fit or
would leave less than a tenth of the memory. What is tried is what will run, so nothing is estimated. At most 1,024, and
at most an eighth of the training images, so that an epoch has eight steps.

A CPU does not say that its memory is short, it begins to swap; there it is 64, the article's.

The number stands in the configuration of the run folder and in `result.json`, so that a resumed or repeated run takes
it from there. Learning rates stay as they are configured: whether a larger batch wants a larger rate is for the finder
to say, `max_lr: auto`.
"""

from collections.abc import Callable

import jax
import keras
import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.data import ImageData
from kbaseline.data.batches import ImageBatches
from kbaseline.devices.xla import explain_oom
from kbaseline.errors import RunError

ON_CPU = 64
MOST = 1024
FIRST = 16
"""The size that is tried first."""

STEPS = 8
"""Least steps an epoch."""

USED = 0.9
"""Most of the memory that a step may take; the rest is for what else the run does, and for other programs."""


def resolve_batch_size(
    config: Config, model: keras.Model, data: ImageData, console: Console, devices: int = 1
) -> Config:
    """The configuration with a number for `data.batch_size` that the training images fill; says where it is another.

    Args:
        config: the run's.
        model: the classifier, every layer trainable; it is left as it was, bit by bit.
        data: its training images bound the size.
        console: where to say it.
        devices: that share a batch equally.

    Raises:
        RunError: not even one image fits.
    """
    if config.data.batch_size != "auto":
        return _filled(config, config.data.batch_size, len(data.train) // devices * devices, console)
    most = power_of_two(min(MOST, len(data.train) // STEPS))
    if jax.default_backend() == "cpu":
        size, why = min(ON_CPU, most), "the choice for a CPU"
    else:
        with console.status("data.batch_size auto: trying"):
            size = largest(lambda batch: _fits(model, data, batch), most)
        why = f"tried on {jax.devices()[0].device_kind}"
    if size == most:
        why += f", and all that {len(data.train):,} training images allow" if most < MOST else ", and the most it takes"
    text = f"data.batch_size auto: {size}, {why}; learning rates stay as they are set"
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
    """The largest that is not above `number`; 1 where there is none."""
    return 1 << max(0, number.bit_length() - 1)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to `most` that fits, all smaller ones fitting too; 1 if none does.

    Args:
        fits: whether a size does.
        most: a power of two.
    """
    size = min(FIRST, most)
    if fits(size):
        while size < most and fits(2 * size):
            size *= 2
        return size
    while size > 1:
        size //= 2
        if fits(size):
            break
    return size


def _fits(model: keras.Model, data: ImageData, batch: int) -> bool:
    """Whether one training step of a batch fits; puts back what it changes."""
    # A model of its own over the same variables: the given one is not compiled.
    trial = keras.Model(model.inputs, model.outputs)
    trial.compile(keras.optimizers.AdamW(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    # Copies: a failed step has taken the buffers of the variables and does not give them back.
    values = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.variables]
    images = np.zeros((batch, *data.train.images.shape[1:]), np.uint8)
    try:
        with explain_oom("data.batch_size auto", batch):
            trial.fit(ImageBatches(images, np.zeros(batch, np.int32), batch), shuffle=False, verbose=0)
    except RunError:
        if batch == 1:
            raise
        return False
    finally:
        for variable, value in values:
            variable.assign(value)
    return batch == 1 or _share_used() <= USED


def _share_used() -> float:
    """The most of the accelerators' memory that was ever in use, 0 to 1; 0 where they do not say."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    shares = [stats.get("peak_bytes_in_use", 0) / stats["bytes_limit"] for stats in told if stats.get("bytes_limit")]
    return float(max(shares, default=0))
