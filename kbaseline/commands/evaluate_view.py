"""What `kbaseline evaluate` prints: figures, classes and confusions as tables that fit 80 columns."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kbaseline.commands.evaluate import EvaluationReport
from kbaseline.config.splits import ALL, DISPLAY_NAMES
from kbaseline.console.format import interval, percent, plain_table
from kbaseline.metrics import Evaluation

_MOST_ROWS = 30
"""Classes that are all shown; of more than these only the worst are."""

_MOST_PAIRS = 10
"""Confused pairs shown."""


def print_evaluation(found: EvaluationReport, console: Console) -> None:
    """Prints what was found."""
    kind = " with TTA" if "tta" in found.figures else ""
    images = "1 image" if len(found.last.labels) == 1 else f"{len(found.last.labels):,} images"
    part = "all of it" if found.split == ALL else f"{DISPLAY_NAMES[found.split]} split"
    title = f"{found.run} on {found.source}, {part}: {images}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    for line in found.skipped[:5]:
        console.print(Text(f"skipped: {line}", style="yellow"), soft_wrap=True)
    if len(found.skipped) > 5:
        console.print(Text(f"skipped: {len(found.skipped)} in all; --json has every line", style="yellow"))
    if found.seen:
        console.print(Text("The run learnt from some of these images: the figures flatter it.", style="yellow"))
    console.print("", _figures_table(found.figures), "")
    for remark in _remarks(found):
        console.print(Text(remark, style="dim"))
    console.print(Text(f"\nClasses{kind}", style="bold"))
    console.print(_classes_table(found.last))
    if pairs := found.last.most_confused():
        console.print(Text(f"\nMost confused{kind}", style="bold"))
        console.print(_confused_table(pairs))


def _figures_table(figures: Mapping[str, Evaluation]) -> Table:
    """A row a figure, a column a kind of prediction."""
    some = figures["plain"]
    rows: list[tuple[str, Callable[[Evaluation], str]]] = [
        ("accuracy", lambda found: percent(found.accuracy)),
        ("95 % interval", lambda found: interval(found.interval)),
        ("balanced accuracy", lambda found: percent(found.balanced_accuracy)),
        ("macro F1", lambda found: percent(found.macro_f1)),
        *([(f"top-{some.top_k} accuracy", lambda found: percent(found.top_k_accuracy))] if some.top_k > 1 else []),
        ("loss", lambda found: f"{found.loss:.4f}"),
        ("calibration error", lambda found: percent(found.calibration.error)),
        ("best temperature", lambda found: f"{found.calibration.temperature:.2f}"),
        ("  loss then", lambda found: f"{found.calibration.loss_at_temperature:.4f}"),
        ("  calibration error then", lambda found: percent(found.calibration.error_at_temperature)),
    ]
    table = plain_table("", figures=list(figures), gap=3)
    for name, text in rows:
        table.add_row(name, *(text(found) for found in figures.values()), style="bold" if name == "accuracy" else "")
    return table


def _remarks(found: EvaluationReport) -> list[str]:
    """What the figures need to be read rightly."""
    lines = []
    if paired := found.paired:
        lines.append(
            f"TTA against plain: {100 * paired.difference:+.2f} points; {paired.only_second} images are right only "
            f"with TTA, {paired.only_first} only without (McNemar's exact test: p = {paired.p_value:.2g})."
        )
    if found.last.calibration.cross_fitted:
        lines.append(
            "The temperature is fitted on these same images. The figures below it are taken crosswise: each half of "
            "the images at the temperature fitted on the other half."
        )
    else:
        lines.append("The temperature is fitted on the run's validation images.")
    return lines


def _classes_table(found: Evaluation) -> Table:
    """Precision, recall and F1 of each class, or of the worst."""
    rows = [row for row in found.per_class if row["support"]]
    heading = "class"
    if len(rows) > _MOST_ROWS:
        heading = f"class (the worst {_MOST_ROWS} of {len(rows)})"
        rows = sorted(rows, key=lambda row: row["f1"])[:_MOST_ROWS]
    table = plain_table(heading, figures=("precision", "recall", "F1", "images"), gap=3)
    for row in rows:
        shares = (percent(row[name]) for name in ("precision", "recall", "f1"))
        table.add_row(Text(row["class"]), *shares, f"{row['support']:,}")
    return table


def _confused_table(pairs: Sequence[tuple[str, str, int]]) -> Table:
    """The commonest mistakes."""
    table = plain_table("actual", "predicted", figures=("images",), gap=3)
    for actual, predicted, images in pairs[:_MOST_PAIRS]:
        table.add_row(Text(actual), Text(predicted), f"{images:,}")
    return table
