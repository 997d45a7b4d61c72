"""How many steps the host starts before it waits for the device."""

import jax
import keras
import numpy as np
import pytest
from rich.console import Console

from kbaseline import ImageData, Learner
from kbaseline.training import ahead
from kbaseline.training.ahead import RunAhead


@pytest.mark.parametrize(("step", "most"), [(2.0, 2), (0.3, 2), (0.0099, 50)])
def test_started_steps_are_two_or_half_a_second(monkeypatch: pytest.MonkeyPatch, step: float, most: int) -> None:
    """Golden: a device of one speed, a host that takes no time: as many steps are started as the rule says."""
    clock, ends = 0.0, []  # of the device, step by step

    def wait(number: int) -> None:
        nonlocal clock
        clock = max(clock, ends[number])

    monkeypatch.setattr(jax, "block_until_ready", wait)
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: 100 + clock)
    steps, started = RunAhead(), []
    for number in range(400):
        ends.append(max(clock, ends[-1] if ends else 20.0) + step)  # the first is compiled for 20 seconds
        started.append(sum(end > clock for end in ends))
        steps.add(number)
    assert max(started) <= most
    assert set(started[300:]) == {most}


class Kinds(keras.callbacks.Callback):
    """Asserts that Keras has not wrapped the state of the step, array by array."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        assert type(self.model._jax_state) is dict


def test_training_and_validation_wait(tiny_backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: of five steps and of three validated batches, all but the last are waited for before the next.

    And what the host does at each step stays small: the state is a plain dictionary.
    """
    waited: list[tuple[int, ...]] = []
    monkeypatch.setattr(jax, "block_until_ready", lambda result: waited.append(result.shape))
    monkeypatch.setattr(ahead, "SECONDS", 0.0)
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), np.arange(count) % 3

    config = {"data": {"batch_size": 8}, "model": {"hidden": 8}}
    data = ImageData.from_arrays(split(40), split(48))
    learn = Learner(data, tiny_backbone, config=config, console=Console(quiet=True))
    learn.callbacks.append(Kinds())
    learn.fit(1, 1e-3)
    assert waited == [()] * 4 + [(16, 3)] * 2
