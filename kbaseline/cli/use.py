"""The commands that use a finished run: `predict`, `export` and `serve`."""

import json
from pathlib import Path

import click

from kbaseline.cli.options import as_json, start_keras


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True)
@click.option("--tta", is_flag=True, help="Use test-time augmentation as configured in the run; slower.")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Number of classes shown for each image."
)
@as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
def predict(run: Path, images: tuple[str, ...], tta: bool, top: int, as_json: bool, as_csv: bool) -> None:
    """Predict IMAGES (files, folders, patterns) with a finished run.

    Probabilities are calibrated. The last column is the set that holds the class of 90 % of images, or "none of these,
    probably" for an image unlike the training images (docs/doubt.md).

    Only predictions go to standard output. Unreadable files are reported on standard error and skipped; if no file can
    be read, the exit code is 2.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv: give only one of them.")
    start_keras()
    from rich.console import Console

    from kbaseline.commands.predict import find_images, predict_files, print_predictions
    from kbaseline.runs.run import load

    (files, left_out), aside = find_images(images), Console(stderr=True)
    found = predict_files(load(run), files, tta=tta, console=aside)
    for file, reason in {**left_out, **found.bad}.items():
        aside.print(f"skipped: {file}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        click.echo(json.dumps(found.rows(top), indent=2))
    elif as_csv:
        click.echo(found.to_csv(top), nl=False)
    else:
        print_predictions(found, top, Console())


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["keras", "onnx", "stablehlo"]), required=True, help="File format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output folder. Default: RUN/exports/FORMAT, numbered.",
)
@click.option(
    "--input-size",
    type=int,
    nargs=2,
    metavar="HEIGHT WIDTH",
    help="Size of the input images, in pixels. Default: that of the run's own images.",
)
def export(run: Path, kind: str, out: Path | None, input_size: tuple[int, int] | None) -> None:
    """Export a finished run's network as one file that does not need kbaseline, with a model card.

    Input: uint8 pixels, in batches of any size. Outputs: calibrated probabilities, and how unfamiliar an image is.
    Resize and normalisation are part of the network. The file is first compared with the run on real images, and is
    not written if they disagree.
    """
    start_keras()
    from rich.console import Console

    from kbaseline.export.export import export_run

    done = export_run(run, kind, out, input_size, Console(stderr=True))
    click.echo(f"checked on {done.agreement}")
    click.echo(f"{done.path}: uint8 (batch, {done.height}, {done.width}, 3) in, probabilities out; {done.card.name}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; the default is reachable from this machine only.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free port.")
@click.option(
    "--max-mb",
    type=click.FloatRange(0, min_open=True),
    default=20,
    show_default=True,
    help="Largest request, in megabytes.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in your browser.")
def serve(run: Path, host: str, port: int, max_mb: float, open_browser: bool) -> None:
    """Serve a finished run: a page to drop pictures on, and a JSON endpoint, until Ctrl-C.

    The page explains the endpoint: curl -F image=@photo.jpg "http://127.0.0.1:8000/predict?top=3".
    """
    from rich.console import Console

    from kbaseline.errors import require

    require("serve", "serve", "starlette", "uvicorn", "python_multipart")
    start_keras()
    from kbaseline.serve.server import serve_run

    serve_run(run, host, port, max_mb, Console(stderr=True), open_browser=open_browser)
