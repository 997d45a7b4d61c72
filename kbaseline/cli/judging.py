"""The commands that judge finished runs: `compare`."""

import json
from pathlib import Path

import click

from kbaseline.cli.options import as_json


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw a plot of the runs.")
@as_json
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare finished runs: ladders with intervals, and what differs between their configurations."""
    from rich.console import Console

    from kbaseline.compare import comparison, plot_comparison, print_comparison, write_plot
    from kbaseline.finished import read_run

    finished = [read_run(run) for run in runs]
    found = comparison(finished)
    if out is not None:
        write_plot(out, plot_comparison(found, finished))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_comparison(found, Console())
