"""The output of `kbaseline evaluate`: scores, classes and confusions as tables that fit 80 columns."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kbaseline.commands.evaluate import EvaluationReport
from kbaseline.config.splits import ALL, DISPLAY_NAMES
from kbaseline.console.format import interval, percent, plain_table
from kbaseline.metrics import Evaluation
from kbaseline.runs.leaks import leak_line

_MOST_ROWS = 30
"""Most classes shown; of more, only the worst."""

_MOST_PAIRS = 10
"""Most confused pairs shown."""


def print_evaluation(report: EvaluationReport, console: Console) -> None:
    """Prints an evaluation report."""
    kind = " with TTA" if "tta" in report.evaluations else ""
    images = "1 image" if len(report.last.labels) == 1 else f"{len(report.last.labels):,} images"
    part = "all images" if report.split == ALL else f"{DISPLAY_NAMES[report.split]} split"
    title = f"{report.run} on {report.source}, {part}: {images}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    for line in report.skipped[:5]:
        console.print(Text(f"skipped: {line}", style="yellow"), soft_wrap=True)
    if len(report.skipped) > 5:
        console.print(Text(f"skipped: {len(report.skipped)} in all; --json has every line", style="yellow"))
    if report.seen_in_training:
        line = "Some of these images were used for training; the scores are optimistic."
        console.print(Text(line, style="yellow"))
    if line := leak_line(report.split, report.leaked, report.last):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    console.print("", _scores_table(report.evaluations), "")
    for note in _notes(report):
        console.print(Text(note, style="dim"))
    console.print(Text(f"\nClasses{kind}", style="bold"))
    console.print(_classes_table(report.last))
    if pairs := report.last.most_confused():
        console.print(Text(f"\nMost confused{kind}", style="bold"))
        console.print(_confused_table(pairs))


def _scores_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """One row per score, one column per kind of prediction."""
    top_k = evaluations["plain"].top_k
    rows: list[tuple[str, Callable[[Evaluation], str]]] = [
        ("accuracy", lambda one: percent(one.accuracy)),
        ("95 % interval", lambda one: interval(one.interval)),
        ("balanced accuracy", lambda one: percent(one.balanced_accuracy)),
        ("macro F1", lambda one: percent(one.macro_f1)),
        *([(f"top-{top_k} accuracy", lambda one: percent(one.top_k_accuracy))] if top_k > 1 else []),
        ("loss", lambda one: f"{one.loss:.4f}"),
        ("calibration error", lambda one: percent(one.calibration.error)),
        ("fitted temperature", lambda one: f"{one.calibration.temperature:.2f}"),
        ("  loss", lambda one: f"{one.calibration.loss_at_temperature:.4f}"),
        ("  calibration error", lambda one: percent(one.calibration.error_at_temperature)),
    ]
    table = plain_table("", figures=list(evaluations), gap=3)
    for name, text in rows:
        table.add_row(name, *(text(one) for one in evaluations.values()), style="bold" if name == "accuracy" else "")
    return table


def _notes(report: EvaluationReport) -> list[str]:
    """How to interpret the scores."""
    lines = []
    if paired := report.paired:
        lines.append(
            f"TTA against plain: {100 * paired.difference:+.2f} points; {paired.only_second} images are correct only "
            f"with TTA, {paired.only_first} only without (McNemar's exact test: p = {paired.p_value:.2g})."
        )
    if report.last.calibration.cross_fitted:
        lines.append(
            "The temperature was fitted on these images. The scores below it are cross-fitted: each half of the "
            "images is scaled by the temperature of the other half."
        )
    else:
        lines.append("The temperature was fitted on the run's validation images.")
    return lines


def _classes_table(evaluation: Evaluation) -> Table:
    """Precision, recall and F1 of each class, or of the worst ones."""
    rows = [row for row in evaluation.per_class if row["support"]]
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
    """The most frequent confusions."""
    table = plain_table("actual", "predicted", figures=("images",), gap=3)
    for actual, predicted, images in pairs[:_MOST_PAIRS]:
        table.add_row(Text(actual), Text(predicted), f"{images:,}")
    return table
