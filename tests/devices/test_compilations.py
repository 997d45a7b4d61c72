"""Number of programs XLA compiles: one step per stage, for any rates and sizes of the splits, and none twice."""

from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from rich.console import Console

from kbaseline import ImageData, Learner

STEPS = ("train_step", "test_step", "predict_step")
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled() -> Iterator[Counter]:
    """Counts the steps compiled since the test began, or since it cleared the counter."""
    found: Counter = Counter()

    def listen(event: str, seconds: float, **names: str) -> None:
        name = names.get("fun_name", "").removeprefix("jit(").removesuffix(")")
        if event == COMPILED and name in STEPS:
            found[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def learn(tiny_backbone) -> Learner:
    """A learner none of whose splits fills a whole number of batches."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), np.arange(count) % 3

    data = ImageData.from_arrays(split(28), split(21), split(37))
    config = {"data": {"batch_size": 8}, "lr_find": {"steps": 20}, "tta": {"views": 2}, "model": {"hidden": 8}}
    config["runtime"] = {"compilation_cache": False}
    return Learner(data, tiny_backbone, config=config, console=Console(quiet=True))


def test_a_stage_compiles_one_training_step_and_one_validation_step(learn, compiled):
    """Golden: a sweep and fits at any rates, over epochs and partial batches, share them until layers thaw."""
    learn.lr_sweep()
    assert compiled == {"train_step": 1}
    compiled.clear()
    learn.fit_one_cycle(2, slice(1e-4, 1e-3))
    assert compiled == {"predict_step": 1}
    compiled.clear()
    learn.fit(1, 1e-3)
    learn.lr_sweep()
    learn.fit_one_cycle(1, 1e-2)
    learn.evaluate("valid")
    learn.evaluate("test")
    assert compiled == {}  # validation's program
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)
    learn.fit(1, 1e-3)
    assert compiled == {"train_step": 1}  # validation's program does not depend on what trains


def test_all_views_are_one_program(learn, compiled):
    """Golden: test-time augmentation of two splits and partial batches is one program with the current weights."""
    learn.tta("valid")
    before = learn.tta("test").probabilities
    learn.model.get_layer("head_logits").bias.assign([3.0, 0.0, 0.0])
    after = learn.tta("test").probabilities
    assert (after[:, 0] > before[:, 0]).all()
    assert compiled == {"predict_step": 1}
