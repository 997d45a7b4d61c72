"""The progress bar used for all long work: rate and time left, erased when it ends."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from kbaseline.console.cell import CellBar, CellOutput, in_notebook
from kbaseline.console.format import rate

PATIENCE_SECONDS = 2.0
"""Work that ends within this time shows no bar."""


class _Rate(ProgressColumn):
    """`1,234 images/s`, or `12.3 MB/s` for bytes; empty while it is unknown."""

    def __init__(self, unit: str, per_step: float) -> None:
        super().__init__()
        self._unit, self._per_step = unit, per_step

    def render(self, task: Task) -> Text:
        speed = (task.finished_speed or task.speed or 0.0) * self._per_step
        if not speed:
            return Text("")
        amount = decimal(int(speed)) if self._unit == "bytes" else f"{rate(speed)} {self._unit}"
        return Text(f"{amount}/s", style="progress.data.speed")


class Bar:
    """A progress bar with rate and time left, drawn only in a terminal or a notebook and erased when it ends.

    Any thread may update it.

    Args:
        console: where to draw; None draws nothing.
        label: text before the bar.
        total: number of steps; `grow` adds to it. None if unknown.
        unit: unit of the rate.
        per_step: units per step. If given, the bar shows steps done, otherwise percent.
        patience: seconds before the bar appears; None for `PATIENCE_SECONDS`.
        cell: in a notebook, the output below whose table to draw; None for an output of its own.
    """

    def __init__(
        self,
        console: Console | None,
        label: str,
        total: int | None = 0,
        unit: str = "images",
        *,
        per_step: float | None = None,
        patience: float | None = None,
        cell: CellOutput | None = None,
    ) -> None:
        self._console = console if console is not None and shows_progress(console) else None
        self._cell = cell
        self._label, self._total, self._unit, self._per_step = label, total, unit, per_step
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._done, self._note = 0, ""
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._progress: _TerminalBar | CellBar | None = None
        if self._patience <= 0:
            self.move_to(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Erases the bar for good and restores the terminal's cursor."""
        with self._lock:
            self._console = None
            self._hide()

    def grow(self, amount: int) -> None:
        """Adds `amount` to the total."""
        with self._lock:
            self._total = (self._total or 0) + amount

    def advance(self, amount: int = 1) -> None:
        """Counts `amount` more steps as done."""
        with self._lock:
            self._show(self._done + amount)
            if self._total and self._done >= self._total:
                # Hidden at once: another bar may start before this block ends.
                self._hide()

    def move_to(self, done: int, note: str = "") -> None:
        """Moves the bar to `done` steps, never back, and shows `note` beside it until the next note."""
        with self._lock:
            self._note = note or self._note
            self._show(done)

    def _show(self, done: int) -> None:
        self._done = max(self._done, done)
        if self._console is None:
            return
        if self._progress is None:
            if time.monotonic() - self._began < self._patience:
                return
            self._progress = self._drawn(self._console)
        self._progress.move(self._done, self._total or None, self._note)

    def _hide(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._began = None, time.monotonic()

    def _drawn(self, console: Console) -> "_TerminalBar | CellBar":
        if in_notebook(console):
            self._cell = self._cell or CellOutput()
            return CellBar(self._cell, self._label, self._unit, self._per_step)
        return _TerminalBar(console, self._label, self._unit, self._per_step)


class _TerminalBar(Progress):
    """A bar drawn by Rich; its arguments are those of `CellBar`, but for the console."""

    def __init__(self, console: Console, label: str, unit: str, per_step: float | None) -> None:
        percent = TextColumn("{task.percentage:>3.0f} %", "progress.percentage")
        count: ProgressColumn = percent if per_step is None else MofNCompleteColumn()
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            count,
            _Rate(unit, 1.0 if per_step is None else per_step),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            expand=True,
        )
        self.add_task(label, total=None, note="")
        self.start()

    def move(self, done: int, total: int | None, note: str) -> None:
        self.update(self.tasks[0].id, completed=done, total=total, note=note)


def shows_progress(console: Console) -> bool:
    """Whether a bar on this console is drawn."""
    return console.is_interactive or in_notebook(console)


@contextmanager
def status(console: Console, text: str) -> Iterator[None]:
    """Shows a text while a block of unknown duration runs, in a terminal or a notebook."""
    if not in_notebook(console):
        with console.status(text):
            yield
        return
    cell = CellOutput()
    cell.set_bar(f"<div>{escape(text)} …</div>")
    try:
        yield
    finally:
        cell.set_bar("")
