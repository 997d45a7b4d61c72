"""The run folder: where a run keeps its results. Every file is written atomically.

A file is written under a temporary name in the same folder and then renamed. A reader sees the old file or the new
one, never half of one, even if the run is killed.
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

from kbaseline.config.paths import expand_home
from kbaseline.errors import InputError, RunError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_DPI = 130
"""Dots per inch of every PNG: a figure 6.9 inches wide is 900 pixels wide."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
"""Names of files and folders that are being written or removed."""


class RunFolder:
    """The folder that holds the files of one run.

    `RunFolder.create` makes a new folder; the constructor takes an existing one.

    Args:
        path: the folder.
        writable: whether files are written. In a multi-process run only the first process writes; in the others,
            which pass False, every method works but leaves no file.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path, self.writable = path, writable

    @classmethod
    def create(cls, out: Path | None, name: str, under: Path = Path("runs"), *, writable: bool = True) -> Self:
        """Makes the folder of a new run.

        Args:
            out: the folder to use, new or empty; None for `NAME` in `under`, or the first free one of `NAME-2`,
                `NAME-3`, ...
            name: the run's name.
            under: parent of numbered folders; `runs/` in the working folder.
            writable: see the class; if False, no folder is created.

        Raises:
            InputError: `out` is not empty, or the folder cannot be created or written to.
        """
        wanted = under / name if out is None else expand_home(out)
        if not writable:
            return cls(wanted, writable)
        try:
            path = _first_free(wanted) if out is None else _empty(wanted)
            probe = path / f".probe.{secrets.token_hex(4)}"
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"run folder {str(wanted)!r}: cannot be created or written to ({one_line(error)}). "
                "Choose a writable folder with --out."
            ) from None
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Opens the folder of an earlier run.

        Raises:
            InputError: it holds no run.
        """
        path = expand_home(path)
        if not (path / "config.yaml").is_file():
            raise InputError(f"run folder {str(path)!r}: holds no config.yaml, so no run was started there; start one.")
        return cls(path)

    @staticmethod
    def check(out: Path | None, under: Path = Path("runs")) -> None:
        """Validates `out` as `create` would, without creating anything, so that work fails before it begins.

        Args:
            out, under: as for `create`.

        Raises:
            InputError: `out` is not empty, or cannot be read; or the folder cannot be created or written to.
        """
        wanted = under if out is None else expand_home(out)
        try:
            if out is not None:
                _refuse_used(wanted)
            there = next(folder for folder in (wanted, *wanted.absolute().parents) if folder.exists())
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
        except OSError as error:
            raise InputError(
                f"run folder {str(wanted)!r}: cannot be created or written to ({one_line(error)}). "
                "Choose a writable folder with --out."
            ) from None

    @contextmanager
    def atomic(self, name: str) -> Iterator[Path]:
        """Yields a temporary path with the suffix of `name`; when the block ends, the file is renamed to `name`.

            with folder.atomic("model.keras") as path:
                model.save(path)

        If the block raises, the temporary file is removed and an earlier `name` is kept.

        Raises:
            RunError: the disk is full, the folder is gone, or the file cannot be written for another reason.
        """
        if not self.writable:
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
            # Nothing is left after the rename; after a failure the file may remain, or the folder may be gone too.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes temporary files and folders that a killed process left behind."""
        for path in self.path.glob(".*") if self.writable else ():
            if _TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> Path:
        """Writes `text` as UTF-8 and returns the file's path. Raises `RunError` as `atomic` does."""
        with self.atomic(name) as path:
            path.write_bytes(text.encode("utf-8"))
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Writes `value` as JSON, keeping its order of keys, and returns the file's path.

        Accepts NumPy and JAX scalars and arrays, paths and tuples. NaN and infinities, which JSON lacks, become null.
        Raises `RunError` as `atomic` does.
        """
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        return self.write_text(name, text + "\n")

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Writes one line per row under a header of all keys, in order of appearance; returns the file's path.

        A missing key and None give an empty cell. Raises `RunError` as `atomic` does.
        """
        header = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        if header:
            writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def write_npz(self, name: str, **arrays: Any) -> Path:
        """Writes named arrays as a compressed `.npz` and returns its path. Raises `RunError` as `atomic` does."""
        with self.atomic(name) as path, path.open("wb") as file:
            named: dict[str, Any] = {key: np.asarray(array) for key, array in arrays.items()}
            np.savez_compressed(file, **named)
        return self.path / name

    def write_figure(self, name: str, figure: "Figure") -> Path:
        """Writes `figure` as a PNG, clears it to free its memory, and returns the file's path.

        Raises `RunError` as `atomic` does.
        """
        with self.atomic(name) as path, warnings.catch_warnings():
            # Class names in a script that the font lacks show as boxes; that is no reason to fail the run.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=FIGURE_DPI, format="png")
        figure.clear()
        return self.path / name


def _sync_names(folder: Path) -> None:
    """Makes a rename durable across a power failure."""
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_free(wanted: Path) -> Path:
    """Creates and returns the first of `wanted`, `wanted-2`, ... that does not exist."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    number, path = 1, wanted
    while True:
        # mkdir itself is the test: of two runs started at once, only one can succeed.
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        else:
            return path


def _empty(wanted: Path) -> Path:
    """Creates and returns `wanted`, which may exist if it is empty."""
    _refuse_used(wanted)
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted


def _refuse_used(wanted: Path) -> None:
    if wanted.exists() and not wanted.is_dir():
        raise InputError(f"run folder {str(wanted)!r}: is a file. Choose another folder with --out.")
    if wanted.exists() and any(wanted.iterdir()):
        raise InputError(
            f"run folder {str(wanted)!r}: exists and is not empty, and nothing is overwritten. "
            "Choose another folder with --out, or empty this one."
        )


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run again; `kbaseline fit --resume` continues a run."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "The run folder was moved or removed; run again and leave it in place."
    return "Check the folder and the disk and run again."


def _plain(value: Any) -> Any:
    """`value` as types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else None
    # NumPy and JAX scalars and arrays.
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
