"""Training steps beside stock Keras and fastai, and what kernel gradients as matrix products are worth."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import keras
import numpy as np
from speed.measure import side_by_side, table
from speed.peer import VARIANTS, Fastai

from kbaseline.cpu_layers import convolve, pointwise
from kbaseline.data.batches import ImageBatches
from kbaseline.model import build_classifier, classifier_groups, freeze
from kbaseline.optimizer import LayerwiseAdamW

# Kernel, side in pixels, channels in and out, stride: convolutions of a ResNet50 at 128 pixels.
SHAPES = [
    (7, 128, 3, 64, 2),
    (3, 32, 64, 64, 1),
    (3, 16, 128, 128, 1),
    (1, 32, 64, 256, 1),
    (1, 32, 256, 64, 1),
    (1, 32, 256, 128, 2),
    (1, 16, 128, 512, 1),
    (1, 8, 1024, 256, 1),
    (1, 4, 512, 2048, 1),
]

SOURCE = 32
"""Pixels of the images that are read."""


def section(batch: int, size: int, rounds: int, fastai: Fastai | None) -> str:
    """Images/s of training the head and everything, and GFLOP/s of kernel gradients."""
    rows = []
    for name, frozen in (("head, BatchNorm trained", True), ("everything", False)):
        steps = {"here": our_step(batch, size, frozen), "Keras": keras_step(batch, size, frozen)}
        if fastai:
            steps |= {variant: lambda v=variant, f=frozen: fastai.step(v, f) for variant in VARIANTS}
        seconds = side_by_side(steps, rounds)
        row = [name, *(f"{batch / seconds[side]:.1f}" for side in ("here", "Keras"))]
        row.append(f"{seconds['Keras'] / seconds['here']:.2f}")
        if fastai:
            best = min(VARIANTS, key=lambda variant: seconds[variant])
            row += [f"{batch / seconds[best]:.1f} ({best})", f"{seconds[best] / seconds['here']:.2f}"]
        rows.append(row)
    header = ["training ResNet50", "here, images/s", "Keras, images/s", "here ÷ Keras"]
    header += ["fastai, images/s", "here ÷ fastai"] if fastai else []
    kernels = []
    for kernel, side, channels, filters, stride in SHAPES:
        work, sides = kernel_gradients(batch, kernel, side, channels, filters, stride)
        seconds = side_by_side(sides, rounds)
        figures = [f"{work / seconds[name]:.0f}" for name in ("here", "Keras")]
        name = f"{kernel}x{kernel} on {side}x{side}, {channels} to {filters}, stride {stride}"
        kernels.append([name, *figures, f"{seconds['Keras'] / seconds['here']:.1f}"])
    return (
        f"{size} pixels, batch {batch}, float32; medians of {rounds} steps, each with its batch read and augmented, "
        "all sides in turn, two steps a turn of which the second counts. Keras: its own ResNet50, augmentation layers "
        "and AdamW. fastai: `vision_learner` and `aug_transforms`, the faster of its default and of channels last.\n\n"
        + table(header, rows)
        + "\nWhere it comes from, the kernel gradients of single convolutions:\n\n"
        + table(["convolution", "here, GFLOP/s", "Keras, GFLOP/s", "here ÷ Keras"], kernels)
    )


def batches(batch: int, count: int) -> ImageBatches:
    """Random images of `SOURCE` pixels in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SOURCE, SOURCE, 3), dtype=np.uint8)
    return ImageBatches(images, rng.integers(0, 10, count).astype("int32"), batch, shuffle=True)


@cache
def our_step(batch: int, size: int, frozen: bool) -> Callable[[], Any]:
    """One step of kbaseline's network and optimizer, compiled once in a process."""
    model = build_classifier(10, size, "resnet50", "none")
    if frozen:
        freeze(model)
    return _step(model, LayerwiseAdamW(1e-4, classifier_groups(model), [0.01, 0.1, 1.0]), batch)


def keras_step(batch: int, size: int, frozen: bool) -> Callable[[], Any]:
    """One step of what Keras itself offers for the same task."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SOURCE, SOURCE, 3))
    x = keras.layers.Resizing(size, size)(images)
    x = keras.layers.RandomFlip("horizontal")(x)
    x = keras.layers.RandomRotation(10 / 360)(x)
    x = keras.layers.RandomZoom((-0.1, 0.0))(x)
    x = keras.layers.RandomBrightness(0.1)(x)
    x = keras.layers.RandomContrast(0.1)(x)
    body = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
    for layer in body.layers:
        layer.trainable = not frozen or isinstance(layer, keras.layers.BatchNormalization)
    x = body(keras.applications.resnet.preprocess_input(x))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(512, "relu")(x))
    return _step(keras.Model(images, keras.layers.Dense(10)(x)), keras.optimizers.AdamW(1e-4), batch)


def _step(model: keras.Model, optimizer: keras.optimizers.Optimizer, batch: int) -> Callable[[], Any]:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    source = batches(batch, 4 * batch)
    return lambda: model.train_on_batch(*source[0])


def kernel_gradients(
    batch: int, size: int, side: int, channels: int, filters: int, stride: int
) -> tuple[float, dict[str, Callable[[], Any]]]:
    """GFLOP of one kernel gradient, and the two ways to compute it."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, side, side, channels)).astype("float32")
    kernel = rng.normal(size=(size, size, channels, filters)).astype("float32")

    def stock(x: Any, k: Any) -> Any:
        return keras.ops.conv(x, k, stride, "same", "channels_last")

    def ours(x: Any, k: Any) -> Any:
        return pointwise(x, k, (stride, stride)) if size == 1 else convolve(x, k, (stride, stride), "same")

    steps = {}
    for name, compute in (("here", ours), ("Keras", stock)):
        output = compute(images, kernel)
        gradient = jax.jit(lambda k, dy, f=compute: jax.vjp(lambda k: f(images, k), k)[1](dy)[0])
        steps[name] = lambda g=gradient, dy=output: g(kernel, dy)
    return 2e-9 * output.size * size**2 * channels, steps
