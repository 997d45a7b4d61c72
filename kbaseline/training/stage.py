"""One stage of training: `model.fit`, with checkpoints, signals and loss checks between its steps.

Keras calls the batch methods of a callback in threads, or else waits for the loss of every step. Saving, stopping and
loss checks must run in the main thread without that wait. They are therefore done by a subclass of `CallbackList`,
which Keras calls in the main thread with logs still on the accelerator.

Validation predicts padded batches and scores them on the host. `model.evaluate` would compile a second program for
the last, smaller batch, and would count padding in its loss.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from kbaseline.console.training import StageTable
from kbaseline.data.batches import ImageBatches
from kbaseline.data.prepare import Split
from kbaseline.devices.multihost import are_several
from kbaseline.devices.predict import predict_batches
from kbaseline.errors import RunError
from kbaseline.optimizer import LayerwiseAdamW
from kbaseline.schedules import CosineCycle
from kbaseline.training.ahead import RunAhead
from kbaseline.training.checkpoint import Checkpoint
from kbaseline.training.session import Session
from kbaseline.training.signals import Interrupts
from kbaseline.training.state import restore, restore_model, state_variables

LOSS_CHECK_STEPS = 20
"""Steps between two checks for a finite loss. Each check reads a loss from before the last check: no wait, one copy."""


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        number: number of stages before it.
        title: its name.
        epochs: passes over the training images.
        steps: training steps per epoch.
        first: the optimizer's `iterations` at its start.
        valid_batch: validation images predicted at once.
    """

    number: int
    title: str
    epochs: int
    steps: int
    first: int
    valid_batch: int


def train(
    model: keras.Model,
    batches: ImageBatches,
    valid: Split,
    stage: Stage,
    table: StageTable,
    history: list[dict[str, Any]],
    session: Session | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    interrupts: Interrupts | None = None,
) -> None:
    """Trains a stage, from its checkpoint if it has one.

    Args:
        model: compiled model.
        batches: all training images, positioned at the epoch before the stage's first.
        valid: the split that every epoch is scored on.
        stage: the stage to train.
        table: prints and collects its rows.
        history: rows of the stages before.
        session: saves checkpoints; None saves none.
        callbacks: further Keras callbacks; to them an epoch that was interrupted looks like two fits.
        interrupts: without a session, ends the stage after the step in which a signal arrived.

    Raises:
        RunError: the loss is not finite, or a checkpoint cannot be written.
        Stopped: a signal was received.
    """
    interrupts = interrupts if session is None else session.interrupts
    start = session.start if session is not None and session.start and session.start.stage == stage.number else None
    begin, skipped = (start.epoch, start.batch) if start else (0, 0)
    if skipped == stage.steps:
        begin, skipped = begin + 1, 0  # trained, but not validated: `on_train_begin` does that
    # The rest of an interrupted epoch needs its own fit: Keras counts the batches once per fit.
    parts = [(begin, begin + 1, skipped)] if skipped else []
    if begin + len(parts) < stage.epochs or not parts:
        parts.append((begin + len(parts), stage.epochs, 0))
    if start is not None:
        table.resume(start.record["history"][len(history) :], start.record["elapsed"])
    callback_list = _StageCallbacks(model, valid, stage, table, callbacks, history, session, start, interrupts)
    earlier = batches.epoch
    try:
        with table, interrupts.deferred() if interrupts else nullcontext():
            for first, last, callback_list.skipped in parts:
                batches.go_to(earlier + first, callback_list.skipped)
                model.fit(
                    batches,
                    initial_epoch=first,
                    epochs=last,
                    shuffle=False,  # the batches are shuffled already, independently of Keras' global random state
                    verbose=0,
                    callbacks=callback_list,
                )
                if model.stop_training:
                    break
    except BaseException:
        callback_list.give_back()
        raise
    batches.go_to(earlier + 1 + stage.epochs)


