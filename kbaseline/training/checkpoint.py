"""Checkpoints: where a run stands, kept so that one that is killed at any moment ends with the same result.

A checkpoint holds the whole state of Keras' compiled training step (weights, BatchNorm statistics, seed generators,
optimizer, sums of the metrics), the stage, epoch and batch it was taken at, and what the run had found by then: its
history and the curves of the learning-rate finder. Everything else is a function of the configuration. A resumed run
goes through the recipe again from its beginning, takes what the checkpoint holds instead of training and sweeping, and
trains on from there. So rates, momenta, the order of the images and every draw come out bitwise as they would have, on
a CPU and with the same versions.

Where things lie, in `RUN/checkpoints/`:

- `000007.npz`: the arrays `0`, `1`, ... of the state, in Keras' order, and `record`, JSON as UTF-8 bytes;
- `000007.json`: its SHA-256, written after it and likewise by rename. An `.npz` without one does not count;
- `lock`: held by the process that runs. The system frees it with the process, so a dead one blocks nobody.

The last two are kept. They are taken where a stage begins, after every epoch, every `runtime.checkpoint_minutes`
between two steps, and on SIGINT and SIGTERM. A finished run has a `result.json` and no `checkpoints` folder any more.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from kbaseline.errors import InputError, one_line
from kbaseline.storage.npz import read_arrays
from kbaseline.storage.run_folder import RunFolder

FORMAT = 1
"""Version of the files; another one is not read."""

KEPT = 2
"""Checkpoints that are kept: should the newest be damaged, there is the one before."""

DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a damaged file raises."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run stood.

    Attributes:
        stage: stages before the running one.
        epoch: epochs of the stage that are finished.
        batch: batches of the running epoch that are finished.
        state: the arrays of the compiled step, in Keras' order.
        record: what the run had found, in what JSON has.
    """

    stage: int
    epoch: int
    batch: int
    state: Sequence[np.ndarray]
    record: Mapping[str, Any]


def finished(folder: RunFolder) -> bool:
    """Whether the run of a folder went through to its end."""
    return (folder.path / "result.json").exists() and not (folder.path / "checkpoints").exists()


class Checkpoints:
    """The checkpoints of a run folder, which belongs to one process until this is closed.

    Of several processes that run as one, the first has the folder; the others read.

    Args:
        folder: the run folder.
        report: takes a line about each checkpoint that is damaged.

    Raises:
        InputError: another process runs in the folder, or it cannot be written to.
    """

    def __init__(self, folder: RunFolder, report: Callable[[str], None]) -> None:
        self.folder = RunFolder(folder.path / "checkpoints", folder.written)
        self._report = report
        self._lock = filelock.FileLock(self.folder.path / "lock", blocking=False)
        if not folder.written:
            return
        try:
            self.folder.path.mkdir(exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"run folder {str(folder.path)!r}: another process is running in it; wait until it has ended, or name "
                "another folder with --out."
            ) from None
        except OSError as error:
            raise InputError(
                f"run folder {str(folder.path)!r}: cannot be written to ({one_line(error)}); check the folder "
                "and the disk."
            ) from None

    def close(self) -> None:
        """Lets another process in; the checkpoints stay."""
        self._lock.release()

    def clear(self) -> None:
        """Removes all checkpoints, by one rename first, and lets another process in: the run is finished."""
        self.close()
        if not self.folder.written:
            return
        old = self.folder.path.with_name(f".checkpoints.{secrets.token_hex(4)}")
        # Where that fails, they stay and the run counts as not finished; its results are there all the same.
        with suppress(OSError):
            self.folder.path.replace(old)
            shutil.rmtree(old)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint and lets go of all but the last two.

        Raises:
            RunError: the disk is full, or the folder has gone; the checkpoints there were stay.
        """
        numbers = self._numbers()
        name = f"{numbers[-1] + 1 if numbers else 1:06d}"
        place = {"stage": checkpoint.stage, "epoch": checkpoint.epoch, "batch": checkpoint.batch}
        record = json.dumps({"format": FORMAT, **place, "record": checkpoint.record}).encode()
        arrays: dict[str, Any] = {str(index): array for index, array in enumerate(checkpoint.state)}
        with self.folder.atomic(f"{name}.npz") as path:
            with path.open("wb") as file:
                np.savez(file, record=np.frombuffer(record, np.uint8), **arrays)
            digest = _sha256(path)
        self.folder.write_json(f"{name}.json", {"sha256": digest, **place})
        for number in numbers[: 1 - KEPT]:
            for suffix in (".json", ".npz"):
                (self.folder.path / f"{number:06d}{suffix}").unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. Damaged ones are reported, and removed once another is read."""
        damaged = []
        for number in reversed(self._numbers()):
            path = self.folder.path / f"{number:06d}.npz"
            try:
                found = _read(path)
            except DAMAGE as error:
                reason = one_line(error, 200)
                self._report(f"checkpoint {str(path)!r}: damaged ({reason}); trying the one before")
                damaged.append(path)
                continue
            for file in damaged if self.folder.written else ():
                file.with_suffix(".json").unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            return found
        return None

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.path.glob("*.json") if path.stem.isdigit())


def _read(path: Path) -> Checkpoint:
    """A checkpoint, or one of `DAMAGE`."""
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if _sha256(path) != stored["sha256"]:
        raise ValueError("its SHA-256 is not the one beside it")
    arrays = read_arrays(path)
    whole = json.loads(arrays["record"].tobytes())
    if whole["format"] != FORMAT:
        raise ValueError(f"format {whole['format']!r}, and this version of kbaseline reads {FORMAT}")
    state = [arrays[str(index)] for index in range(len(arrays) - 1)]
    return Checkpoint(whole["stage"], whole["epoch"], whole["batch"], state, whole["record"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
