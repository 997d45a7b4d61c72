"""The sources there are, by prefix; finds the one that a source string means."""

from contextlib import AbstractContextManager, suppress
from pathlib import Path

from rich.console import Console

from kbaseline.config.paths import expand_home
from kbaseline.config.schema import DataConfig
from kbaseline.data.pictures import shown
from kbaseline.data.sources.csv import csv_status, open_csv
from kbaseline.data.sources.csv_table import TABLES
from kbaseline.data.sources.digits import digits_status, open_digits
from kbaseline.data.sources.folder import folder_status, open_folder
from kbaseline.data.sources.listing import Listing, Source
from kbaseline.data.sources.tfds.tfds import open_tfds, tfds_status
from kbaseline.data.walk import nearest_path
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
    full = full_source(config.source)
    source, rest = _find(full)
    if source is None:
        raise DataError(_unknown(config.source))
    if not full.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in full):
        raise DataError(f"data.source {shown(full)!r}: is not UTF-8; rename the folder or file.")
    return source.open(rest, config, console)


def source_status(config: DataConfig) -> tuple[bool, str]:
    """Whether the images of a source are on this machine, and where they are or what to do; downloads nothing."""
    source, rest = _find(full_source(config.source))
    return source.status(rest, config) if source else (False, f"no source {config.source!r}; give {_FORMS}")


def full_source(source: str) -> str:
    """A source with its prefix: the path of a folder or of a table needs none."""
    if _find(source)[0] is None and source.strip():
        path = expand_home(source)
        with suppress(OSError, RuntimeError, ValueError):
            if path.is_dir():
                return f"folder:{source}"
            if path.suffix.lower() in TABLES and path.is_file():
                return f"csv:{source}"
    return source


def absolute_source(source: str) -> str:
    """A source with its prefix and, if that is a path, its absolute path: it means the same from every directory."""
    full = full_source(source)
    prefix, _, rest = full.partition(":")
    if prefix in ("folder", "csv") and rest.strip():
        path = expand_home(rest)
        with suppress(OSError, RuntimeError, ValueError):
            return f"{prefix}:{path.resolve()}"
    return full


def _find(source: str) -> tuple[Source | None, str]:
    prefix, colon, rest = source.partition(":")
    return SOURCES.get(prefix + colon), rest


def _unknown(source: str) -> str:
    kind, colon, rest = source.partition(":")
    if rest.startswith("//"):  # A web address.
        guess = ""
    elif colon:  # Only the prefix is corrected.
        guess = did_you_mean(kind + colon, SOURCES).replace(":'", f":{repr(rest)[1:-1]}'")
    else:
        guess = did_you_mean(source, (*_WELL_KNOWN, *(source.form for source in SOURCES.values())))
        if not guess and source.strip():
            guess = nearest_path(Path(source), lambda path: full_source(str(path)) != str(path))
    return f"data.source {source!r}: must be {_FORMS}.{guess}"
