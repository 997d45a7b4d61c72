"""The commands that only look: `config` and `doctor`."""

import click

from kbaseline.cli.options import require_jax, resolve, settings


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
