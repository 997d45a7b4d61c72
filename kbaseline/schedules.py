"""Learning-rate schedules as pure functions of the step: one-cycle rate and momentum, and the finder's sweep.

One-cycle: L. N. Smith, "A disciplined approach to neural network hyper-parameters: Part 1",
https://arxiv.org/abs/1803.09820, with fastai's cosine annealing. Sweep: L. N. Smith, "Cyclical learning rates for
training neural networks", https://arxiv.org/abs/1506.01186.
"""

import math
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kbaseline.errors import InputError, checked_count, checked_number
from kbaseline.render.notebook import fragment, paragraphs

if TYPE_CHECKING:
    from kbaseline.render.plots import Plot


def _is_positive(number: float) -> bool:
    return 0 < number < math.inf


@keras.saving.register_keras_serializable(package="kbaseline")
class CosineCycle(LearningRateSchedule):  # type: ignore[misc]
    r"""Cosine from `start` to `peak`, then cosine from `peak` to `end`.

    With $n$ = `total_steps`, $a$ = max(1, ⌊`pct_start` · n⌋) and $s$ the steps since `start_step`,

        value(s) = peak + (start − peak) · sin²(π/2 · (1 − s/a))            for s < a
        value(s) = end + (peak − end) · sin²(π/2 · (1 − (s−a)/(n−a)))       for a ≤ s ≤ n

    and `end` afterwards. $\sin^2(\pi/2 \cdot (1-p))$ equals fastai's $(1+\cos \pi p)/2$, without the cancellation that
    loses float32 precision where the rate is nearly zero.

    Args:
        start, peak, end: values before the first step, at step `a` and after the last step.
        total_steps: length of the cycle in training steps, at least 1.
        pct_start: fraction of the steps before the peak, in (0, 1).
        start_step: training steps that the optimizer has done when the cycle begins, at least 0: its `iterations`, or
            with gradient accumulation its `iterations * gradient_accumulation_steps`, as Keras counts for schedules.

    Raises:
        InputError: an argument outside its range, or not finite.
    """

    def __init__(
        self,
        start: float,
        peak: float,
        end: float,
        total_steps: int,
        pct_start: float = 0.3,
        start_step: int = 0,
    ) -> None:
        values = {"start": start, "peak": peak, "end": end}
        self.start, self.peak, self.end = (
            checked_number(name, value, "a finite number", math.isfinite) for name, value in values.items()
        )
        self.total_steps = checked_count("total_steps", total_steps)
        self.pct_start = checked_number("pct_start", pct_start, "in (0, 1)", lambda share: 0 < share < 1)
        self.start_step = checked_count("start_step", start_step, least=0)

    @property
    def peak_step(self) -> int:
        """Steps from the beginning of the cycle to its peak."""
        return max(1, int(self.total_steps * self.pct_start))

    def __call__(self, step: Any) -> Any:
        """Value at training step `step` (an integer or an integer tensor), a float32 scalar."""
        since = ops.cast(step - self.start_step, "float32")
        return _cosines(since, *self.numbers)

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the value depends on besides the step: three values, three lengths in steps."""
        up, down = self.peak_step, max(1, self.total_steps - self.peak_step)
        return self.start, self.peak, self.end, up, down, self.total_steps

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: {self.start:.3g} to {self.peak:.3g} at step {self.peak_step:,} of "
            f"{self.total_steps:,}, then to {self.end:.3g}"
        )

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        names = ("start", "peak", "end", "total_steps", "pct_start", "start_step")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="kbaseline")
class OneCycle(CosineCycle):
    """The one-cycle learning rate: `max_lr / div` up to `max_lr`, then down to `max_lr / final_div`.

    A schedule for any Keras optimizer: maps an optimizer step to a float32 scalar. Both halves are cosines; after the
    last step the rate is constant. From https://arxiv.org/abs/1803.09820, with the shape and the defaults of fastai
    v1's `callbacks/one_cycle.py`.

    >>> from kbaseline import OneCycle
    >>> cycle = OneCycle(max_lr=1e-3, total_steps=3 * 781)  # 3 epochs of CIFAR-10 in batches of 64
    >>> [f"{cycle(step):.2g}" for step in (0, 351, cycle.peak_step, 2343)]
    ['4e-05', '0.00052', '0.001', '4e-09']

    Args:
        max_lr: the peak rate, above 0.
        total_steps: length of the cycle in training steps, at least 1: steps (batches) per epoch times epochs, with
            gradient accumulation too.
        pct_start: fraction of the steps during which the rate rises, in (0, 1).
        div: the first rate is `max_lr / div`; above 0.
        final_div: the last rate is `max_lr / final_div`; above 0. The default is fastai v1's `div * 1e4`.
        start_step: as for `CosineCycle`.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div: float = 25.0,
        final_div: float = 2.5e5,
        start_step: int = 0,
    ) -> None:
        one = "one positive number (a rate for each group of layers: LayerwiseAdamW's multipliers)"
        self.max_lr = checked_number("max_lr", max_lr, one, _is_positive)
        self.div = checked_number("div", div, "a positive number", _is_positive)
        self.final_div = checked_number("final_div", final_div, "a positive number", _is_positive)
        ends = self.max_lr / self.div, self.max_lr, self.max_lr / self.final_div
        super().__init__(*ends, total_steps, pct_start, start_step)

    def plot(self) -> "Plot":
        """Plots rate and momentum at every step; a Matplotlib figure."""
        from kbaseline.render.plots import plot_schedule

        # As many points as a line can show.
        steps = np.unique(np.linspace(0, self.total_steps - 1, 400).astype(int)) + self.start_step
        columns = (np.asarray(values).tolist() for values in (steps, self(steps), self.momentum()(steps)))
        names = ("step", "lr", "momentum")
        return plot_schedule(
            [{"stage": "", **dict(zip(names, row, strict=True))} for row in zip(*columns, strict=True)]
        )

    def _repr_html_(self) -> str:
        return fragment(paragraphs(repr(self))) + self.plot()._repr_mimebundle_()["text/html"]

    def momentum(self, ends: float = 0.95, middle: float = 0.85) -> CosineCycle:
        """The matching momentum schedule: `ends` at both ends of the cycle, `middle` at the peak of the rate.

        Raises:
            InputError: one of them is not in [0, 1).
        """
        ends = checked_number("ends", ends, "in [0, 1)", lambda beta: 0 <= beta < 1)
        middle = checked_number("middle", middle, "in [0, 1)", lambda beta: 0 <= beta < 1)
        return CosineCycle(ends, middle, ends, self.total_steps, self.pct_start, self.start_step)

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        names = ("max_lr", "total_steps", "pct_start", "div", "final_div", "start_step")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="kbaseline")
class ExponentialSweep(LearningRateSchedule):  # type: ignore[misc]
    """The finder's rate: `start_lr · (end_lr / start_lr) ** (i / steps)` at step i; `end_lr` itself is not reached.

    Args:
        start_lr, end_lr: first rate, and upper end of the sweep.
        steps: length in training steps.
        start_step: as for `CosineCycle`.

    Raises:
        InputError: `start_lr` is not positive or not below `end_lr`, or `steps` is below 1.
    """

    def __init__(self, start_lr: float = 1e-7, end_lr: float = 10.0, steps: int = 100, start_step: int = 0) -> None:
        self.start_lr = checked_number("start_lr", start_lr, "a positive number", _is_positive)
        self.end_lr = checked_number("end_lr", end_lr, "a positive number", _is_positive)
        if not self.start_lr < self.end_lr:
            raise InputError(f"start_lr must be below end_lr; got start_lr {start_lr}, end_lr {end_lr}.")
        self.steps = checked_count("steps", steps)
        self.start_step = checked_count("start_step", start_step, least=0)

    def __call__(self, step: Any) -> Any:
        """Rate at training step `step`, a float32 scalar."""
        since = ops.cast(step - self.start_step, "float32")
        return self.start_lr * ops.exp(math.log(self.end_lr / self.start_lr) / self.steps * since)

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        return {name: getattr(self, name) for name in ("start_lr", "end_lr", "steps", "start_step")}


