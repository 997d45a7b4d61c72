"""One stage of training: `model.fit`, with what happens between two of its steps.

Keras calls the batch methods of a callback in threads, or else waits for each step's loss first. What must happen in
the main thread and must not wait — saving, stopping, a look at the loss — is therefore done by the list of callbacks
itself, which Keras calls in the main thread and with logs still on the accelerator.

Validation predicts padded batches and scores them on the host: `model.evaluate` would compile a second program for
the last, smaller batch, and weigh padding in its loss.
"""

import math
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from kbaseline.console.training import StageTable
from kbaseline.data.batches import ImageBatches
from kbaseline.data.prepare import Split
from kbaseline.devices.parallel import predict_batches
from kbaseline.errors import InputError, RunError
from kbaseline.optimizer import LayerwiseAdamW
from kbaseline.schedules import CosineCycle
from kbaseline.training.checkpoint import Checkpoint
from kbaseline.training.session import Session

LOOK_EVERY = 20
"""Steps between two looks at the loss, at what was computed before the last look: reading one costs a copy."""


@dataclass(frozen=True)
class Stage:
    """A stage as training sees it.

    Attributes:
        number: stages before it.
        title: its name.
        epochs: passes over the training images.
        steps: training steps an epoch.
        first: the optimizer's `iterations` where it begins.
    """

    number: int
    title: str
    epochs: int
    steps: int
    first: int


