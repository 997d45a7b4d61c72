"""Shows how far a long piece of work has come, once it has lasted two seconds."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

PATIENCE_SECONDS = 2.0


class _Rate(ProgressColumn):
    """`1,234 images/s`, or `12.3 MB/s` for bytes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        amount = decimal(int(speed)) if self._unit == "bytes" else f"{speed:,.0f} {self._unit}"
        return Text(f"{amount}/s", style="progress.data.speed")


class Bar:
    """A progress bar with rate and time left that stays away from work done within two seconds.

    It leaves nothing behind when it ends. Any thread may call `advance`.

    Args:
        console: where to draw; None draws nothing.
        label: what is being done.
        total: how much there is to do, in `unit`; it may `grow`.
        unit: what is counted.
    """

    def __init__(self, console: Console | None, label: str, total: int = 0, unit: str = "images") -> None:
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._done = 0
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._console = None
            self._hide()

    def grow(self, amount: int) -> None:
        """Adds `amount` to what there is to do."""
        with self._lock:
            self._total += amount

    def advance(self, amount: int = 1) -> None:
        """Counts `amount` as done."""
        with self._lock:
            self._done += amount
            if self._console is None:
                return
            if self._progress is None:
                if time.monotonic() - self._began < PATIENCE_SECONDS:
                    return
                self._progress = self._shown(self._console)
            self._progress.update(self._task, completed=self._done, total=self._total or None)
            if self._done >= self._total > 0:
                # Gone at once: another bar may follow before this block ends.
                self._hide()

    def _hide(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._began = None, time.monotonic()

    def _shown(self, console: Console) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(self._unit),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=console, transient=True)
        self._task = progress.add_task(self._label, total=self._total or None)
        progress.start()
        return progress
