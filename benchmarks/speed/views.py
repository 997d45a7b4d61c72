"""Test-time augmentation beside as many plain predictions."""

import time
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from speed.measure import Seconds, side_by_side, table
from speed.training import SOURCE

from kbaseline.data.batches import ImageBatches
from kbaseline.models.classifier import build_classifier
from kbaseline.tta import tta_predict

VIEWS = 8
IMAGES_PER_PASS = 72
"""Images in one forward pass: eight images with all their views, or as many plain ones."""

BATCHES = 3
"""Batches of a prediction; the first, which compiles, does not count."""

COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock(keras.callbacks.Callback):
    """When each batch of a prediction was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes the time."""
        jax.block_until_ready(logs)
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> Seconds:
        """Of a batch, the first left out."""
        return Seconds((self.times[-1] - self.times[0]) / (len(self.times) - 1))


def section(size: int, rounds: int) -> str:
    """Images/s through the network for both, and how many programs were compiled."""
    model = build_classifier(10, size, "resnet50", "none")
    rng = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return rng.integers(0, 256, (count, SOURCE, SOURCE, 3), dtype=np.uint8)

    few, many = images(BATCHES * IMAGES_PER_PASS // (1 + VIEWS)), images(BATCHES * IMAGES_PER_PASS)
    programs: list[str] = []

    def views() -> Seconds:
        clock = Clock()
        tta_predict(model, few, VIEWS, batch_size=IMAGES_PER_PASS, callbacks=[clock])
        return clock.seconds

    def plain() -> Seconds:
        clock = Clock()
        model.predict(ImageBatches(many, batch_size=IMAGES_PER_PASS), verbose=0, callbacks=[clock])
        return clock.seconds

    sides: dict[str, Callable[[], Seconds]] = {"plain": plain, "views": views}

    def listen(event: str, seconds: float, **names: str) -> None:
        if event == COMPILED and "predict_step" in names.get("fun_name", ""):
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    views()
    jax.monitoring.unregister_event_duration_listener(listen)
    seconds = side_by_side(sides, rounds)
    plain_speed, views_speed = (IMAGES_PER_PASS / seconds[side] for side in ("plain", "views"))
    rows = [
        ["plain prediction", f"{plain_speed:.1f}", "1"],
        [f"plain and {VIEWS} views", f"{views_speed:.1f}", f"{views_speed / plain_speed:.2f}"],
    ]
    return (
        f"ResNet50, {size} pixels, {IMAGES_PER_PASS} images per pass, float32; each view of an image counts as an "
        f"image. Programs compiled for all views together: {len(programs)}.\n\n"
        + table(["", "images/s", "ratio"], rows)
    )
