"""Training steps and the kernel gradients in them, beside stock Keras and fastai."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import keras
import numpy as np
from speed.measure import TURN, side_by_side, table
from speed.peer import VARIANTS, Fastai, Keras

from kbaseline.data.batches import ImageBatches
from kbaseline.models.classifier import build_classifier, classifier_groups, freeze
from kbaseline.models.cpu import pointwise
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


def section(batch: int, size: int, rounds: int, stock: Keras, fastai: Fastai | None) -> str:
    """Images/s of training the head and everything, and GFLOP/s of kernel gradients."""
    rows = []
    for name, frozen in (("head, BatchNorm trained", True), ("everything", False)):
        steps = {"here": our_step(batch, size, frozen), "Keras": lambda f=frozen: stock.step(f)}
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
    for shape in SHAPES:
        kernel, side, channels, filters, stride = shape
        compute = partial(_product, strides=stride) if kernel == 1 else partial(convolution, strides=stride)
        work, ours = kernel_gradient(batch, shape, compute)
        seconds = side_by_side({"here": ours, "Keras": lambda s=shape: stock.kernel_gradient(s)}, rounds)
        figures = [f"{work / seconds[name]:.0f}" for name in ("here", "Keras")]
        name = f"{kernel}x{kernel} on {side}x{side}, {channels} to {filters}, stride {stride}"
        kernels.append([name, *figures, f"{seconds['Keras'] / seconds['here']:.1f}"])
    return (
        f"{size} pixels, batch {batch}, float32; medians of {rounds} turns, each step including reading and augmenting "
        f"its batch. The sides take turns of {TURN:g} seconds, of which the second half counts. Keras: its own "
        "ResNet50, augmentation layers and AdamW, in a separate process. fastai: `vision_learner` and "
        "`aug_transforms`, with its default memory layout or channels last, whichever is faster.\n\n"
        + table(header, rows)
        + "\nWhere it comes from, the kernel gradients of single convolutions:\n\n"
        + table(["convolution", "here, GFLOP/s", "Keras, GFLOP/s", "here ÷ Keras"], kernels)
    )


def images_and_labels(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images of `SOURCE` pixels, and ten classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, SOURCE, SOURCE, 3), dtype=np.uint8), np.arange(count, dtype="int32") % 10


def batches(batch: int, count: int) -> ImageBatches:
    """Batches of `images_and_labels`."""
    return ImageBatches(*images_and_labels(count), batch, shuffle=True)


@cache
def our_step(batch: int, size: int, frozen: bool) -> Callable[[], Any]:
    """One step of kbaseline's network and optimizer, compiled once in a process."""
    return one_step(classifier(size, frozen), batch)


def classifier(size: int, frozen: bool) -> keras.Model:
    """kbaseline's ResNet50, compiled with its optimizer."""
    model = build_classifier(10, size, "resnet50", "none")
    if frozen:
        freeze(model)
    return prepared(model, LayerwiseAdamW(1e-4, classifier_groups(model), [0.01, 0.1, 1.0]))


def prepared(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Any network, compiled as all of them are."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def one_step(model: keras.Model, batch: int) -> Callable[[], Any]:
    """One step of any compiled network."""
    source = batches(batch, 4 * batch)
    return lambda: model.train_on_batch(*source[0])


def state(model: keras.Model) -> tuple[list[jax.Array], ...]:
    """Copies of what `model.train_step` takes and gives back, in Keras' order."""
    model.optimizer.build(model.trainable_variables)
    optimizer = model.optimizer.variables
    kinds = (model.trainable_variables, model.non_trainable_variables, optimizer, model.metrics_variables)
    return tuple([jax.numpy.copy(variable.value) for variable in kind] for kind in kinds)


def program(model: keras.Model, batch: int) -> tuple[Callable[[], Any], Any, Any]:
    """A step on a batch that the device holds already, as JAX compiled it.

    Returns:
        What runs it, its state donated as in `fit`; the compiled program; JAX's account of FLOP, counted on the same
        step lowered for a CPU, or None: on a GPU it misses every convolution that a library computes.
    """
    images, labels = batches(batch, batch)[0]
    # The first call creates the metrics' variables, which are part of the state.
    model.compute_metrics(images, labels, np.zeros((batch, model.output_shape[-1]), "float32"))
    model.reset_metrics()
    variables, data = state(model), jax.device_put((images, labels))
    step = jax.jit(model.train_step, donate_argnums=0)
    compiled = step.lower(variables, data).compile()
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (variables, data))
    cost = jax.jit(model.train_step).lower(*shapes).cost_analysis()

    def run() -> Any:
        nonlocal variables
        logs, variables = compiled(variables, data)
        return logs

    return run, compiled, cost


def kernel_gradient(
    batch: int, shape: tuple[int, ...], compute: Callable[[Any, Any], Any]
) -> tuple[float, Callable[[], Any]]:
    """GFLOP of the kernel gradient of a convolution of `SHAPES`, and what computes it."""
    size, side, channels, filters, _ = shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, side, side, channels)).astype("float32")
    kernel = rng.normal(size=(size, size, channels, filters)).astype("float32")
    output = compute(images, kernel)
    gradient = jax.jit(lambda k, dy: jax.vjp(lambda k: compute(images, k), k)[1](dy)[0])
    return 2e-9 * output.size * size**2 * channels, lambda: gradient(kernel, output)


def convolution(images: Any, kernel: Any, strides: int) -> Any:
    """As Keras computes it."""
    return keras.ops.conv(images, kernel, strides, "same", "channels_last")


def _product(images: Any, kernel: Any, strides: int) -> Any:
    return pointwise(images, kernel, (strides, strides))
