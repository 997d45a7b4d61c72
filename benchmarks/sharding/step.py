"""The program that is measured: training steps of a process, alone or among others, and their times as JSON.

    python step.py --batch 128 --set runtime.devices=all

Started by `launch.Launched`, which sets the keys of `runtime`. Network, optimizer and batches are those of a run.
"""

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

import json
import math
import os
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
from rich.console import Console

from kbaseline.config.load import load_config, parse_assignments
from kbaseline.data.batches import ImageBatches
from kbaseline.devices.multihost import init_distributed
from kbaseline.devices.parallel import data_parallel
from kbaseline.models.backbones import leaves
from kbaseline.models.classifier import build_classifier, classifier_groups
from kbaseline.optimizer import LayerwiseAdamW

WARM_UP = 2
"""Steps that do not count: the first compiles; after it, all goes to one core."""


class Clock(keras.callbacks.Callback):
    """The time at the end of each step; Keras reads each step's loss first, and so waits for it.

    Attributes:
        ends: of each step, seconds by the clock and seconds of processor time, of all threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes the time."""
        if not self.ends:
            use_one_core()
        self.ends.append((time.perf_counter(), time.process_time()))


def use_one_core() -> None:
    """Moves this process, with its threads, to one core, which several processes then share; Linux only."""
    if hasattr(os, "sched_setaffinity"):
        core = min(os.sched_getaffinity(0))
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), {core})


@click.command(help=__doc__)
@click.option("--backbone", default="resnet20", show_default=True)
@click.option("--classes", default=10, show_default=True)
@click.option("--size", default=32, show_default=True, help="Pixels.")
@click.option("--batch", default=128, show_default=True, help="Images a step, over all devices.")
@click.option("--steps", default=10, show_default=True)
@click.option("--set", "assignments", multiple=True, help="Of the configuration.")
def main(backbone: str, classes: int, size: int, batch: int, steps: int, assignments: tuple[str, ...]) -> None:
    """Trains everything on random images."""
    config = load_config(None, {**parse_assignments(assignments), "data.batch_size": batch})
    init_distributed(config.runtime, Console(quiet=True))
    spread = data_parallel(config.runtime.devices, batch)
    rng, clock = np.random.default_rng(0), Clock()
    images = rng.integers(0, 256, (batch * steps, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, len(images)).astype("int32")
    with spread.scope() if spread else nullcontext():
        model = build_classifier(classes, size, backbone, "none")
        optimizer = LayerwiseAdamW(1e-4, classifier_groups(model), [0.01, 0.1, 1.0])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        model.fit(ImageBatches(images, labels, batch, shuffle=True), shuffle=False, verbose=0, callbacks=[clock])
    ends = np.array(clock.ends[WARM_UP - 1 :]).reshape(-1, 2)
    seconds, processor_seconds = np.diff(ends, axis=0).T.tolist()
    norms = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    found = {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "parameters": sum(math.prod(variable.shape) for variable in model.trainable_variables),
        "norms": len(norms),
        "channels": sum(layer.gamma.shape[0] for layer in norms),
    }
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
