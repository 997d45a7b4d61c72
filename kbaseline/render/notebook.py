"""What objects show of themselves: HTML for a notebook, light or dark, and a few lines of text for a terminal.

The text takes the colours of the notebook's theme. Style sheets are dropped by some viewers, such as code hosts; then
charts keep a white ground, and pictures their size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from kbaseline.config.paths import expand_home
from kbaseline.console.format import clock, html_table, percent, shortened
from kbaseline.errors import InputError

ROWS = 20
"""Most rows of a table that a notebook shows."""

_LINES, _COLUMNS, _CELL = 3, 8, 24
"""Most rows and columns of a table that a terminal shows, and most characters of a cell."""

_SHARES = ("accuracy", "precision", "recall", "f1", "p_predicted", "p_actual", "probability")
_FORMATS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(_SHARES, percent),
    "seconds": clock,
    "rate": lambda value: "-" if value is None else f"{value:.1e}",
}
"""Column -> how its numbers are written, where not with four digits."""


class Table(list[dict[str, Any]]):
    """A list of rows that shows itself as a table; `pandas.DataFrame(table)` takes it as it is.

    >>> from kbaseline.render.notebook import Table
    >>> Table([{"class": "cat", "recall": 0.5}, {"class": "dog", "recall": 1.0}])
    class    recall
    cat     50.00 %
    dog    100.00 %
    """

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas

            # TFDS leaves a module of this name behind that fails only when it is used.
            frame = pandas.DataFrame
        except ImportError:
            raise InputError("to_pandas: pandas is not installed; pip install pandas, or use the rows.") from None
        return frame(list(self))

    def __repr__(self) -> str:
        if not self:
            return "no rows"
        headings, rows = _cells(self[:_LINES])
        kept = [[shortened(" ".join(cell.split()), _CELL) for cell in row[:_COLUMNS]] for row in [headings, *rows]]
        lines = ["  ".join(cells) for cells in zip(*map(_justified, zip(*kept, strict=True)), strict=True)]
        rest = len(self) - _LINES
        return "\n".join([*map(str.rstrip, lines), *([_more(rest)] if rest > 0 else [])])

    def _repr_html_(self) -> str:
        return fragment(self.html())

    def html(self) -> str:
        """The first `ROWS` rows as an HTML table."""
        rest = len(self) - ROWS
        more = f"<p>{_more(rest)}</p>" if rest > 0 else ""
        return html_table(*_cells(self[:ROWS])) + more if self else "<p>no rows</p>"


class Rates(dict[str, float]):
    """Learning rates by name, which show themselves rounded, in a notebook as a table."""

    def texts(self) -> dict[str, str]:
        """The rates as they are shown."""
        return {name: f"{rate:.2e}" for name, rate in self.items()}

    def __repr__(self) -> str:
        return ", ".join(f"{name} {rate}" for name, rate in self.texts().items())

    def _repr_html_(self) -> str:
        return Table({"rule": rule, "rate": rate} for rule, rate in self.texts().items())._repr_html_()


@dataclass(frozen=True)
class Card:
    """A picture with its caption.

    Attributes:
        pictures: data URIs, shown side by side.
        lines: the caption, line by line; the first is bold.
        small: whether the pictures are shown enlarged and unsmoothed.
        wrong: whether the caption is coloured as that of a mistake.
    """

    pictures: tuple[str, ...]
    lines: tuple[str, ...]
    small: bool = False
    wrong: bool = False


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures with captions: a notebook shows them, `save` writes them to a page, a terminal shows the captions.

    Attributes:
        title: what they are.
        cards: the pictures.
    """

    title: str
    cards: Sequence[Card]

    def __repr__(self) -> str:
        count = f"{len(self.cards)} {'picture' if len(self.cards) == 1 else 'pictures'}"
        lines = [f"Gallery of {count}: {shortened(self.title, 80)}; save('page.html') writes them"]
        lines += [f"  {shortened(', '.join(card.lines), 100)}" for card in self.cards[:_LINES]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return fragment(f"<p>{escape(self.title)}</p>", self.html())

    def html(self) -> str:
        """The pictures and captions as HTML."""
        return f'<div class="cards">{"".join(map(_figure, self.cards))}</div>'

    def save(self, path: str | Path) -> None:
        """Writes the pictures to a page of HTML, in the colours that the reader's system prefers."""
        head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        expand_home(path).write_text(f"{head}<title>{escape(self.title)}</title>{self._repr_html_()}", "utf-8")


def fragment(*parts: str) -> str:
    """An output of a cell, of these parts in HTML."""
    return f'<style>{_style()}</style><div class="kbaseline">{"".join(parts)}</div>'


def paragraphs(text: str) -> str:
    """A text as HTML, one paragraph a line, the first in bold."""
    first, *rest = text.split("\n")
    return f"<p><b>{escape(first)}</b></p>" + "".join(f"<p>{escape(line.strip())}</p>" for line in rest)


def chart_html(image: str, alt: str) -> str:
    """A chart as HTML.

    Args:
        image: a data URI with dark ink on a transparent ground.
        alt: what it shows, in words.
    """
    ground = "background:#fff;max-width:100%"
    return f'<img class="chart" style="{ground}" src="{image}" alt="{escape(alt)}">'


def page_html(page: str, title: str) -> str:
    """A whole page inside a frame, folded away until it is opened."""
    frame = "width:100%;height:40em;border:1px solid #808080;border-radius:6px"
    inside = f'<iframe style="{frame}" title="{escape(title)}" srcdoc="{escape(page)}"></iframe>'
    return f'<details><summary style="cursor:pointer">{escape(title)}</summary>{inside}</details>'


@cache
def _style() -> str:
    return (Path(__file__).parent / "pages" / "notebook.css").read_text(encoding="utf-8")


def _more(rows: int) -> str:
    return f"… {rows:,} more {'row' if rows == 1 else 'rows'}"


def _figure(card: Card) -> str:
    side = "height:96px;min-width:48px" if card.small else "height:128px"
    style = f"{side};width:auto;max-width:none;margin:0 2px 0 0"
    kind = ' class="pixels"' if card.small else ""
    images = "".join(f'<img{kind} style="{style}" src="{uri}" alt="{escape(card.lines[0])}">' for uri in card.pictures)
    width = (100 if card.small else 190) * len(card.pictures)
    first, *rest = (escape(line) for line in card.lines)
    caption = "<br>".join([f"<b>{first}</b>", *rest])
    return (
        '<figure class="card" style="display:inline-block;vertical-align:top;margin:0 8px 8px 0">'
        f'<div style="white-space:nowrap">{images}</div>'
        f'<figcaption style="max-width:{max(width, 130)}px;overflow-wrap:anywhere;font-size:0.85em"'
        f"{' class=wrong' if card.wrong else ''}>{caption}</figcaption></figure>"
    )


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings, in the order in which the rows first name them, and the formatted cells."""
    headings = list(dict.fromkeys(key for row in rows for key in row))
    shown = ["time" if key == "seconds" else key for key in headings]
    return shown, [[_formatted(key, row.get(key)) for key in headings] for row in rows]


def _formatted(column: str, value: Any) -> str:
    if column in _FORMATS and not isinstance(value, str):
        return _FORMATS[column](value)
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _justified(column: Iterable[str]) -> list[str]:
    """Cells of equal width; numbers at the right."""
    cells = list(column)
    width = max(map(len, cells))
    text = any(cell[:1].isalpha() for cell in cells[1:])
    return [cell.ljust(width) if text else cell.rjust(width) for cell in cells]
