"""The sources there are, by prefix; finds the one that a source string means."""

from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.sources.csv import csv_status, open_csv
from kbaseline.data.sources.csv_table import TABLES
from kbaseline.data.sources.digits import digits_status, open_digits
from kbaseline.data.sources.folder import folder_status, open_folder
from kbaseline.data.sources.listing import Listing, Source
from kbaseline.data.sources.tfds.tfds import open_tfds, tfds_status
from kbaseline.errors import DataError, did_you_mean

SOURCES = {
    "tfds:": Source("tfds:NAME", open_tfds, tfds_status),
    "folder:": Source("folder:PATH", open_folder, folder_status),
    "csv:": Source("csv:PATH", open_csv, csv_status),
    "digits": Source("digits", open_digits, digits_status),
}
"""Prefix, with its colon if anything follows it -> source."""

_FORMS = " or ".join(", ".join(source.form for source in SOURCES.values()).rsplit(", ", 1))
_WELL_KNOWN = ("tfds:cifar10", "tfds:cifar100", "tfds:mnist")


def open_source(config: DataConfig, console: Console | None = None) -> AbstractContextManager[Listing]:
    """The images that `config.source` means; see `Source.open`.

    Raises:
        DataError: there is no such source.
    """
    source, rest = _find(config.source)
    if source is None:
        raise DataError(_unknown(config.source))
    return source.open(rest, config, console)


def source_status(config: DataConfig) -> tuple[bool, str]:
    """Whether the images of a source are on this machine, and where they are or what to do; downloads nothing."""
    source, rest = _find(config.source)
    return source.status(rest, config) if source else (False, f"no source {config.source!r}; give {_FORMS}")


def _find(source: str) -> tuple[Source | None, str]:
    prefix, colon, rest = source.partition(":")
    return SOURCES.get(prefix + colon), rest


def _unknown(source: str) -> str:
    try:
        path = Path(source).expanduser()
        is_folder, is_table = bool(source) and path.is_dir(), path.is_file() and path.suffix.lower() in TABLES
    except (OSError, RuntimeError):
        is_folder = is_table = False
    if is_folder or is_table:
        thing, prefix = ("a folder", "folder") if is_folder else ("a table", "csv")
        return f"data.source {source!r}: is {thing}, and {thing} needs its prefix; write {prefix}:{source}"
    kind, colon, rest = source.partition(":")
    if rest.startswith("//"):  # A web address.
        guess = ""
    elif colon:  # Only the prefix is corrected.
        guess = did_you_mean(kind + colon, SOURCES).replace(":'", f":{repr(rest)[1:-1]}'")
    else:
        guess = did_you_mean(source, (*_WELL_KNOWN, *(source.form for source in SOURCES.values())))
    return f"data.source {source!r}: must be {_FORMS}.{guess}"
