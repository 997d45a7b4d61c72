"""How fast images reach the network, and what `fit` costs a step beyond the step itself."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import keras
import numpy as np
from rich.console import Console
from speed.measure import Seconds, side_by_side, table
from speed.peer import Fastai
from speed.training import SOURCE, batches, our_step, state

from kbaseline import ImageData, Learner
from kbaseline.data.batches import ImageBatches
from kbaseline.transforms import RandomTransforms

STEPS = 32
"""Batches of one reading of the input path."""

FIT_STEPS = 500
"""Steps of one reading of the overhead."""

CONVOLUTIONS = 53
"""Of a ResNet50, each with BatchNorm: the host handles their variables one by one, whatever their size."""

GPU_STEP = 0.010
"""Seconds of a training step on a GPU, for a comparison: assumed, not measured."""


def section(batch: int, size: int, rounds: int, fastai: Fastai | None) -> str:
    """Images/s of the input path against the training step's, and milliseconds of overhead."""
    sides: dict[str, Callable[[], Any]] = {"path": input_path(batch, size), "step": our_step(batch, size, True)}
    if fastai:
        sides |= {f"{count} workers": lambda count=count: fastai.data(STEPS, count) for count in (0, 2)}
    seconds = side_by_side(sides, rounds)
    rows = [
        ["ResNet50's step, head", f"{batch / seconds['step']:.1f}", "1"],
        ["data and transforms here", f"{batch / seconds['path']:,.0f}", f"{seconds['step'] / seconds['path']:.0f}"],
    ]
    if fastai:
        best = min(list(sides)[2:], key=lambda side: seconds[side])
        name = f"data and transforms of fastai, {best}"
        rows.append([name, f"{batch / seconds[best]:,.0f}", f"{seconds['step'] / seconds[best]:.0f}"])
    fit, loop, host = overhead(batch, rounds)
    extra = max(fit - loop, 0.0)
    return (
        f"Images of {SOURCE} pixels to {size}, batch {batch}; the network is replaced by a mean over the image.\n\n"
        + table(["", "images/s", "times the step's"], rows)
        + f"\nA network with the layers of a ResNet50 but only two channels takes {1000 * fit:.2f} ms a step "
        f"in `Learner.fit` and {1000 * loop:.2f} ms in a hand-written JAX loop around the same step: `fit` costs "
        f"{1000 * extra:.2f} ms a step, {100 * extra / seconds['step']:.2f} % of the ResNet50 step above. If a GPU "
        f"took {1000 * GPU_STEP:.0f} ms a step (an assumption), it would be {100 * extra / GPU_STEP:.0f} %, and on an "
        "accelerator the host works ahead. With a step that returns at once, `fit` takes the host "
        f"{1000 * host:.2f} ms a step.\n"
    )


def input_path(batch: int, size: int) -> Callable[[], Seconds]:
    """`fit` over real batches and transforms, the network a mean over the image."""
    images = keras.Input((SOURCE, SOURCE, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(RandomTransforms(size)(images))
    model = keras.Model(images, keras.layers.Dense(10)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    source = batches(batch, STEPS * batch)

    def step() -> Seconds:
        begin = time.perf_counter()
        model.fit(source, verbose=0, shuffle=False)
        return Seconds((time.perf_counter() - begin) / STEPS)

    return step


def overhead(batch: int, rounds: int) -> tuple[float, float, float]:
    """Seconds a step of a thin network in `Learner.fit_one_cycle`, in a plain loop, and of the host in the former."""
    rng = np.random.default_rng(0)
    count = FIT_STEPS * batch
    train = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), np.arange(count) % 10
    image = x = keras.Input((None, None, 3))
    for _ in range(CONVOLUTIONS):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 1)(x))
    with TemporaryDirectory() as folder:
        backbone = Path(folder) / "tiny.keras"
        keras.Model(image, x).save(backbone)
        data = ImageData.from_arrays(train, (train[0][:batch], train[1][:batch]))
        config = {"data": {"batch_size": batch}, "model": {"hidden": 16}}
        learn = Learner(data, str(backbone), config=config, console=Console(quiet=True))
    seconds = side_by_side(fit_and_loop(learn), rounds)
    return seconds["fit"], seconds["loop"], host_seconds(learn, rounds)


def fit_and_loop(learn: Learner) -> dict[str, Callable[[], Seconds]]:
    """What trains an epoch and says what a step took: `Learner.fit_one_cycle`, and a loop without Keras around it."""
    batch = learn.config.data.batch
    step = jax.jit(lambda *inputs: learn.model.train_step(*inputs), donate_argnums=0)

    def fit() -> Seconds:
        # The first of all compiles; the others of its stage share its program.
        return Seconds(batch / learn.fit_one_cycle(1, 1e-4)[-1]["images_per_s"])

    def loop() -> Seconds:
        source = ImageBatches(learn.data.train.images, learn.data.train.labels, batch, shuffle=True)
        _, variables = step(state(learn.model), source[0])
        begin = time.perf_counter()
        for index in range(len(source)):
            logs, variables = step(variables, source[index])
        jax.block_until_ready(logs)
        return Seconds((time.perf_counter() - begin) / len(source))

    return {"fit": fit, "loop": loop}


def host_seconds(learn: Learner, rounds: int) -> float:
    """Median seconds that a step of `fit` costs the host, its compiled program replaced by one that returns at once."""
    learn.fit_one_cycle(1, 1e-4)
    step, logs = learn.model.train_function, {"loss": jax.numpy.ones(()), "accuracy": jax.numpy.ones(())}

    def stub(variables: Any, iterator: Any) -> tuple[dict[str, Any], Any]:
        next(iterator)
        return dict(logs), variables

    learn.model.train_function = stub
    try:
        spent = [1 / learn.fit_one_cycle(1, 1e-4)[-1]["images_per_s"] for _ in range(rounds)]
    finally:
        learn.model.train_function = step
    return learn.config.data.batch * statistics.median(spent)
