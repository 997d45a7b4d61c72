"""The run folder: where a run keeps its results, every file of which appears whole.

A file is written under a temporary name in the same folder and then renamed, so that a reader, or a run that was
killed on the way, sees the old file or the new one and never half of one.
"""

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kbaseline.errors import InputError, RunError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_DPI = 130
"""Dots an inch of every PNG: a figure 6.9 inches wide is 900 pixels wide."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
"""Names of what is being made, or being removed."""


class RunFolder:
    """A folder that takes the files of one run.

    Make one with `RunFolder.create`; the constructor takes a folder that is there already.

    Args:
        path: the folder.
        written: whether what is written here stays. Of several processes that run as one only the first writes; the
            others pass False, go through the same motions, and leave nothing.
    """

    def __init__(self, path: Path, written: bool = True) -> None:
        self.path, self.written = path, written

    @classmethod
    def create(cls, out: Path | None, name: str, under: Path = Path("runs"), *, written: bool = True) -> Self:
        """Makes the folder of a new run.

        Args:
            out: the folder to use, absent or empty; None for `NAME` in `under`, or the first of `NAME-2`,
                `NAME-3`, ... that is free.
            name: the run's name.
            under: where folders are numbered; `runs/` in the working folder.
            written: see the class; a folder that is not written is not made either.

        Raises:
            InputError: `out` holds something already, or the folder cannot be made or written to.
        """
        wanted = under / name if out is None else Path(out).expanduser()
        if not written:
            return cls(wanted, written)
        try:
            path = _first_free(wanted) if out is None else _empty(wanted)
            probe = path / f".probe.{secrets.token_hex(4)}"
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"run folder {str(wanted)!r}: cannot be made or written to ({one_line(error)}). "
                "Name a folder you may write to with --out."
            ) from None
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Takes the folder of an earlier run.

        Raises:
            InputError: no run has begun there.
        """
        path = Path(path).expanduser()
        if not (path / "config.yaml").is_file():
            raise InputError(f"run folder {str(path)!r}: holds no config.yaml, so no run has begun there; start one.")
        return cls(path)

    @staticmethod
    def check(out: Path | None) -> None:
        """Refuses what `create` would refuse, without making anything, so that a run can ask before it downloads.

        Raises:
            InputError: `out` holds something already, or cannot be looked into.
        """
        try:
            if out is not None:
                _refuse_used(Path(out).expanduser())
        except OSError as error:
            raise InputError(f"run folder {str(out)!r}: cannot be looked into ({one_line(error)}).") from None

    @contextmanager
    def atomic(self, name: str) -> Iterator[Path]:
        """Yields a temporary path with the suffix of `name`; on leaving, what was written there becomes `name`.

            with folder.atomic("model.keras") as path:
                model.save(path)

        If the block raises, the temporary file goes away and a file that was there before stays.

        Raises:
            RunError: the disk is full, the folder has gone, or the file cannot be written for another reason.
        """
        if not self.written:
            with tempfile.TemporaryDirectory() as nowhere:
                yield Path(nowhere) / name
            return
        final = self.path / name
        temporary = final.with_name(f".{final.stem}.{secrets.token_hex(4)}{final.suffix}")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
            _sync_names(final.parent)
        except OSError as error:
            raise RunError(f"cannot write {str(final)!r}: {one_line(error)}. {_remedy(error)}") from None
        finally:
            # After the rename there is nothing left here; after a failure there may be, or no folder either.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes the temporary files and folders that a process which was killed has left."""
        for path in self.path.glob(".*") if self.written else ():
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Writes `text` as UTF-8 and returns the file's path. Raises `RunError` as `atomic` does."""
        with self.atomic(name) as path:
            path.write_bytes(text.encode("utf-8"))
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Writes `value` as JSON in its own order of keys and returns the file's path.

        NumPy and JAX scalars and arrays, paths and tuples are taken; NaN and infinities, which JSON lacks, become
        null. Raises `RunError` as `atomic` does.
        """
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        return self.write_text(name, text + "\n")

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Writes one line a row under a header of all their keys, in order of appearance; returns the file's path.

        A key that a row lacks, and None, are an empty cell. Raises `RunError` as `atomic` does.
        """
        header = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        if header:
            writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def write_npz(self, name: str, **arrays: Any) -> Path:
        """Writes named arrays as compressed NumPy and returns the file's path. Raises `RunError` as `atomic` does."""
        with self.atomic(name) as path, path.open("wb") as file:
            named: dict[str, Any] = {key: np.asarray(array) for key, array in arrays.items()}
            np.savez_compressed(file, **named)
        return self.path / name

    def write_figure(self, name: str, figure: "Figure") -> Path:
        """Writes `figure` as a PNG, empties it to free its memory, and returns the file's path.

        Raises `RunError` as `atomic` does.
        """
        with self.atomic(name) as path, warnings.catch_warnings():
            # A class name in a script that the font lacks shows as boxes; the run is not worth less for it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=FIGURE_DPI, format="png")
        figure.clear()
        return self.path / name


def _sync_names(folder: Path) -> None:
    """Sees to it that a rename outlives a power cut, where the system can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _first_free(wanted: Path) -> Path:
    """Makes and returns `wanted`, or `wanted-2`, ... whichever does not exist."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    number, path = 1, wanted
    while True:
        # mkdir itself is the test: two runs started together cannot both succeed.
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        else:
            return path


def _empty(wanted: Path) -> Path:
    """Makes and returns `wanted`, which may exist if there is nothing in it."""
    _refuse_used(wanted)
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted


def _refuse_used(wanted: Path) -> None:
    if wanted.exists() and not wanted.is_dir():
        raise InputError(f"run folder {str(wanted)!r}: is a file. Name another folder with --out.")
    if wanted.exists() and any(wanted.iterdir()):
        raise InputError(
            f"run folder {str(wanted)!r}: exists and is not empty, and nothing is overwritten. "
            "Name another folder with --out, or empty this one."
        )


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space; `kbaseline fit --resume` goes on from the last checkpoint."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "The run folder has been moved or removed; run again and leave it in place."
    return "Check the folder and the disk and run again."


def _plain(value: Any) -> Any:
    """`value` in what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else None
    # NumPy's and JAX's scalars and arrays.
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
