"""The learning-rate finder: a callback that sweeps the rate, and four rules that suggest a rate from its curve.

L. N. Smith, "Cyclical learning rates for training neural networks", https://arxiv.org/abs/1506.01186; the sweep, the
smoothing, the stop and the rules are fastai's.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from kbaseline.errors import InputError, LRFinderError, checked_number, did_you_mean
from kbaseline.optimizer import clone_optimizer, share_step
from kbaseline.render.notebook import Rates, fragment, paragraphs
from kbaseline.schedules import ExponentialSweep

if TYPE_CHECKING:
    from kbaseline.render.plots import Plot

MIN_POINTS = 6
"""Smallest number of points, after trimming, from which a rule can suggest a rate."""

TAIL = 5
"""The last steps of a sweep are ignored: there the loss explodes."""

LEAD_IN = 10
"""The first `planned // LEAD_IN` steps of a sweep are ignored: their rates are so low that the losses are noise."""


def valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """A rate midway down the longest fall of the loss, well before the minimum.

    The fall is the longest strictly decreasing subsequence. The rate lies halfway through its middle third.
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
    """The rate at which the loss falls fastest, with respect to the logarithm of the rate."""
    return float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))])


def slide(lrs: np.ndarray, losses: np.ndarray, lr_diff: int = 15, threshold: float = 0.005) -> float:
    """The first point, from the right, where slopes `lr_diff` points apart differ by at most `threshold`.

    ESRI's rule, as in fastai: a rate shortly before the loss diverges.
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


Rule = Literal["valley", "steep", "slide", "minimum"]
"""The names in `RULES`, for editors to complete."""


@dataclass(frozen=True, eq=False)
class LRCurve:
    """Rates and losses of a sweep, and the learning rates that four rules suggest from them.

    >>> import numpy as np
    >>> from kbaseline.lr_finder import LRCurve
    >>> lrs = np.geomspace(1e-7, 10, 100)
    >>> losses = np.interp(np.log10(lrs), [-7, -4, -1, 1], [2.3, 2.3, 1.0, 9.0])  # falls from 1e-4 to 1e-1
    >>> curve = LRCurve(lrs, losses, losses)
    >>> print(f"valley {curve.suggest('valley'):.0e}, minimum {curve.suggest('minimum'):.0e}")
    valley 2e-03, minimum 1e-02

    Attributes:
        lrs: float64 `(steps,)`, the rate of each step, in ascending order.
        losses: float64 `(steps,)`, the loss of each step's batch.
        smoothed: float64 `(steps,)`, the bias-corrected moving average of `losses`, which the rules read.
        planned: number of steps planned; the sweep may have stopped earlier.
    """

    lrs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    planned: int = 100

    def suggest(self, rule: Rule | str = "valley") -> float:
        """Suggests a learning rate by one of the rules of fastai v2's `callback/schedule.py`.

        The rules ignore the first tenth of the planned steps, the last five steps, and everything from the first loss
        that is not finite.

        Args:
            rule: `"valley"`, `"steep"`, `"slide"` or `"minimum"`.

        Raises:
            InputError: an unknown rule.
            LRFinderError: the curve has too few points, or the loss never fell.
        """
        if rule not in RULES:
            raise InputError(f"rule {rule!r}: must be one of {', '.join(RULES)}.{did_you_mean(rule, RULES)}")
        kept = slice(self.planned // LEAD_IN, max(len(self.lrs) - TAIL, 0))
        lrs, losses = self.lrs[kept], self.smoothed[kept]
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            lrs, losses = lrs[: bad[0]], losses[: bad[0]]
        if len(losses) < MIN_POINTS:
            raise LRFinderError(
                f"learning-rate finder: {len(losses)} usable points of {len(self.lrs)} steps, but {MIN_POINTS} are "
                "needed; use more steps, or a lower start_lr if the loss was not finite."
            )
        if not (np.diff(losses) < 0).any():
            raise LRFinderError(
                f"learning-rate finder: the loss never fell between {lrs[0]:.1e} and {lrs[-1]:.1e}; check the labels, "
                "or widen the sweep."
            )
        return RULES[rule](lrs, losses)

    def suggestions(self) -> Rates:
        """The rate of every rule, a dictionary. Raises as `suggest` does."""
        return Rates({rule: self.suggest(rule) for rule in RULES})

    def plot(self, title: str = "", *, chosen: float | None = None) -> "Plot":
        """Plots the curve, with the suggestions marked if there are any; a Matplotlib figure.

        Args:
            title: above the plot.
            chosen: a rate to mark.
        """
        from kbaseline.render.plots import plot_lr_find

        try:
            suggestions = self.suggestions()
        except LRFinderError:
            suggestions = Rates()
        return plot_lr_find([self.plot_data(title, suggestions, chosen)])

    def plot_data(self, title: str, suggestions: Mapping[str, float], chosen: float | None) -> dict[str, Any]:
        """The curve as `render.plots.plot_lr_find` takes it."""
        arrays = {"lrs": self.lrs, "losses": self.losses, "smoothed": self.smoothed}
        return {"title": title, **arrays, "suggestions": suggestions, "chosen": chosen}

    def __repr__(self) -> str:
        lines = [f"LRCurve: {len(self.lrs):,} of {self.planned:,} steps"]
        if len(self.lrs):
            lines[0] += f", rates from {self.lrs[0]:.1e} to {self.lrs[-1]:.1e}"
        try:
            return "\n".join([*lines, f"suggested rates: {self.suggestions()!r}"])
        except LRFinderError as error:
            return "\n".join([*lines, f"no suggestion: {error}"])

    def _repr_html_(self) -> str:
        # The line of suggestions stands in the plot's legend, unless there are none.
        text = repr(self)
        line = text if "no suggestion" in text else text.split("\n")[0]
        return fragment(paragraphs(line)) + self.plot()._repr_mimebundle_()["text/html"]

    def rows(self) -> list[dict[str, float]]:
        """One row per step: step, learning_rate, loss, smoothed_loss."""
        columns = zip(self.lrs, self.losses, self.smoothed, strict=True)
        return [
            {"step": i, "learning_rate": float(lr), "loss": float(loss), "smoothed_loss": float(smooth)}
            for i, (lr, loss, smooth) in enumerate(columns)
        ]


class LRFinder(keras.callbacks.Callback):  # type: ignore[misc]
    """Finds a learning rate for any compiled Keras model, then restores the model.

    A callback. Every step of `fit` trains at a higher rate, `start_lr * (end_lr / start_lr) ** (i / steps)`. `fit`
    stops after `steps` steps, or when the smoothed loss exceeds `stop_factor` times its lowest value or is not finite.
    Then weights, BatchNorm statistics, seeds (Python's and NumPy's too), optimizer, learning rate and compiled step are
    restored bit for bit, also when Ctrl-C or an error ends `fit`; the sweep trains with a copy of the optimizer. Other
    callbacks may stand before or after; what they do to weights or rate during the sweep, or at its end as
    `EarlyStopping` does, is undone. With gradient accumulation the steps are still batches.

    The idea is from https://arxiv.org/abs/1506.01186; sweep, smoothing and stop criterion are fastai v1's
    (`callbacks/lr_finder.py`), with one exception: the lowest loss is taken only after the first tenth of the steps,
    and a finite loss stops the sweep only when there are enough points to suggest a rate. Otherwise one easy batch at
    the start could make normal losses look like divergence. A loss that falls below zero, such as a cosine similarity,
    has diverged when it has risen from there by `stop_factor - 1` times the larger of its lowest and its first value.

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
        start_lr, end_lr: first rate, above 0, and upper end of the sweep (the last rate used is one step below it).
        steps: number of training steps, at least 1; `fit` needs enough epochs for them.
        beta: decay of the moving average of the losses, in [0, 1).
        stop_factor: the sweep stops when the smoothed loss exceeds its lowest value by this factor; above 1.

    Attributes:
        curve: the `LRCurve` of the last fit: rates, losses, and `suggest`.

    Raises:
        InputError: an argument is outside its range; in `fit`: the model was compiled with `steps_per_execution` above
            1, which hides steps from callbacks, or with an optimizer that wraps another one.
        LRFinderError: from `curve`, before the first `fit`; it is an `AttributeError` too.
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
        self.beta = checked_number("beta", beta, "in [0, 1)", lambda share: 0 <= share < 1)
        self.stop_factor = checked_number("stop_factor", stop_factor, "above 1", lambda factor: factor > 1)
        self._undo: Callable[[], None] | None = None
        self._sweeping = False

    @property
    def curve(self) -> LRCurve:
        """The sweep's curve.

        Raises:
            LRFinderError: no sweep has run.
        """
        if not getattr(self, "_losses", None):
            raise _NoCurveError("learning-rate finder: there is no curve yet; pass the callback to model.fit first.")
        count = len(self._losses)
        start, ratio = self.schedule.start_lr, self.schedule.end_lr / self.schedule.start_lr
        lrs = start * ratio ** (np.arange(count) / self.schedule.steps)
        return LRCurve(lrs, np.array(self._losses), np.array(self._smoothed), self.schedule.steps)

    def __repr__(self) -> str:
        sweep = self.schedule
        found = repr(self.curve) if getattr(self, "_losses", None) else "no sweep has run; pass it to model.fit"
        return f"LRFinder: {sweep.start_lr:.1e} to {sweep.end_lr:.1e} in {sweep.steps:,} steps\n{found}"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Saves the state of the model and installs the sweep's optimizer."""
        self.restore()
        model = self.model
        if model.steps_per_execution != 1:
            raise InputError(
                f"LRFinder: steps_per_execution must be 1, because callbacks see no other steps; got "
                f"{model.steps_per_execution}. Compile the model without it."
            )
        optimizer, step = model.optimizer, model.train_function
        # Copies: on a CPU, numpy may share the buffer that the compiled step will overwrite.
        values = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.variables]
        # Keras shuffles with Python's and NumPy's global generators.
        drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
        # A number, not the sweep's schedule: Keras' callbacks that set the rate raise for a schedule.
        copy = clone_optimizer(optimizer, model.trainable_variables, learning_rate=self.schedule.start_lr)

        def undo() -> None:
            for variable, value in values:
                variable.assign(value)
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])  # noqa: NPY002
            model.optimizer, model.train_function = optimizer, step
            model.reset_metrics()

        self._undo, self._sweeping = undo, True
        # `fit` calls this however it ends; `on_train_end` only if nothing was raised.
        copy.finalize_variable_values = lambda variables: self.restore()
        model.optimizer = copy
        if not share_step(optimizer, copy):
            model.make_train_function(force=True)
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._average, self._best = 0.0, math.inf

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate of the step, and resets the loss: Keras reports the mean since the last reset."""
        self.model.reset_metrics()
        self.model.optimizer.learning_rate = float(self.schedule(len(self._losses)))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the loss of the batch and stops training at the end of the sweep or on divergence."""
        loss = float((logs or {})["loss"])
        if hasattr(self.model, "jax_state_sync"):  # else Keras would go on with rate and loss of this step
            self.model.jax_state_sync()
        self._average = self.beta * self._average + (1 - self.beta) * loss
        smooth = self._average / (1 - self.beta ** (len(self._losses) + 1))
        self._losses.append(loss)
        self._smoothed.append(smooth)
        done, lead_in = len(self._losses), self.schedule.steps // LEAD_IN
        if done > lead_in:
            self._best = min(self._best, smooth)
        diverged = smooth > self._limit() and done >= lead_in + MIN_POINTS + TAIL
        if diverged or not math.isfinite(smooth) or done >= self.schedule.steps:
            self.model.stop_training = True

    def _limit(self) -> float:
        """The smoothed loss above which the sweep has diverged."""
        if self._best > 0:
            return self.stop_factor * self._best
        # A multiple of a negative loss lies below it.
        return self._best + (self.stop_factor - 1) * max(-self._best, abs(self._smoothed[0]))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the model again: EarlyStopping, for one, has just set the best weights of the sweep, or will."""
        undo, self._undo = self._undo, None
        history, params = self.model.history, self.params
        if undo is None:
            return
        undo()

        def last(logs: dict[str, Any] | None = None) -> None:
            del history.on_train_end
            if history.params is params:  # else it stood before the finder, and this is the end of a later fit
                undo()

        # Keras calls its own History after all callbacks that were given to `fit`.
        history.on_train_end = last

    def restore(self) -> None:
        """Restores the model if a sweep began and did not end.

        `fit` does so itself, except where another callback raises in `on_train_begin`: then call this. The next sweep
        of this finder begins with it.
        """
        if self._sweeping and self._undo is not None:
            self._undo()
        self._sweeping = False


class _NoCurveError(LRFinderError, AttributeError):
    """`hasattr(finder, "curve")` is False before the first sweep."""
