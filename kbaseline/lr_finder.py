"""The learning-rate finder: a callback that sweeps the rate and leaves no trace, and four rules that read its curve.

L. N. Smith, "Cyclical learning rates for training neural networks", https://arxiv.org/abs/1506.01186; the sweep, the
smoothing, the stop and the rules are fastai's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kbaseline.errors import InputError, LRFinderError, did_you_mean
from kbaseline.optimizer import clone_optimizer
from kbaseline.schedules import ExponentialSweep

MIN_POINTS = 6
"""Fewer points than these, after trimming, cannot show where a loss falls."""

LEAD_IN = 10
"""A sweep's first steps, planned steps over this, train at next to no rate: their losses are the batches' luck."""


def valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """Midway down the longest fall of the loss: a rate on the slope, well before its foot.

    The fall is the longest strictly decreasing subsequence; the answer lies half of a third past its first third.
    """
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        below = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + (below.max() if below.size else 0)
    end = int(lengths.argmax())
    start = end - int(lengths[end])
    third = (end - start) / 3
    return float(lrs[max(start + int(third) + int(third / 2), 0)])


def steep(lrs: np.ndarray, losses: np.ndarray) -> float:
    """The rate where the loss falls fastest per log rate."""
    return float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))])


def slide(lrs: np.ndarray, losses: np.ndarray, lr_diff: int = 15, threshold: float = 0.005) -> float:
    """From the right, the first place where the slopes `lr_diff` points apart differ by no more than `threshold`.

    ESRI's rule, as in fastai: a rate shortly before the loss explodes.
    """
    slopes = np.gradient(losses)
    right, left = -1, -1 - min(lr_diff, len(losses) - 1)
    answer = lrs[left]
    while left >= -len(losses) and abs(slopes[right] - slopes[left]) > threshold:
        answer = lrs[left]
        right, left = right - 1, left - 1
    return float(answer)


def minimum(lrs: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate with the lowest loss."""
    return float(lrs[np.argmin(losses)]) / 10


RULES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "valley": valley,
    "steep": steep,
    "slide": slide,
    "minimum": minimum,
}


