"""What `kbaseline data` prints: classes and splits as a table, then what is wrong and what is worth knowing."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kbaseline.commands.inspect import Inspection
from kbaseline.console.format import plain_table

_MOST_ROWS = 30
"""Classes that are all shown; of more than these only the rarest are."""

_MOST_LINES = 5
"""Examples shown of bad files and of duplicates."""


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints what was found, warnings last, where they are seen."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(repr(found.data), "bold")
    if found.files:
        width, height, formats = (found.files[name] for name in ("width", "height", "formats"))
        for side, spread in (("width", width), ("height", height)):
            say(f"{side}: {spread['min']:,} to {spread['max']:,} pixels, median {spread['median']:,}")
        say(f"formats: {', '.join(f'{name} {number:,}' for name, number in formats.items())}")
    console.print("", _classes(found), "")
    if skipped := found.data.skipped:
        say(f"skipped: {len(skipped):,}", "yellow")
        for line in skipped[:_MOST_LINES]:
            say(f"  {line}", "yellow")
    for note in found.notes():
        say(note, "yellow")
    for warning in found.warnings():
        say(warning, "bold red")
    # Those that are wrong first.
    wrong = dict.fromkeys([*found.leaking, *found.duplicates.contradictions, *found.duplicates.groups])
    for group in list(wrong)[:_MOST_LINES]:
        say("  " + " = ".join(f"{found.name(p)} ({p.split}, {found.label(p)})" for p in group[:4]))
    if (more := len(wrong) - _MOST_LINES) > 0:
        say(f"  and {more:,} more group{'s' * (more > 1)} of equal images; data.json names them all")


def _classes(found: Inspection) -> Table:
    """Images by class and split."""
    rows = list(found.counts.items())
    heading = "class"
    if len(rows) > _MOST_ROWS:
        heading = f"class (the rarest {_MOST_ROWS} of {len(rows):,})"
        rows = sorted(rows, key=lambda row: row[1]["train"])[:_MOST_ROWS]
    table = plain_table(heading, figures=list(found.data.splits), gap=3)
    for name, row in rows:
        table.add_row(Text(name), *(f"{number:,}" for number in row.values()))
    table.add_row(Text("all", style="bold"), *(f"{len(split):,}" for split in found.data.splits.values()))
    return table
