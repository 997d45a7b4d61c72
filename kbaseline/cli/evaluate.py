"""The commands that score finished runs: `evaluate` and `compare`."""

import json
from pathlib import Path

import click

from kbaseline.cli.options import as_json, assignments, start_keras
from kbaseline.config.splits import ALL, SPLITS


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("source", required=False)
@click.option(
    "--split",
    type=click.Choice([*SPLITS, ALL]),
    help="Split to score. Default: test, else valid, else all.",
)
@click.option("--tta/--no-tta", default=None, help="Also score predictions with TTA. Default: as in the run.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for evaluation.json and confusion.png. Default with SOURCE: in RUN/evaluations/.",
)
@assignments
@as_json
def evaluate(
    run: Path,
    source: str | None,
    split: str | None,
    tta: bool | None,
    out: Path | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score a finished run: accuracy with its interval, calibration, each class, plain against TTA.

    TTA is test-time augmentation: predictions averaged over the image and zoomed, mirrored views of it.

    Without SOURCE, the predictions saved by the run are scored. With one (folder:PATH, csv:PATH, tfds:NAME, digits),
    the run's network predicts the images of SOURCE; classes are matched by name. --set changes how SOURCE is read, for
    instance data.label_column.
    """
    if source is not None:
        start_keras()
    from rich.console import Console

    from kbaseline.commands.evaluate import evaluate_run
    from kbaseline.commands.evaluate_view import print_evaluation
    from kbaseline.config.load import parse_assignments

    found, written = evaluate_run(run, source, split, tta, out, Console(stderr=True), parse_assignments(assignments))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    print_evaluation(found, Console())
    if written:
        click.echo(f"scores and confusion matrix: {written}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw a plot of the runs.")
@as_json
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare finished runs: accuracy by step with intervals, and how their configurations differ."""
    from rich.console import Console

    from kbaseline.commands.compare import comparison, plot_comparison, print_comparison, write_plot
    from kbaseline.runs.record import read_run

    finished = [read_run(run) for run in runs]
    found = comparison(finished)
    if out is not None:
        write_plot(out, plot_comparison(found, finished))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found, Console())
