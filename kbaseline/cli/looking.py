"""The commands that only look: `config`, `doctor` and `backbones`."""

import json

import click

from kbaseline.cli.options import as_json, require_jax, resolve, settings


@click.command("config")
@settings
def show_config(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Print the resolved configuration: every key with its value and its meaning."""
    from kbaseline.config import describe

    click.echo(describe(resolve(config, source, assignments)))


@click.command()
@settings
def doctor(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Show versions and devices, and whether data and weights are here already."""
    chosen = resolve(config, source, assignments)
    require_jax()
    from kbaseline.doctor import diagnose

    diagnose(chosen)


@click.command()
@as_json
def backbones(as_json: bool) -> None:
    """List the zoo: name, parameters, image size, preprocessing, and whether the weights are here.

    Preprocessing is part of the model; images always go in as RGB 0-255.
    """
    from rich.console import Console

    from kbaseline.zoo import zoo_rows, zoo_table

    if as_json:
        click.echo(json.dumps(zoo_rows(), indent=2))
    else:
        Console().print(zoo_table())
