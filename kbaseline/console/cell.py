"""Progress in a notebook: one output of a cell that is updated in place, without ipywidgets.

Rich draws its bars in a notebook only with ipywidgets, and warns without them.
"""

import time
from html import escape
from typing import Any

from rich.console import Console

from kbaseline.console.format import clock, html_table, rate

REDRAW_SECONDS = 0.1
"""Least time between two drawings of a bar: every one is a message to the browser."""


def in_notebook(console: Console) -> bool:
    """Whether what is printed on the console appears in a notebook."""
    return console.is_jupyter and not console.quiet


class CellOutput:
    """An output of a cell: a table that stays, and below it a bar that goes.

    Args:
        title: a line above the table; empty for none.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title
        self._headings: list[str] = []
        self._rows: list[list[str]] = []
        self._bar = ""
        self._display: Any = None

    def start_table(self, headings: list[str]) -> None:
        """Shows the headings of the table."""
        self._headings = headings
        self._draw()

    def add_row(self, cells: list[str]) -> None:
        """Adds a row to the table."""
        self._rows.append(cells)
        self._draw()

    def set_bar(self, html: str) -> None:
        """Shows this below the table, instead of what was shown there; empty for nothing."""
        self._bar = html
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        title = f"<div><b>{escape(self.title)}</b></div>" if self.title else ""
        table = html_table(self._headings, self._rows) if self._headings else ""
        lines = [self.title, *("  ".join(line) for line in [self._headings, *self._rows])]
        shown = {"text/html": title + table + self._bar, "text/plain": "\n".join(filter(None, lines))}
        if self._display is None:
            self._display = display(shown, raw=True, display_id=True)
        else:
            self._display.update(shown, raw=True)


class CellBar:
    """A progress bar in a notebook.

    Args:
        cell: where it is shown.
        label: text before the bar.
        unit: unit of the rate.
        per_step: units per step; if given, the bar shows steps done, otherwise percent.
    """

    def __init__(self, cell: CellOutput, label: str, unit: str, per_step: float | None) -> None:
        self._cell, self._label, self._unit, self._per_step = cell, label, unit, per_step
        self._began = time.monotonic()
        self._drawn = 0.0

    def move(self, done: int, total: int | None, note: str) -> None:
        """Draws the bar, unless it was drawn a moment ago."""
        now = time.monotonic()
        if self._drawn and now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        spent, parts = now - self._began, []
        if total:
            parts.append(f"{100 * done / total:.0f} %" if self._per_step is None else f"{done:,}/{total:,}")
        if done and spent > 0 and self._unit != "bytes":
            parts.append(f"{rate(done * (self._per_step or 1.0) / spent)} {self._unit}/s")
        if done and total:
            parts.append(f"{clock(spent / done * (total - done))} left")
        value = f'value="{done}" max="{total}"' if total else ""
        bar = f'<progress {value} style="width:16em;vertical-align:middle"></progress>'
        self._cell.set_bar(f"<div>{escape(self._label)} {bar} {escape('  '.join(filter(None, [*parts, note])))}</div>")

    def stop(self) -> None:
        """Erases the bar."""
        self._cell.set_bar("")
