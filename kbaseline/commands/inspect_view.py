"""The output of `kbaseline data`: classes and splits as a table, then notes and warnings."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kbaseline.commands.inspect import Inspection
from kbaseline.console.format import plain_table

_MOST_ROWS = 30
"""Most classes shown; of more, only the rarest."""

_MOST_LINES = 5
"""Most examples shown of bad files and of duplicates."""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints an inspection, with the warnings last, where they are noticed."""

    def show(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    show(repr(inspection.data), "bold")
    if inspection.files:
        width, height, formats = (inspection.files[name] for name in ("width", "height", "formats"))
        for side, spread in (("width", width), ("height", height)):
            show(f"{side}: {spread['min']:,} to {spread['max']:,} pixels, median {spread['median']:,}")
        show(f"formats: {', '.join(f'{name} {number:,}' for name, number in formats.items())}")
    console.print("", _classes(inspection), "")
    if skipped := inspection.data.skipped:
        show(f"skipped: {len(skipped):,}", "yellow")
        for reason in skipped[:_MOST_LINES]:
            show(f"  {reason}", "yellow")
    for note in inspection.notes():
        show(note, "yellow")
    for warning in inspection.warnings():
        show(warning, "bold red")
    # Leaks and contradictory labels first.
    groups = dict.fromkeys([*inspection.leaking, *inspection.duplicates.contradictions, *inspection.duplicates.groups])
    for group in list(groups)[:_MOST_LINES]:
        show("  " + " = ".join(f"{inspection.name(p)} ({p.split}, {inspection.label(p)})" for p in group[:4]))
    if (more := len(groups) - _MOST_LINES) > 0:
        show(f"  and {more:,} more group{'s' * (more > 1)} of identical images; data.json lists them all")


def _classes(inspection: Inspection) -> Table:
    """Images by class and split."""
    rows = list(inspection.counts.items())
    heading = "class"
    if len(rows) > _MOST_ROWS:
        heading = f"class (the rarest {_MOST_ROWS} of {len(rows):,})"
        rows = sorted(rows, key=lambda row: row[1]["train"])[:_MOST_ROWS]
    table = plain_table(heading, figures=list(inspection.data.splits), gap=3)
    for name, row in rows:
        table.add_row(Text(name), *(f"{number:,}" for number in row.values()))
    table.add_row(Text("all", style="bold"), *(f"{len(split):,}" for split in inspection.data.splits.values()))
    return table
