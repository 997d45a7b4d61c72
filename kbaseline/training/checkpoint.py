"""Checkpoints: the state of a run, saved so that a killed run can be resumed and gives the same result.

A checkpoint holds the whole state of Keras' compiled training step (weights, BatchNorm statistics, seed generators,
optimizer, metric sums), the stage, epoch and batch at which it was taken, and the results so far: the history and the
curves of the learning-rate finder. Everything else is a function of the configuration. A resumed run repeats the
recipe from the start, uses the checkpoint in place of finished training and sweeps, and continues training from there.
Rates, momenta, the order of the images and all random draws are the same as in an uninterrupted run; on a CPU with the
same versions they are bitwise equal.

Files in `RUN/checkpoints/`:

- `000007.npz`: the state as arrays `0`, `1`, ... in Keras' order, and `record`, JSON as UTF-8 bytes;
- `000007.json`: the SHA-256 of the `.npz`, written after it, also by rename. An `.npz` without it is ignored;
- `lock`: held by the running process. The system releases it when the process ends, however it ends.

They are written in a thread, beside training. The last two are kept. One is taken at the start of a stage, after every
epoch, every `runtime.checkpoint_minutes` between two steps, and on SIGINT and SIGTERM. A finished run has a
`result.json` and no `checkpoints` folder.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import filelock
import numpy as np

from kbaseline.errors import InputError, one_line
from kbaseline.storage.npz import read_arrays
from kbaseline.storage.run_folder import RunFolder

FORMAT = 1
"""Version of the file format; no other version is read."""

KEPT = 2
"""Checkpoints to keep: if the newest is damaged, the one before is used."""

DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""Exceptions that reading a damaged file can raise."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run at one moment.

    Attributes:
        stage: number of finished stages.
        epoch: number of finished epochs of the current stage.
        batch: number of finished batches of the current epoch.
        state: arrays of the compiled training step, in Keras' order.
        record: results so far, as JSON types.
    """

    stage: int
    epoch: int
    batch: int
    state: Sequence[np.ndarray]
    record: Mapping[str, Any]


def is_finished(folder: RunFolder) -> bool:
    """Whether the run in a folder is finished."""
    return (folder.path / "result.json").exists() and not (folder.path / "checkpoints").exists()


class Checkpoints:
    """The checkpoints of a run folder. The folder is locked for this process until `close`.

    In a multi-process run the first process holds the lock and writes; the others only read.

    Args:
        folder: the run folder.
        log: called with one line for every damaged checkpoint.

    Raises:
        InputError: another process is using the folder, or it cannot be written to.
    """

    def __init__(self, folder: RunFolder, log: Callable[[str], None]) -> None:
        self.folder = RunFolder(folder.path / "checkpoints", folder.writable)
        self._log = log
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._lock = filelock.FileLock(self.folder.path / "lock", blocking=False)
        if not folder.writable:
            return
        try:
            self.folder.path.mkdir(exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"run folder {str(folder.path)!r}: another process is using it; wait until that ends, or choose "
                "another folder with --out."
            ) from None
        except OSError as error:
            raise InputError(
                f"run folder {str(folder.path)!r}: cannot be written to ({one_line(error)}); check the folder "
                "and the disk."
            ) from None

    def close(self) -> None:
        """Waits for the last checkpoint and releases the lock; the checkpoints stay. Raises as `save` does."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._lock.release()

    def clear(self) -> None:
        """Removes all checkpoints and releases the lock: the run is finished. One rename makes it atomic."""
        self.close()
        if not self.folder.writable:
            return
        old = self.folder.path.with_name(f".checkpoints.{secrets.token_hex(4)}")
        # If this fails, the checkpoints stay and the run counts as unfinished, but its results are complete.
        with suppress(OSError):
            self.folder.path.replace(old)
            shutil.rmtree(old)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in a thread, beside training, and then removes all but the last two.

        Args:
            checkpoint: its arrays must not change any more.

        Raises:
            RunError: the checkpoint before could not be written: the disk is full, or the folder is gone. Earlier
                ones stay.
        """
        self.wait()
        place = {"stage": checkpoint.stage, "epoch": checkpoint.epoch, "batch": checkpoint.batch}
        record = json.dumps({"format": FORMAT, **place, "record": checkpoint.record}).encode()
        self._writing = self._writer.submit(self._write, place, record, checkpoint.state)

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk. Raises as `save` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, place: dict[str, int], record: bytes, state: Sequence[np.ndarray]) -> None:
        numbers = self._numbers()
        name = f"{numbers[-1] + 1 if numbers else 1:06d}"
        arrays: dict[str, Any] = {str(index): array for index, array in enumerate(state)}
        with self.folder.atomic(f"{name}.npz") as path, path.open("wb") as file:
            hashed = _Hashed(file)
            np.savez(cast(BinaryIO, hashed), record=np.frombuffer(record, np.uint8), **arrays)
        self.folder.write_json(f"{name}.json", {"sha256": hashed.sha256.hexdigest(), **place})
        for number in numbers[: 1 - KEPT]:
            for suffix in (".json", ".npz"):
                (self.folder.path / f"{number:06d}{suffix}").unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, or None. Damaged ones are logged, and removed once an intact one is read."""
        self.wait()
        damaged = []
        for number in reversed(self._numbers()):
            path = self.folder.path / f"{number:06d}.npz"
            try:
                checkpoint = _read(path)
            except DAMAGE as error:
                reason = one_line(error, 200)
                self._log(f"checkpoint {str(path)!r}: damaged ({reason}); trying the one before")
                damaged.append(path)
                continue
            for file in damaged if self.folder.writable else ():
                file.with_suffix(".json").unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            return checkpoint
        return None

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.path.glob("*.json") if path.stem.isdigit())


class _Hashed:
    """A file that is hashed as it is written. It cannot seek: a zip archive would overwrite what was hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def read(self) -> bytes:
        """NumPy takes only what has this method for a file, and does not call it."""
        raise NotImplementedError


def _read(path: Path) -> Checkpoint:
    """Reads a checkpoint; raises one of `DAMAGE` if it is damaged."""
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if _sha256(path) != stored["sha256"]:
        raise ValueError("SHA-256 mismatch")
    arrays = read_arrays(path)
    header = json.loads(arrays["record"].tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}; this version of kbaseline reads {FORMAT}")
    state = [arrays[str(index)] for index in range(len(arrays) - 1)]
    return Checkpoint(header["stage"], header["epoch"], header["batch"], state, header["record"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
