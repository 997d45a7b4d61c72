"""The output of `kbaseline audit`: the floor, then what to look at before training."""

from rich.console import Console
from rich.text import Text

from kbaseline.audit.audit import Audit
from kbaseline.console.format import interval, percent


def print_audit(audit: Audit, console: Console) -> None:
    """Prints an audit in a few lines; the page has the pictures."""

    def show(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    floor = audit.floor
    show(repr(audit.data), "bold")
    for line in audit.data.skipped[:5]:
        show(f"skipped: {line}", "yellow")
    show(
        f"floor: a linear probe gets {percent(floor.accuracy)} right, cross-validated (95 % interval "
        f"{interval(floor.interval)}); the most frequent class is {percent(floor.majority)}"
    )
    show(audit.more_images)
    for line in audit.findings:
        show(line, "bold red" if line.startswith(("Leak", "Shortcut")) else "yellow")
    if not audit.findings:
        show("Nothing found: no copies, no suspect labels, no odd images, no shortcuts.")
