"""The commands that show settings, data and machine: `config`, `data`, `doctor` and `backbones`."""

import json
from contextlib import ExitStack
from pathlib import Path

import click

from kbaseline.cli.options import as_json, resolve, settings, settings_without_source, start_keras


@click.command("config")
@settings
def show_config(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Print the complete configuration: every key with its value and meaning."""
    from kbaseline.config.load import describe

    click.echo(describe(resolve(config, source, assignments)))


@click.command()
@click.argument("source")
@settings_without_source
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for data.json and samples.png. Default: a new one in runs/.",
)
@as_json
def data(source: str, config: str | None, assignments: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Inspect SOURCE (folder:PATH, csv:PATH, tfds:NAME, digits) before you train on it.

    Prints images by class and split, image sizes, files not used, and duplicates within and across splits. Writes a
    contact sheet of samples before and after augmentation.
    """
    chosen = resolve(config, source, assignments)
    start_keras()
    from rich.console import Console

    from kbaseline.commands.inspect import inspect_source, write_inspection
    from kbaseline.commands.inspect_view import print_inspection
    from kbaseline.storage.run_folder import RunFolder

    RunFolder.check(out)
    found = inspect_source(chosen, Console(stderr=True))
    written = write_inspection(found, out)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    print_inspection(found, Console())
    click.echo(f"contact sheet: {written / 'samples.png'}")


@click.command()
@click.argument("source")
@settings_without_source
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for audit.html and audit.json. Default: a new one in runs/.",
)
@click.option("--fix", is_flag=True, help="Then open a page to keep, relabel or drop what was found, by keyboard.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of --fix; 0: any free one."
)
@as_json
def audit(
    source: str,
    config: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    fix: bool,
    port: int,
    as_json: bool,
) -> None:
    """Audit SOURCE before training: near-duplicates, leaks, label suspects, odd images, shortcuts, and a floor.

    The features of a small ImageNet network, which comes with kbaseline, are computed once and kept. Writes one page,
    audit.html. `kbaseline data` is the quicker look; its duplicates are identical pixels only.

    --fix writes what you decide to fixed.csv, which `fit --data` takes; it touches no photo.
    """
    chosen = resolve(config, source, assignments, None if _sized(config, assignments) else {"data.size": 224})
    start_keras()
    from rich.console import Console

    from kbaseline.data.sources.registry import absolute_source
    from kbaseline.errors import InputError, require

    if fix and as_json:
        raise InputError("--fix: opens a page, on which you decide; leave out --json, or --fix.")
    if fix:
        require("audit --fix", "serve", "starlette", "uvicorn")
    from kbaseline.commands.audit import timed_audit, write_audit
    from kbaseline.commands.audit_view import print_audit
    from kbaseline.storage.run_folder import RunFolder

    RunFolder.check(out)
    with ExitStack() as stack:
        listener = None
        if fix:  # what is refused, is refused before the work
            from kbaseline.serve.review import no_files
            from kbaseline.serve.server import listen, serve_review

            if not absolute_source(chosen.data.source).startswith(("folder:", "csv:")):
                raise no_files(chosen.data.source)
            listener = stack.enter_context(listen("127.0.0.1", port))
        found, seconds = timed_audit(chosen, Console(stderr=True))
        written = write_audit(found, out, seconds)
        if as_json:
            click.echo(json.dumps(found.to_dict(), indent=2))
            return
        print_audit(found, Console())
        click.echo(f"page: {written / 'audit.html'}")
        if listener is not None:
            serve_review(found, RunFolder(written), listener, Console(stderr=True))


def _sized(config: str | None, assignments: tuple[str, ...]) -> bool:
    """Whether the user chose `data.size`; a configuration file is taken to."""
    return config is not None or any(one.split("=", 1)[0].strip() == "data.size" for one in assignments)


@click.command()
@settings
def doctor(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Show versions and devices, and whether data and weights are on this machine."""
    chosen = resolve(config, source, assignments)
    start_keras()
    from kbaseline.commands.doctor import diagnose

    diagnose(chosen)


@click.command()
@as_json
def backbones(as_json: bool) -> None:
    """List the backbones: name, parameters, image size, preprocessing, and whether the weights are on this machine.

    Preprocessing is part of the model, whose input is always RGB 0-255. The names are those of Keras: tf scales to
    -1..1, torch scales to 0..1 and normalises by ImageNet's mean and standard deviation, caffe converts RGB to BGR and
    subtracts the mean.
    """
    from rich.console import Console

    from kbaseline.models.zoo import zoo_rows, zoo_table

    if as_json:
        click.echo(json.dumps(zoo_rows(), indent=2))
    else:
        Console().print(zoo_table())