def train(
    model: keras.Model,
    batches: ImageBatches,
    valid: Split,
    stage: Stage,
    table: StageTable,
    history: list[dict[str, Any]],
    session: Session | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a stage, from where its checkpoint stands if it has one.

    Args:
        model: compiled.
        batches: the training images, all of them, at the epoch before the stage's first.
        valid: what every epoch is scored on.
        stage: which one.
        table: prints and holds its rows.
        history: the rows of the stages before.
        session: keeps checkpoints; None keeps none.
        callbacks: further Keras callbacks; one of them sees an epoch that was interrupted as two fits.

    Raises:
        RunError: the loss is not finite, or a checkpoint cannot be written.
        Stopped: a signal asked for it.
    """
    start = session.start if session is not None and session.start and session.start.stage == stage.number else None
    begin, skipped = (start.epoch, start.batch) if start else (0, 0)
    # What is left of an epoch is a fit of its own: Keras counts the batches once a fit.
    parts = [(begin, begin + 1, skipped)] if skipped else []
    if begin + len(parts) < stage.epochs or not parts:
        parts.append((begin + len(parts), stage.epochs, 0))
    if start is not None:
        table.go_on(start.record["history"][len(history) :], start.record["elapsed"])
    watch = _Watch(model, valid, 2 * batches.batch_size, stage, table, callbacks, history, session, start)
    earlier = batches.epoch
    with table, session.interrupts.deferred() if session else nullcontext():
        for first, last, watch.skipped in parts:
            batches.go_to(earlier + first, watch.skipped)
            model.fit(
                batches,
                initial_epoch=first,
                epochs=last,
                shuffle=False,  # the batches have their own order; Keras' comes from global random state
                verbose=0,
                callbacks=watch,
            )
    batches.go_to(earlier + 1 + stage.epochs)


def applied_rates(optimizer: LayerwiseAdamW, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and momentum at optimizer steps `(number,)`."""
    rate, beta_1 = optimizer.schedules
    lrs = rate(steps) if isinstance(rate, CosineCycle) else np.full(len(steps), rate)
    momenta = beta_1(steps) if callable(beta_1) else np.full(len(steps), beta_1)
    return np.asarray(lrs), np.asarray(momenta)


class _Watch(keras.callbacks.CallbackList):  # type: ignore[misc]
    """The callbacks of a stage; `skipped` batches of the running epoch were trained by an earlier process."""

    def __init__(
        self,
        model: keras.Model,
        valid: Split,
        batch_size: int,
        stage: Stage,
        table: StageTable,
        callbacks: Sequence[keras.callbacks.Callback],
        history: list[dict[str, Any]],
        session: Session | None,
        start: Checkpoint | None,
    ) -> None:
        every = [table, *callbacks]
        super().__init__(every, add_history=True, model=model, verbose=0, epochs=stage.epochs, steps=stage.steps)
        self.skipped = 0
        self._stage, self._table, self._history = stage, table, history
        self._labels = valid.labels
        # Without labels, as prediction has them: it runs the same program.
        self._valid = ImageBatches(valid.images, batch_size=min(batch_size, len(valid)), pad=True)
        self._session, self._start = session, start
        self._epoch = 0
        # Steps whose loss nobody has read, and that loss: the mean since the epoch began, so that once it is not
        # finite it stays so.
        self._unread: deque[tuple[int, Any]] = deque()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the checkpoint's state in place; only now Keras has made all of its variables."""
        super().on_train_begin(logs)
        if self._start is not None:
            _restore(_variables(self.model), self._start.state)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the sums of the metrics in place, which Keras has just reset, or keeps the stage's beginning."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        self._unread.clear()
        if self.skipped and self._start is not None:
            sums = self.model.metrics_variables
            _restore(sums, self._start.state[-len(sums) :])
        elif epoch == 0:
            self._save(0, 0)
        self._start = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the loss, saves and stops where it is time."""
        done = self.skipped + batch + 1
        super().on_train_batch_end(done - 1, logs)
        self._unread.append((self._stage.steps * self._epoch + done, (logs or {})["loss"]))
        if done % LOOK_EVERY == 0:
            # Long since computed, so that reading them waits for nothing; and the same ones in every process.
            self._look(len(self._unread) - LOOK_EVERY)
        # The last step of an epoch is saved together with its validation.
        if self._session is not None and done < self._stage.steps and self._session.due():
            self._look(len(self._unread))
            self.model.jax_state_sync()
            self._save(self._epoch, done)
            self._session.interrupts.raise_if_asked()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Validates, and keeps the epoch if its losses are finite."""
        figures = self._validate()
        super().on_epoch_end(epoch, {**(logs or {}), **figures})
        self._look(len(self._unread))
        if not math.isfinite(figures["val_loss"]):
            self._fail(self._stage.steps * (epoch + 1), "validation loss")
        self._save(epoch + 1, 0)
        if self._session is not None:
            self._session.interrupts.raise_if_asked()

    def _validate(self) -> dict[str, float]:
        """Loss (nats) and accuracy on the validation images, under Keras' names."""
        self.on_test_begin()
        logits = predict_batches(self.model, self._valid, [_AsTest(self)])
        own = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(logits)), self._labels]
        right = logits.argmax(axis=-1) == self._labels
        figures = {"val_loss": float(-own.mean()), "val_accuracy": float(right.mean())}
        self.on_test_end({name.removeprefix("val_"): value for name, value in figures.items()})
        return figures

    def _look(self, count: int) -> None:
        """Reads the last of the first `count` unread losses, and if it is not finite those before it too."""
        seen = [self._unread.popleft() for _ in range(count)]
        if seen and not math.isfinite(seen[-1][1]):
            self._fail(next(step for step, loss in seen if not math.isfinite(loss)), "loss")

    def _fail(self, step: int, what: str) -> None:
        stage = self._stage
        highest = applied_rates(self.model.optimizer, np.arange(stage.first, stage.first + step))[0].max()
        raise RunError(
            f"{stage.title}: the {what} is not finite at step {step} of {stage.epochs * stage.steps}, after rates up "
            f"to {highest:.1e}; lower max_lr (the finder suggests one)."
        )

    def _save(self, epoch: int, batch: int) -> None:
        if self._session is None or not self._session.folder.written:
            return
        state = [np.asarray(variable.value) for variable in _variables(self.model)]
        # A step can spoil the weights before any loss shows it.
        if all(np.isfinite(array).all() for array in state[: len(self.model.trainable_variables)]):
            rows = [*self._history, *self._table.rows]
            self._session.save((self._stage.number, epoch, batch), state, rows, self._table.elapsed)


class _AsTest(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the callbacks of a fit that a predicted batch is one of its validation."""

    async_safe = True

    def __init__(self, told: keras.callbacks.CallbackList) -> None:
        super().__init__()
        self._told = told

    def on_predict_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._told.on_test_batch_begin(batch)

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._told.on_test_batch_end(batch)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """The state of the compiled step, in Keras' order, the metrics' sums last."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]


def _restore(variables: Sequence[keras.Variable], state: Sequence[np.ndarray]) -> None:
    if [tuple(variable.shape) for variable in variables] != [array.shape for array in state]:
        raise InputError("checkpoint: does not belong to this model and optimizer; start a new run.")
    for variable, array in zip(variables, state, strict=True):
        # NumPy writes bfloat16, which it does not know, as two bytes without a meaning.
        variable.assign(array.view(variable.dtype) if array.dtype.kind == "V" else array)
