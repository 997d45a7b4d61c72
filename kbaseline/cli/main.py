"""The command `kbaseline`: its subcommands, and errors as one line with an exit code."""

import errno
import sys
from typing import Any

import click

from kbaseline.cli.cache import cache
from kbaseline.cli.evaluate import compare, evaluate
from kbaseline.cli.inspect import audit, backbones, data, doctor, show_config
from kbaseline.cli.train import find_lr, fit
from kbaseline.cli.use import export, predict, serve
from kbaseline.errors import KBaselineError, with_kind

_EPILOG = "Start here, with no download and no GPU: kbaseline fit --config quickstart"


class _Commands(click.Group):
    """Commands whose errors are one line; `--debug` shows the full traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KBaselineError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "Interrupted; the files in the run folder are complete.", err=True)
            ctx.exit(getattr(stop, "exit_code", 130))
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click handles a closed pipe
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: unexpected {with_kind(error, 300)}. Traceback: kbaseline --debug ...", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(package_name="kbaseline", prog_name="kbaseline")
def main(debug: bool) -> None:
    """A strong image-classification baseline in one command."""
    # A character that the output encoding lacks must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


for _command in (
    fit,
    find_lr,
    evaluate,
    compare,
    predict,
    export,
    serve,
    data,
    audit,
    show_config,
    doctor,
    backbones,
    cache,
):
    main.add_command(_command)