def applied_rates(optimizer: LayerwiseAdamW, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates and momenta at the optimizer steps `(number,)`; two float arrays `(number,)`."""
    rate, beta_1 = optimizer.schedules
    lrs = rate(steps) if isinstance(rate, CosineCycle) else np.full(len(steps), rate)
    momenta = beta_1(steps) if callable(beta_1) else np.full(len(steps), beta_1)
    return np.asarray(lrs), np.asarray(momenta)


class _StageCallbacks(keras.callbacks.CallbackList):  # type: ignore[misc]
    """The callbacks of a stage; `skipped` counts the batches of this epoch that an earlier process trained."""

    def __init__(
        self,
        model: keras.Model,
        valid: Split,
        stage: Stage,
        table: StageTable,
        callbacks: Sequence[keras.callbacks.Callback],
        history: list[dict[str, Any]],
        session: Session | None,
        start: Checkpoint | None,
        interrupts: Interrupts | None,
    ) -> None:
        every = [table, *callbacks]
        super().__init__(every, add_history=True, model=model, verbose=0, epochs=stage.epochs, steps=stage.steps)
        self.skipped = 0
        self._stage, self._table, self._history = stage, table, history
        self._labels = valid.labels
        # Without labels, so that validation runs the same compiled program as prediction.
        self._valid = ImageBatches(valid.images, batch_size=min(stage.valid_batch, len(valid)), pad=True)
        self._session, self._start, self._interrupts = session, start, interrupts
        self._epoch = 0
        self._held: list[tuple[keras.Variable, Any]] = []
        # Steps and their unread losses. A loss is the mean since the epoch began: once not finite, it stays so.
        self._pending: deque[tuple[int, Any]] = deque()
        self._ahead = RunAhead()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the checkpoint's state; before this call, Keras has not created all variables."""
        super().on_train_begin(logs)
        start = self._start
        if start is None:
            return
        restore_model(self.model, start.state)
        if start.batch == self._stage.steps:
            self._start, self._epoch = None, start.epoch
            super().on_epoch_begin(start.epoch)
            self.on_epoch_end(start.epoch, self.model.get_metrics_result())

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the metric sums, which Keras has just reset, or saves the start of the stage."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        self._pending.clear()
        self._ahead = RunAhead()
        if self.skipped and self._start is not None:
            sums = self.model.metrics_variables
            restore(sums, self._start.state[-len(sums) :])
        elif epoch == 0:
            self._save(0, 0)
        self._start = None
        self._held = [(variable, variable.value) for variable in state_variables(self.model)]

    def give_back(self) -> None:
        """Gives the variables the values that Keras took out of them for an epoch of which no step was finished.

        Keras puts them back after the first step; until then an interrupted compilation would cost the weights.
        """
        for variable, value in self._held:
            if variable._value is None and not value.is_deleted():
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the loss, and saves or stops if due."""
        done = self.skipped + batch + 1
        self._held.clear()
        self._ahead.add((logs or {})["loss"])
        super().on_train_batch_end(done - 1, logs)
        self._pending.append((self._stage.steps * self._epoch + done, (logs or {})["loss"]))
        if done % LOSS_CHECK_STEPS == 0:
            # Computed long ago, so reading them does not wait; and the same steps in every process.
            self._check_losses(len(self._pending) - LOSS_CHECK_STEPS)
        # The last step of an epoch is saved after its validation.
        if self._session is not None and done < self._stage.steps and self._session.checkpoint_due():
            self._check_losses(len(self._pending))
            self.model.jax_state_sync()
            self._save(self._epoch, done)
            self._session.interrupts.raise_if_requested()
        if self._session is None and self._interrupts is not None:
            self._interrupts.raise_if_requested()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Validates, and saves the epoch if its losses are finite."""
        scores = self._validate()
        super().on_epoch_end(epoch, {**(logs or {}), **scores})
        self._check_losses(len(self._pending))
        if not math.isfinite(scores["val_loss"]):
            self._fail(self._stage.steps * (epoch + 1), "validation loss")
        self._save(epoch + 1, 0)
        if self._interrupts is not None:
            self._interrupts.raise_if_requested()

    def _validate(self) -> dict[str, float]:
        """Loss (nats) and accuracy on the validation images, by Keras' names."""
        self.on_test_begin()
        logits = predict_batches(self.model, self._valid, _ValidationCallbacks(self, self._stop_in_validation))
        own = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(logits)), self._labels]
        right = logits.argmax(axis=-1) == self._labels
        scores = {"val_loss": float(-own.mean()), "val_accuracy": float(right.mean())}
        self.on_test_end({name.removeprefix("val_"): value for name, value in scores.items()})
        return scores

    def _stop_in_validation(self) -> None:
        """Saves the epoch as trained but not validated, and stops, if a signal arrived."""
        # The processes of a run would not stop after the same batch.
        if self._session is None or are_several() or not self._session.interrupts.stop_requested():
            return
        self._check_losses(len(self._pending))
        self.model.jax_state_sync()
        self._save(self._epoch, self._stage.steps)
        self._session.interrupts.raise_if_requested()

    def _check_losses(self, count: int) -> None:
        """Checks the last of the first `count` pending losses; if it is not finite, finds the first such step."""
        losses = [self._pending.popleft() for _ in range(count)]
        if losses and not math.isfinite(losses[-1][1]):
            self._fail(next(step for step, loss in losses if not math.isfinite(loss)), "loss")

    def _fail(self, step: int, what: str) -> None:
        stage = self._stage
        highest = applied_rates(self.model.optimizer, np.arange(stage.first, stage.first + step))[0].max()
        raise RunError(
            f"{stage.title}: the {what} is not finite at step {step} of {stage.epochs * stage.steps}, after learning "
            f"rates up to {highest:.1e}; lower max_lr (the finder suggests a value)."
        )

    def _save(self, epoch: int, batch: int) -> None:
        if self._session is None or not self._session.folder.writable:
            return
        # Copies: on a CPU, NumPy would share the buffers that the next step overwrites while this is being written.
        state = [np.array(variable.value) for variable in state_variables(self.model)]
        # A step can make weights infinite or NaN before the loss shows it.
        if all(np.isfinite(array).all() for array in state[: len(self.model.trainable_variables)]):
            rows = [*self._history, *self._table.rows]
            self._session.save((self._stage.number, epoch, batch), state, rows, self._table.elapsed)


class _ValidationCallbacks(keras.callbacks.CallbackList):  # type: ignore[misc]
    """Forwards predicted batches to the callbacks of a fit as validation batches, and calls `after` each."""

    def __init__(self, of_fit: keras.callbacks.CallbackList, after: Callable[[], None]) -> None:
        super().__init__()
        self._of_fit, self._after = of_fit, after
        self._ahead = RunAhead()

    def on_predict_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._of_fit.on_test_batch_begin(batch)

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._ahead.add((logs or {})["outputs"])
        self._of_fit.on_test_batch_end(batch)
        self._after()
