"""Console output during training: progress bars and the epoch table.

Bars are drawn only in a terminal or a notebook; a log file gets the same lines without bars or control characters.
Keras may call the batch methods from other threads, so that reading a loss does not delay the next step on the
accelerator.
"""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import keras
from rich.console import Console
from rich.text import Text

from kbaseline.console.bars import Bar, shows_progress
from kbaseline.console.cell import CellOutput, in_notebook
from kbaseline.console.format import clock, percent, rate

_LOSS_EVERY = 0.5
"""Seconds between two updates of the shown loss: reading it waits for the accelerator."""

_WIDTHS = {"epoch": 5, "train_loss": 10, "valid_loss": 10, "accuracy": 9, "images/s": 9, "time": 8}
"""Columns of the epoch table -> their widths in characters."""


class BatchBar(keras.callbacks.Callback):  # type: ignore[misc]
    """Base of the progress-bar callbacks: shows at most one bar at a time and erases it at the end.

    It is a context manager because Keras calls no method of a callback when training is interrupted.

    Args:
        console: where to draw; a bar is drawn only in an interactive terminal or a notebook.
    """

    # Tells Keras that batch methods may run in its threads. Without it, every step waits until its loss is read.
    async_safe = True

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._cell: CellOutput | None = None
        self._next_loss = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Erases the bar, if there is one, and restores the terminal's cursor."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _open(self, label: str, total: int | None, images_per_batch: float = 0.0) -> None:
        """Draws a bar of `total` batches, or of unknown length if None."""
        self.close()
        if shows_progress(self.console):
            self._next_loss = time.monotonic() + _LOSS_EVERY
            self._bar = Bar(self.console, label, total, per_step=images_per_batch, patience=0, cell=self._cell)

    def _show(self, completed: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar to `completed` batches and, every `_LOSS_EVERY` seconds, shows the loss in `logs`."""
        bar = self._bar
        # A thread may call this after the bar was closed.
        if bar is None:
            return
        note = ""
        if logs and "loss" in logs and time.monotonic() >= self._next_loss:
            self._next_loss = time.monotonic() + _LOSS_EVERY
            note = f"loss {float(logs['loss']):.4f}"
        bar.move_to(completed, note)


class StageTable(BatchBar):
    """Prints a stage of training: a header, then one line per epoch, with a bar while an epoch runs.

        with StageTable("head", epochs=3, images_per_epoch=50_000, console=Console()) as table:
            model.fit(..., epochs=3, callbacks=[table], verbose=0)

    Accuracy is measured on validation, or on training if there is no validation. Images/s covers the training steps
    only; time covers the whole epoch.

    Args:
        stage: the stage's name.
        epochs: number of epochs.
        images_per_epoch: training images of a full epoch.
        console: where to print.
        side: of the training images in pixels, if others are larger.

    Attributes:
        rows: one per epoch: `stage`, `epoch` (from 1), `train_loss`, `valid_loss`, `accuracy` (0 to 1),
            `images_per_s`, `seconds`; None for a missing value.
    """

    def __init__(
        self, stage: str, epochs: int, images_per_epoch: int, console: Console, side: int | None = None
    ) -> None:
        super().__init__(console)
        self._side = side
        self.stage, self.epochs, self.images_per_epoch = stage, epochs, images_per_epoch
        self.rows: list[dict[str, Any]] = []
        self._running = self._header_printed = False
        self._began = self._trained = self._earlier = 0.0
        self._batches = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the running epoch began, 0 between epochs."""
        return time.perf_counter() - self._began if self._running else 0.0

    def resume(self, rows: Sequence[dict[str, Any]], elapsed: float) -> None:
        """Continues the table of an earlier process: its rows, and the seconds it spent on the current epoch."""
        self.rows, self._earlier = list(rows), elapsed

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prints the header and existing rows, once, even if the stage takes several calls of `fit`."""
        if self._header_printed:
            return
        self._header_printed = True
        count = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        count += f", at {self._side} pixels" if self._side else ""
        if in_notebook(self.console):
            self._cell = CellOutput(f"{self.stage}  {count}")
            self._cell.start_table(list(_WIDTHS))
        else:
            self._print(Text.assemble((self.stage, "bold"), f"  {count}"))
            self._print(Text(_line(list(_WIDTHS)), style="dim"))
        for row in self.rows:
            self._print_row(row)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the timers and the bar."""
        steps = self.params.get("steps")
        self._running, self._trained, self._batches = True, 0.0, 0
        label = f"{self.stage} {epoch + 1}/{self.epochs}"
        self._open(label, steps, images_per_batch=self.images_per_epoch / steps if steps else 0.0)
        self._began, self._earlier = time.perf_counter() - self._earlier, 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        with self._lock:
            self._batches = max(self._batches, batch + 1)
            training = self._running and not self._trained
        if training:
            self._show(batch + 1, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the training timer: validation follows."""
        if not self._running or self._trained:
            return
        # Steps run asynchronously on the accelerator; reading the step count waits for the last one.
        keras.ops.convert_to_numpy(self.model.optimizer.iterations)
        self._trained = time.perf_counter() - self._began
        self._open(f"{self.stage}: validation", total=None)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the validation bar."""
        if self._running:
            self._show(batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints and records the epoch."""
        seconds = time.perf_counter() - self._began
        self._running = False
        self.close()
        logs = logs or {}
        trained, steps = self._trained or seconds, self.params.get("steps")
        # A callback can stop training in the middle of an epoch.
        share = min(1.0, self._batches / steps) if steps and self._batches else 1.0
        train_loss, valid_loss = _number(logs.get("loss")), _number(logs.get("val_loss"))
        accuracy = _number(logs.get("val_accuracy", logs.get("accuracy")))
        speed = self.images_per_epoch * share / trained if trained > 0 else None
        self.rows.append(
            {
                "stage": self.stage,
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "valid_loss": valid_loss,
                "accuracy": accuracy,
                "images_per_s": speed,
                "seconds": seconds,
            }
        )
        self._print_row(self.rows[-1])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Erases the bar."""
        self._running = False
        self.close()

    def _print_row(self, row: dict[str, Any]) -> None:
        losses = ["-" if row[name] is None else f"{row[name]:.6f}" for name in ("train_loss", "valid_loss")]
        speed = "-" if row["images_per_s"] is None else rate(row["images_per_s"])
        cells = [str(row["epoch"]), *losses, percent(row["accuracy"]), speed, clock(row["seconds"])]
        if self._cell is None:
            self._print(Text(_line(cells)))
        else:
            self._cell.add_row(cells)

    def _print(self, text: Text) -> None:
        # Soft wrap: a table row must stay on one line.
        self.console.print(text, soft_wrap=True, highlight=False)


class SweepBar(BatchBar):
    """One bar for the steps of a learning-rate sweep, with the running mean of the loss.

    Args:
        steps: training steps of the sweep.
        console: where to draw.
        label: text before the bar.
    """

    def __init__(self, steps: int, console: Console, label: str = "learning-rate sweep") -> None:
        super().__init__(console)
        self.steps, self.label = steps, label
        self._earlier = self._seen = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Draws the bar."""
        self._earlier = self._seen = 0
        self._open(self.label, self.steps)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Continues the count of the last epoch: a sweep over few images takes several epochs."""
        self._earlier = self._seen

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        self._seen = max(self._seen, self._earlier + batch + 1)
        self._show(self._seen, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Erases the bar."""
        self.close()


class PredictBar(BatchBar):
    """One bar for a long prediction, across several calls of `model.predict`.

    Args:
        label: text before the bar.
        batches: total batches of all calls.
        console: where to draw.
    """

    def __init__(self, label: str, batches: int, console: Console) -> None:
        super().__init__(console)
        self.label, self.batches = label, batches
        self._earlier = self._seen = 0

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Draws the bar, or continues the one already shown."""
        if self._bar is None:
            self._seen = 0
            self._open(self.label, self.batches)
        self._earlier = self._seen

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the bar."""
        self._seen = max(self._seen, self._earlier + batch + 1)
        self._show(self._seen)

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Erases the bar after the last batch."""
        if self._seen >= self.batches:
            self.close()


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _line(cells: list[str]) -> str:
    """One line of the epoch table."""
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS.values(), strict=True))
