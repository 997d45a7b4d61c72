"""What 1x1 convolutions with matrix-product gradients are worth on this CPU, side by side with Keras' own in one run.

python benchmarks/cpu.py                     # both tables, in Markdown
python benchmarks/cpu.py --batch 32 --size 128 --rounds 5
"""

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import jax
import keras
import numpy as np

from kbaseline.backbones import leaves
from kbaseline.model import build_classifier, classifier_groups, freeze
from kbaseline.optimizer import LayerwiseAdamW
from kbaseline.pointwise import pointwise
from kbaseline.runtime import environment

# Side in pixels, channels in and out, stride: the 1x1 convolutions of a ResNet50 at 128 pixels.
SHAPES = [
    (32, 64, 256, 1),
    (32, 256, 64, 1),
    (32, 256, 128, 2),
    (16, 128, 512, 1),
    (8, 1024, 256, 1),
    (4, 512, 2048, 1),
]


@click.command(help=__doc__)
@click.option("--batch", default=32, show_default=True, help="Images a step.")
@click.option("--size", default=128, show_default=True, help="Pixels of the network's input.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each; the median counts.")
def main(batch: int, size: int, rounds: int) -> None:
    """Prints the page."""
    place = environment()
    click.echo("# Measured: training on a CPU\n\nMade by `python benchmarks/cpu.py > docs/performance.md`.\n")
    click.echo(
        f"{datetime.now(UTC).date()}, {place['platform']}, {place['cpus']} cores, Keras {place['keras']}, JAX "
        f"{place['jax']}, float32; medians of {rounds}, both sides in turn in one process.\n"
    )
    click.echo("| 1x1 convolution, kernel gradient | Keras, GFLOP/s | here, GFLOP/s | ratio |\n|---|---|---|---|")
    for side, channels, filters, stride in SHAPES:
        work, steps = kernel_gradients(batch, side, channels, filters, stride)
        theirs, ours = side_by_side(steps, rounds)
        name = f"{side}x{side}, {channels} to {filters}, stride {stride}"
        click.echo(f"| {name} | {work / theirs:.0f} | {work / ours:.0f} | {theirs / ours:.1f} |")
    click.echo(f"\n| training ResNet50, {size} px, batch {batch} | Keras, images/s | here, images/s | ratio |")
    click.echo("|---|---|---|---|")
    for name, frozen in (("head, BatchNorm trained", True), ("everything", False)):
        theirs, ours = side_by_side([training_step(batch, size, frozen, stock) for stock in (True, False)], rounds)
        click.echo(f"| {name} | {batch / theirs:.1f} | {batch / ours:.1f} | {theirs / ours:.2f} |")


def kernel_gradients(
    batch: int, side: int, channels: int, filters: int, stride: int
) -> tuple[float, list[Callable[[], Any]]]:
    """GFLOP of one kernel gradient, and the two ways to compute it."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, side, side, channels)).astype("float32")
    kernel = rng.normal(size=(1, 1, channels, filters)).astype("float32")

    def stock(x: Any, k: Any) -> Any:
        return keras.ops.conv(x, k, stride, "valid", "channels_last")

    def ours(x: Any, k: Any) -> Any:
        return pointwise(x, k, (stride, stride))

    steps = []
    for convolve in (stock, ours):
        output = convolve(images, kernel)
        gradient = jax.jit(lambda k, dy, f=convolve: jax.vjp(lambda k: f(images, k), k)[1](dy)[0])
        steps.append(lambda g=gradient, dy=output: g(kernel, dy))
    return 2e-9 * output.size * channels, steps


def training_step(batch: int, size: int, frozen: bool, stock: bool) -> Callable[[], Any]:
    """One step of kbaseline's network and optimizer, with Keras' own convolutions if `stock`."""
    model = build_classifier(10, size, "resnet50", "none")
    if stock:
        for layer in leaves(model.get_layer("backbone")):
            vars(layer).pop("convolution_op", None)
    if frozen:
        freeze(model)
    optimizer = LayerwiseAdamW(1e-4, classifier_groups(model), [0.01, 0.1, 1.0])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, batch)
    return lambda: model.train_on_batch(images, labels)


def side_by_side(steps: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each, measured in turn, so that a machine that slows down slows all of them."""
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for step, own in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(step())
            if number:  # the first compiles
                own.append(time.perf_counter() - begin)
    return [statistics.median(own) for own in seconds]


if __name__ == "__main__":
    main()
