"""What kbaseline keeps in its cache folder: how much, when it was last of use, and room made among it."""

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kbaseline.errors import RunError, one_line

KINDS = {
    "decoded images": ("images", re.compile(r"[0-9a-f]{32}")),
    "features": ("features", re.compile(r"[0-9a-f]{32}\.npy")),
    "labels": ("labels", re.compile(r"[0-9a-f]{32}\.npy")),
    "compiled programs": ("jax", re.compile(r".+-cache")),
}
"""What is kept -> its folder, and the names of its entries. A cache folder may hold other things; they stay."""

_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is kept: a folder or a file.

    Attributes:
        path: where.
        size: bytes.
        used: when it was last of use, in seconds since 1970, or what is known of that.
    """

    path: Path
    size: int
    used: float


def kept(folder: Path) -> dict[str, list[Entry]]:
    """The entries of a cache folder, by kind."""
    return {kind: _entries(folder / name, names) for kind, (name, names) in KINDS.items()}


def trim(entries: list[Entry], most: int) -> list[Entry]:
    """Deletes the entries that were longest of no use until the others take no more than `most` bytes.

    Who has one of them open goes on reading it.

    Returns:
        The deleted ones.
    """
    size = sum(entry.size for entry in entries)
    deleted = []
    for entry in sorted(entries, key=lambda entry: entry.used):
        if size <= most:
            break
        _delete(entry.path)
        if not entry.path.exists():
            deleted.append(entry)
            size -= entry.size
    return deleted


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file beside `path`, and renames it to `path` if the block succeeds.

    Raises:
        RunError: the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_leftovers(path.parent)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        where = str(path.parent)
        raise RunError(
            f"cache {where!r}: cannot be written ({one_line(error)}); make room, or set data.cache_dir."
        ) from error
    finally:
        _delete(unfinished)


def delete_leftovers(folder: Path) -> None:
    """Deletes what processes that were killed left unfinished in a folder of one kind, if it is a day old."""
    for path in folder.glob(".*-*"):
        if re.match(r"\.[0-9a-f]{32}-", path.name) and time.time() - _entry(path).used > _DAY:
            _delete(path)


def _entries(folder: Path, names: re.Pattern[str]) -> list[Entry]:
    try:
        return [_entry(path) for path in folder.iterdir() if names.fullmatch(path.name)]
    except OSError:
        return []


def _entry(path: Path) -> Entry:
    size, used = 0, 0.0
    # Another process may delete any of it meanwhile.
    with contextlib.suppress(OSError):
        for part in [path, *(path.iterdir() if path.is_dir() else [])]:
            found = part.stat()
            size += found.st_size if part.is_file() else 0
            # Of a file that is only read the time of reading alone moves, on most disks once a day.
            used = max(used, found.st_mtime, found.st_atime if path.is_file() else 0)
    return Entry(path, size, used)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