@dataclass(frozen=True, eq=False)
class LRCurve:
    """What a sweep saw, and the rates that four rules read off it.

    >>> import numpy as np
    >>> from kbaseline.lr_finder import LRCurve
    >>> lrs = np.geomspace(1e-7, 10, 100)
    >>> losses = np.interp(np.log10(lrs), [-7, -4, -1, 1], [2.3, 2.3, 1.0, 9.0])  # falls from 1e-4 to 1e-1
    >>> curve = LRCurve(lrs, losses, losses)
    >>> print(f"valley {curve.suggest('valley'):.0e}, minimum {curve.suggest('minimum'):.0e}")
    valley 2e-03, minimum 1e-02

    Attributes:
        lrs: float64 `(steps,)`, the rate of each step, rising.
        losses: float64 `(steps,)`, the loss of each step's batch.
        smoothed: float64 `(steps,)`, their debiased moving average, which the rules read.
        planned: steps the sweep was meant to take; it may have stopped earlier.
    """

    lrs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    planned: int = 100

    def suggest(self, rule: str = "valley") -> float:
        """A learning rate by one of the rules of fastai v2's `callback/schedule.py`.

        The first tenth of the planned steps and the last five are left out, and everything from the first loss that
        is not finite.

        Args:
            rule: `"valley"`, `"steep"`, `"slide"` or `"minimum"`.

        Raises:
            InputError: an unknown rule.
            LRFinderError: too few points, or a loss that never fell.
        """
        if rule not in RULES:
            raise InputError(f"rule {rule!r}: must be one of {', '.join(RULES)}.{did_you_mean(rule, RULES)}")
        kept = slice(self.planned // LEAD_IN, max(len(self.lrs) - 5, 0))
        lrs, losses = self.lrs[kept], self.smoothed[kept]
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            lrs, losses = lrs[: bad[0]], losses[: bad[0]]
        if len(losses) < MIN_POINTS:
            raise LRFinderError(
                f"learning-rate finder: {len(losses)} usable points of {len(self.lrs)} steps, and {MIN_POINTS} are "
                "needed; give more steps, or start at a lower rate if the loss was not finite."
            )
        if not (np.diff(losses) < 0).any():
            raise LRFinderError(
                f"learning-rate finder: the loss never fell between {lrs[0]:.1e} and {lrs[-1]:.1e}; check the labels, "
                "or widen the sweep."
            )
        return RULES[rule](lrs, losses)

    def suggestions(self) -> dict[str, float]:
        """Every rule's rate. Raises as `suggest` does."""
        return {rule: self.suggest(rule) for rule in RULES}

    def rows(self) -> list[dict[str, float]]:
        """One row a step: step, learning_rate, loss, smoothed_loss."""
        columns = zip(self.lrs, self.losses, self.smoothed, strict=True)
        return [
            {"step": i, "learning_rate": float(lr), "loss": float(loss), "smoothed_loss": float(smooth)}
            for i, (lr, loss, smooth) in enumerate(columns)
        ]


class LRFinder(keras.callbacks.Callback):  # type: ignore[misc]
    """Finds a learning rate for any compiled Keras model, and leaves the model as it was.

    A callback. Every step of a fit trains at a higher rate, `start_lr * (end_lr / start_lr) ** (i / steps)`. The fit
    ends by itself after `steps` steps, or when the smoothed loss exceeds `stop_factor` times its best or is not finite.
    Then weights, BatchNorm statistics, seeds, optimizer, learning rate and compiled step are put back, bit by bit: the
    sweep trains with a copy of the optimizer. The idea is https://arxiv.org/abs/1506.01186; sweep, smoothing and stop
    are fastai v1's (`callbacks/lr_finder.py`), but for one thing: the best loss is sought after the first tenth of the
    steps, because a model that is nearly right may meet one easy batch, and the next is no divergence.

    >>> from kbaseline import LRFinder
    >>> import keras
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(640, 8))
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.Adam(), "mse")
    >>> finder = LRFinder(steps=50)
    >>> _ = model.fit(x, x.sum(axis=1), epochs=10, verbose=0, callbacks=[finder])
    >>> 1e-3 < finder.curve.suggest("valley") < 1
    True

    Args:
        start_lr, end_lr: first rate, above 0, and the rate the sweep heads for (the last one used is a step below it).
        steps: training steps, at least 1; give `fit` enough epochs for them.
        beta: decay of the losses' moving average, in [0, 1).
        stop_factor: how many times its best the smoothed loss may become; above 1.

    Attributes:
        curve: the `LRCurve` of the last fit: rates, losses, and `suggest`.

    Raises:
        InputError: rates that do not rise from above 0, or no steps; and in `fit`, a model that was compiled with
            `steps_per_execution` above 1, which hides steps from callbacks, or with an optimizer that wraps another.
        LRFinderError: from `curve`, where there was no fit.
    """

    def __init__(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        steps: int = 100,
        beta: float = 0.98,
        stop_factor: float = 4.0,
    ) -> None:
        super().__init__()
        self.schedule = ExponentialSweep(start_lr, end_lr, steps)
        self.beta, self.stop_factor = beta, stop_factor
        self._undo: Callable[[], None] | None = None

    @property
    def curve(self) -> LRCurve:
        """The sweep's curve.

        Raises:
            LRFinderError: no sweep was run.
        """
        if not getattr(self, "_losses", None):
            raise LRFinderError("learning-rate finder: there is no curve yet; pass the callback to model.fit first.")
        count = len(self._losses)
        start, ratio = self.schedule.start_lr, self.schedule.end_lr / self.schedule.start_lr
        lrs = start * ratio ** (np.arange(count) / self.schedule.steps)
        return LRCurve(lrs, np.array(self._losses), np.array(self._smoothed), self.schedule.steps)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Remembers everything and swaps in the sweep."""
        model = self.model
        if model.steps_per_execution != 1:
            raise InputError(
                f"LRFinder: steps_per_execution must be 1, or steps are hidden; got {model.steps_per_execution}. "
                "Compile without it."
            )
        optimizer, step = model.optimizer, model.train_function
        # Copies: on a CPU, numpy may share the very buffer that the compiled step will overwrite.
        values = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.variables]
        sweep = ExponentialSweep(
            self.schedule.start_lr, self.schedule.end_lr, self.schedule.steps, int(optimizer.iterations)
        )
        model.optimizer = clone_optimizer(optimizer, model.trainable_variables, learning_rate=sweep)
        model.make_train_function(force=True)

        def undo() -> None:
            for variable, value in values:
                variable.assign(value)
            model.optimizer, model.train_function = optimizer, step
            model.reset_metrics()

        self._undo = undo
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._average, self._best = 0.0, math.inf

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the batch's loss and decides whether to go on."""
        loss = float((logs or {})["loss"])
        # Keras reports a running mean since the epoch's start; starting it anew makes it the batch's own.
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.model.reset_metrics()
        self._average = self.beta * self._average + (1 - self.beta) * loss
        smooth = self._average / (1 - self.beta ** (len(self._losses) + 1))
        self._losses.append(loss)
        self._smoothed.append(smooth)
        if len(self._losses) > self.schedule.steps // LEAD_IN:
            self._best = min(self._best, smooth)
        diverged = not math.isfinite(smooth) or smooth > self.stop_factor * self._best
        if diverged or len(self._losses) >= self.schedule.steps:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts everything back."""
        self.restore()

    def restore(self) -> None:
        """Puts everything back after a fit that was interrupted; Keras calls `on_train_end` only after a whole one."""
        if self._undo is not None:
            self._undo()
            self._undo = None
