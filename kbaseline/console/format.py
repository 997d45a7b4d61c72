"""Formatting of numbers, names and tables, the same in every output."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape

from rich.table import Table


def percent(fraction: float | None) -> str:
    """`94.56 %` for 0.9456; a dash for None and NaN."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f} %"


def interval(ends: Sequence[float]) -> str:
    """`93.21 – 95.67 %` for (0.9321, 0.9567)."""
    low, high = ends
    return f"{100 * low:.2f} – {100 * high:.2f} %"


def clock(seconds: float | None) -> str:
    """`01:23`, or `1:02:03` from one hour; a dash for None and NaN."""
    if seconds is None or math.isnan(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def rate(per_second: float) -> str:
    """A rate with three significant digits, or as a whole number from 100: `1,234`, `56.7`, `0.123`."""
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:.3g}"


def shortened(name: str, most: int) -> str:
    """A name cut to `most` characters, with an ellipsis if it was longer."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def file_name(text: str, most: int = 80) -> str:
    """The last `most` characters of a text, such as a source string, as a file name that is valid on any system."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[-most:]


def plain_table(*texts: str, figures: Sequence[str] = (), gap: int = 2) -> Table:
    """An empty table without lines.

    Args:
        texts: headings of the text columns, which come first and may wrap.
        figures: headings of the columns of numbers, right-aligned and never wrapped.
        gap: spaces between two columns.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0))
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def html_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as HTML, in the colours of the page around it; numbers are at the right."""

    def cell(tag: str, text: str, figure: bool) -> str:
        return f'<{tag} style="text-align:{"right" if figure else "left"}">{escape(text)}</{tag}>'

    names, body = list(headings), [list(row) for row in rows]
    figures = [all(not row[column][:1].isalpha() for row in body) for column in range(len(names))]
    lines = [("th", names), *(("td", row) for row in body)]
    inside = "".join(f"<tr>{''.join(map(cell, [tag] * len(names), line, figures))}</tr>" for tag, line in lines)
    return f"<table>{inside}</table>"
