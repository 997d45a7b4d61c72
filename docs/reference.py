"""Writes the generated pages: cli.md from click, config.md from the schema, architecture.svg from the rooms.

python docs/reference.py            # into docs/; a test fails while a committed one is stale
python docs/reference.py FOLDER     # elsewhere
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click
from architecture import draw_architecture
from settings import config_page

from kbaseline.cli import main

HEAD = "Made by `python docs/reference.py`; change the code, not this page.\n"


def cli_page() -> str:
    """Every command with its usage, its help and its options."""
    pages = [
        f"# The command line\n\n{HEAD}\n"
        "`--help` after any command prints what stands here. Exit codes: 0 done, 2 what was asked cannot be done, 1 it "
        "failed on the way, 130 or 143 it was stopped by a signal. An error is one line.\n"
    ]
    root = click.Context(main, info_name="kbaseline")
    return "\n".join([*pages, *(_command(context) for context in _contexts(root))])


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """A command's own context, then those of its subcommands."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            inner = context.command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _contexts(click.Context(inner, info_name=name, parent=context))


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    # A bar would end the cell of a table, and what stands in angle brackets would be read as HTML.
    rows = [(flags.replace("|", "\\|"), meaning.replace("<", "\\<")) for flags, meaning in filter(None, records)]
    table = "\n".join(f"| `{flags}` | {meaning} |" for flags, meaning in rows)
    options = f"\n| option | meaning |\n|---|---|\n{table}\n" if rows else ""
    text = inspect.cleandoc(command.help or "")
    return f"## {context.command_path}\n\n```text\n{usage}\n```\n\n{text}\n{options}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(__file__).parent)
def write(folder: Path) -> None:
    """Write cli.md, config.md and architecture.svg into FOLDER; default: docs/."""
    pages = {"cli.md": cli_page(), "config.md": config_page(HEAD), "architecture.svg": draw_architecture()}
    for file, text in pages.items():
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
