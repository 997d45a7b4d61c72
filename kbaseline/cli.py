"""The command line: a thin skin over `run_baseline` that turns errors into one line and an exit code."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kbaseline.errors import InputError, KBaselineError

# Everything else is imported inside the commands: `--help` must be instant, and importing Keras fixes its backend.

_EPILOG = "Start here, with no download and no GPU: kbaseline fit --config quickstart"


class _Commands(click.Group):
    """Commands whose errors are one line; `--debug` shows the whole traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KBaselineError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted; what the run folder holds is whole.", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click knows what to do when the reader of a pipe has gone
            if ctx.params.get("debug"):
                raise
            reason = " ".join(str(error).split())[:300]
            click.echo(
                f"Error: unexpected {type(error).__name__}: {reason}. Traceback: kbaseline --debug ...", err=True
            )
            ctx.exit(1)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose a configuration."""
    for option in (
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."),
        click.option("--data", "source", metavar="SOURCE", help="Short for --set data.source=SOURCE."),
        click.option("--config", metavar="FILE", help="A YAML file or a bundled name. Default: the article's."),
    ):
        command = option(command)
    return command


def _resolve(config: str | None, source: str | None, assignments: tuple[str, ...]) -> Any:
    from kbaseline.config import load_config, parse_assignments

    changes = {**({"data.source": source} if source else {}), **parse_assignments(assignments)}
    return load_config(config, changes)


def _require_jax() -> None:
    import os

    if (backend := os.environ.get("KERAS_BACKEND", "jax")) != "jax":
        raise InputError(f"KERAS_BACKEND is {backend!r}: kbaseline runs on 'jax'; unset it or set it to jax.")


_out = click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder. Default: runs/<name>, numbered."
)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.version_option(package_name="kbaseline", prog_name="kbaseline")
def main(debug: bool) -> None:
    """A strong image-classification baseline in one command."""
    # A pipe that is closed or not UTF-8 must not end a run over a dash in a table.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@main.command()
@_settings
@_out
def fit(config: str | None, source: str | None, assignments: tuple[str, ...], out: Path | None) -> None:
    """Run the whole recipe: find a rate, train, fine-tune, predict with test-time augmentation.

    Without options this is the article's recipe: CIFAR-10 at 128 pixels, ImageNet ResNet50, 3 + 3 epochs.
    """
    settings = _resolve(config, source, assignments)
    _require_jax()
    from kbaseline.baseline import run_baseline

    run_baseline(settings, out=out)


@main.command("find-lr")
@_settings
@_out
@click.option("--stage", metavar="NAME", help="The stage whose frozen layers are used. Default: the first.")
def find_lr(
    config: str | None, source: str | None, assignments: tuple[str, ...], out: Path | None, stage: str | None
) -> None:
    """Sweep the learning rate and write its curve as CSV and PNG; train nothing."""
    settings = _resolve(config, source, assignments)
    _require_jax()
    from kbaseline.baseline import find_learning_rate

    find_learning_rate(settings, out=out, stage=stage)


@main.command("config")
@_settings
def show_config(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Print the resolved configuration: every key with its value and its meaning."""
    from kbaseline.config import describe

    click.echo(describe(_resolve(config, source, assignments)))


@main.command()
@_settings
def doctor(config: str | None, source: str | None, assignments: tuple[str, ...]) -> None:
    """Show versions and devices, and whether data and weights are here already."""
    settings = _resolve(config, source, assignments)
    _require_jax()
    from kbaseline.doctor import diagnose

    diagnose(settings)


if __name__ == "__main__":
    main()
