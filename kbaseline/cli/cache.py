"""The command `cache`: what kbaseline keeps to be faster next time, and how to make room."""

import json
import re

import click

from kbaseline.cli.options import as_json, resolve, settings_without_source

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _bytes(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """`500MB`, `1.5 GB`, `20G`, `0`: bytes, in powers of 1,000."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise click.BadParameter(f"{text!r}: must be a number and a unit, such as 500MB or 20GB.", context, option)
    return int(float(found[1]) * _UNITS[found[2]])


@click.command()
@settings_without_source
@click.option(
    "--trim",
    callback=_bytes,
    is_flag=False,
    flag_value="20GB",
    metavar="[SIZE]",
    help="Delete what was used longest ago until the rest takes no more than SIZE, such as 500MB. Without one: 20GB.",
)
@click.option("--clear", is_flag=True, help="Delete all of it.")
@as_json
def cache(config: str | None, assignments: tuple[str, ...], trim: int | None, clear: bool, as_json: bool) -> None:
    """Show what the cache holds: decoded images, features, labels of TFDS sets, compiled programs.

    Nothing in it is lost for good: what is deleted is made again when it is needed. `--set data.cache_dir=DIR` looks
    into another cache folder.
    """
    if clear and trim is not None:
        raise click.UsageError("--trim and --clear: give one of them.")
    folder = resolve(config, None, assignments).data.cache_folder
    from rich.console import Console
    from rich.filesize import decimal

    from kbaseline.console.format import plain_table
    from kbaseline.storage import cache_folder

    if clear or trim is not None:
        for kind, _ in cache_folder.KINDS.values():
            cache_folder.delete_leftovers(folder / kind)
        every = [entry for entries in cache_folder.kept(folder).values() for entry in entries]
        deleted = cache_folder.trim(every, -1 if clear else trim or 0)
        click.echo(f"deleted: {len(deleted):,} entries, {decimal(sum(entry.size for entry in deleted))}", err=True)
    found = {
        kind: {"entries": len(entries), "bytes": sum(entry.size for entry in entries)}
        for kind, entries in cache_folder.kept(folder).items()
    }
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **found}, indent=2))
        return
    table = plain_table(str(folder), figures=("entries", "size"))
    for kind, row in found.items():
        table.add_row(kind, f"{row['entries']:,}", decimal(row["bytes"]))
    Console().print(table)
