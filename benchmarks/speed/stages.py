"""Images/s of a stage's training steps in bfloat16 and float32, beside a JAX loop, stock Keras and PyTorch."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
from rich.console import Console
from speed.feeding import fit_and_loop
from speed.measure import side_by_side, table
from speed.peer import Keras, Torch
from speed.training import images_and_labels

from kbaseline import ImageData, Learner

PRECISIONS = ("bfloat16", "float32")


def section(
    batch: int,
    size: int,
    steps: int,
    rounds: int,
    stock: Keras,
    torch: Torch | None,
    precisions: Sequence[str] = PRECISIONS,
    deadline: float = math.inf,
) -> str:
    """Every stage in every precision, all sides in turn; none is begun after the deadline."""
    rows = []
    for precision in precisions:
        learn = _learner(batch, size, steps, precision)
        for stage, frozen in (("head", True), ("everything", False)):
            if time.monotonic() > deadline:
                continue
            (learn.freeze if frozen else learn.unfreeze)()
            sides: dict[str, Callable[[], Any]] = fit_and_loop(learn)
            request = (frozen, precision, steps)
            sides["Keras"] = lambda request=request: stock.fit(*request)
            if torch:
                sides["PyTorch"] = lambda request=request: torch.steps(*request)
            seconds = side_by_side(sides, rounds)
            figures = [f"{batch / spent:,.0f}" for spent in seconds.values()]
            ratios = [f"{spent / seconds['fit']:.2f}" for side, spent in seconds.items() if side != "fit"]
            rows.append([f"{stage}, {precision}", *figures, *ratios])
    peers = ["JAX loop", "Keras", *(["PyTorch"] if torch else [])]
    header = ["training ResNet50", "here, images/s", *(f"{peer}, images/s" for peer in peers)]
    return (
        f"{size} pixels, batch {batch}; medians of {rounds} times {steps} steps, all sides in turn. JAX loop: written "
        "by hand around the same compiled step. Keras: `fit` of its own ResNet50, augmentation layers and AdamW, under "
        "the same dtype policy. PyTorch: torchvision's ResNet50 in channels last under `torch.compile`, fused AdamW, "
        "images on the device already and only resized; bfloat16 by autocast, float32 with TF32 products as in JAX.\n\n"
        + table([*header, *(f"here ÷ {peer}" for peer in peers)], rows)
    )


def _learner(batch: int, size: int, steps: int, precision: str) -> Learner:
    train = images_and_labels(steps * batch)
    data = ImageData.from_arrays(train, (train[0][:batch], train[1][:batch]), size=size)
    config = {"data": {"batch_size": batch}, "runtime": {"precision": precision}}
    keras.utils.set_random_seed(0)
    return Learner(data, "resnet50", "none", config=config, console=Console(quiet=True))
