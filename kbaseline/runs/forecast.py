"""Forecasts how long the article's recipe takes on a CPU, and names the configuration that is made for one."""

import time
from collections.abc import Callable

import jax

from kbaseline.config.schema import Config
from kbaseline.data import ImageData

_TRAINING = 3
"""Forward passes that a training step costs: its own, and a backward pass of twice that. A frozen backbone whose
BatchNorm stays needs no backward pass: its step costs one (docs/results.md)."""


def forecast_line(config: Config, data: ImageData, predict: Callable[[int], object]) -> str:
    """One line on the duration, for the article's network and stages on another source and a CPU; else an empty string.

    Args:
        config: the configuration of the run.
        data: its data.
        predict: predicts so many validation images, as the run will; called twice, first to compile.
    """
    # As a run has chosen it where it says `auto`.
    config = config.with_train_bn(len(data.train))
    article = Config(data=config.data).with_train_bn(len(data.train))
    same = config.model == article.model and config.stages == article.stages
    if not same or config.data.source == Config().data.source or jax.default_backend() != "cpu":
        return ""
    images = min(2 * config.data.batch, len(data.valid))
    predict(images)
    began = time.perf_counter()
    predict(images)
    seconds = (time.perf_counter() - began) / images * _passes(config, data)
    return (
        f"on this CPU the article's recipe takes about {_rounded(seconds)}; `--config light` is made for photos and a "
        "CPU: a small ImageNet network whose head starts as a linear probe"
    )


def _passes(config: Config, data: ImageData) -> int:
    """Forward passes of an image in the whole recipe."""
    train, scored = len(data.train), len(data.valid) + (len(data.test) if data.test else 0)
    passes = scored * (1 + (config.tta.views if config.tta else 0))
    for stage in config.stages:
        training = 1 if stage.freeze and not config.model.train_bn else _TRAINING
        passes += stage.epochs * (training * train + len(data.valid))
        swept = stage.sweeps(config.lr_find.steps, stage.epochs * (train // config.data.batch), accelerator=False)
        passes += swept * training * config.lr_find.steps * config.data.batch
    return passes


def _rounded(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{round(minutes / 60)} hours"
