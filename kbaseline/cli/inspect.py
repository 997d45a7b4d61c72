"""The commands that show settings, data and machine: `config`, `data`, `doctor` and `backbones`."""

import json
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