def _cosines(since: Any, start: Any, peak: Any, end: Any, up: Any, down: Any, total: Any) -> Any:
    """Value of a `CosineCycle` after `since` steps; Python's numbers or scalars of a compiled step."""
    left_up = ops.square(ops.sin(math.pi / 2 * ops.clip((up - since) / up, 0.0, 1.0)))
    left_down = ops.square(ops.sin(math.pi / 2 * ops.clip((total - since) / down, 0.0, 1.0)))
    rise = start * left_up + peak * (1 - left_up)
    fall = peak * left_down + end * (1 - left_down)
    return ops.where(since < up, rise, fall)


NUMBERS = 8
"""How many numbers describe a schedule: its kind, the step at which it begins, and six that depend on the kind."""

_CONSTANT, _SWEEP, _CYCLE = 0.0, 1.0, 2.0


def as_numbers(schedule: Any) -> list[float] | None:
    """A number or a schedule of this module as `NUMBERS` floats for `value_at`; None for any other schedule."""
    if isinstance(schedule, CosineCycle):
        return [_CYCLE, schedule.start_step, *schedule.numbers]
    if isinstance(schedule, ExponentialSweep):
        slope = math.log(schedule.end_lr / schedule.start_lr) / schedule.steps
        return [_SWEEP, schedule.start_step, schedule.start_lr, slope, 0, 1, 1, 1]
    return None if callable(schedule) else [_CONSTANT, 0, float(schedule), 0, 0, 1, 1, 1]


def value_at(numbers: Any, step: Any) -> Any:
    """Value at training step `step` of the schedule that `as_numbers` described, a float32 scalar.

    All kinds are one computation, so that a compiled step serves every schedule.

    Args:
        numbers: float32 `(NUMBERS,)`.
        step: an integer scalar.
    """
    kind, first, start, peak, end, *steps = (numbers[index] for index in range(NUMBERS))
    since = ops.cast(step - ops.cast(first, "int32"), "float32")
    cycle, sweep = _cosines(since, start, peak, end, *steps), start * ops.exp(peak * since)
    return ops.where(kind == _CYCLE, cycle, ops.where(kind == _SWEEP, sweep, start))
