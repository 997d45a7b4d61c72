"""A session: the work of one process on a run, with its folder locked, from the last checkpoint if there is one."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kbaseline.config.schema import Config, RuntimeConfig
from kbaseline.data import ImageData
from kbaseline.devices.xla import environment
from kbaseline.errors import InputError, one_line
from kbaseline.lr_finder import LRCurve
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import Checkpoint, Checkpoints
from kbaseline.training.signals import Interrupts

PLACEMENT_KEYS = ("devices", "coordinator", "num_processes", "process_id")
"""Keys of `runtime` that set where a run executes; they may change when it is resumed."""

_CURVE = ("lrs", "losses", "smoothed")
"""The arrays of an `LRCurve`."""


class _Curve(BaseModel):
    model_config = ConfigDict(strict=True)

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    planned: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if not len(self.lrs) == len(self.losses) == len(self.smoothed) > 0:
            raise ValueError("the arrays of a sweep have different lengths")
        return self


class _CheckpointRecord(BaseModel):
    """The content of a checkpoint except its state, for validation; a loss may be infinite."""

    model_config = ConfigDict(strict=True)

    stage: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=0)]
    config: str
    data: str
    environment: dict[str, Any]
    seconds: dict[str, float]
    sweeps: dict[str, _Curve]
    history: list[dict[str, str | float | None]]
    elapsed: float


class Session:
    """Locks a run folder, saves checkpoints when they are due or a signal arrives, and resumes from the last one.

    As a context manager it handles SIGINT and SIGTERM, and unlocks the folder at the end.

    Args:
        folder: the run folder.
        config: the run's configuration.
        log: prints a line, with an optional rich style.
        resumed: whether an earlier process began the run.

    Attributes:
        folder: the run folder.
        start: the checkpoint to continue from, or None.
        interrupts: handles the signals.

    Raises:
        InputError: another process is using the folder, or it cannot be written to.
    """

    def __init__(self, folder: RunFolder, config: Config, log: Callable[..., None], *, resumed: bool) -> None:
        self.folder = folder
        self.start: Checkpoint | None = None
        self._config, self._log, self._resumed = config, log, resumed
        self._checkpoints = Checkpoints(folder, lambda line: log(line, "yellow"))
        self.interrupts = Interrupts(f"continue with: kbaseline fit --resume {shlex.quote(str(folder.path))}")
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self.interrupts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interrupts.__exit__(kind, error, trace)
        self.close()

    def close(self) -> None:
        """Unlocks the folder."""
        self._checkpoints.close()

    def begin(self, data: ImageData, seconds: dict[str, float]) -> None:
        """Writes the configuration of a new run, or loads the last checkpoint and checks that it fits.

        Args:
            data: the training data.
            seconds: seconds per part of the run; updated with those of an earlier process, and saved in checkpoints.

        Raises:
            InputError: the configuration or the data changed since the checkpoint.
            RunError: the folder cannot be written to.
        """
        self._record: dict[str, Any] = {
            "config": _yaml_without(self._config, PLACEMENT_KEYS),
            "data": data.fingerprint(),
            "environment": environment(),
            "seconds": seconds,
            "sweeps": {},
        }
        if not self._resumed:
            # Coordinator and process number differ between processes and do not belong in the folder.
            self.folder.write_text("config.yaml", _yaml_without(self._config, PLACEMENT_KEYS[1:]))
            self._log(f"run folder: {self.folder.path}")
            return
        for folder in (self.folder, self._checkpoints.folder):
            folder.tidy()
        self.start = self._checkpoints.newest()
        if self.start is None:
            self._log(f"{self.folder.path}: no usable checkpoint; the run starts from the beginning", "yellow")
            return
        earlier = self.start.record
        self._check_checkpoint(self.start)
        self._check_unchanged(earlier)
        self._record["sweeps"] |= earlier["sweeps"]
        for part, spent in earlier["seconds"].items():
            seconds.setdefault(part, spent)
        stage, epoch, batch = self._config.stages[self.start.stage], self.start.epoch, self.start.batch
        place = (
            f"at {stage.name}, epoch {epoch + 1}, batch {batch + 1}" if epoch < stage.epochs else f"after {stage.name}"
        )
        self._log(f"{self.folder.path}: continues {place}")

    def _check_checkpoint(self, start: Checkpoint) -> None:
        """Refuses an intact checkpoint that a run of this configuration cannot have written."""
        try:
            _CheckpointRecord.model_validate(
                {"stage": start.stage, "epoch": start.epoch, "batch": start.batch, **start.record}
            )
            if not start.epoch <= self._config.stages[start.stage].epochs:
                raise ValueError(f"epoch {start.epoch} of {self._config.stages[start.stage].epochs}")
        except (ValueError, TypeError, IndexError, RecursionError) as error:
            raise InputError(
                f"run folder {str(self.folder.path)!r}: its checkpoint was not written by this version "
                f"({one_line(error)}); start a new run."
            ) from None

    def _check_unchanged(self, earlier: Mapping[str, Any]) -> None:
        for what in ("config", "data"):
            if self._record[what] != earlier[what]:
                raise InputError(
                    f"run folder {str(self.folder.path)!r}: the {what} changed since its checkpoint; start a new run."
                )
        for name, now in self._record["environment"].items():
            if now != (then := earlier["environment"].get(name)):
                self._log(f"{name} was {then}, is {now}: the result may differ in the last digits", "yellow")

    def curve(self, stage: str, sweep: Callable[[], LRCurve]) -> LRCurve:
        """The learning-rate curve of a stage: saved by an earlier process, or computed by `sweep` and saved."""
        curves = self._record["sweeps"]
        if stage not in curves:
            curve = sweep()
            arrays = {name: getattr(curve, name).tolist() for name in _CURVE}
            curves[stage] = {**arrays, "planned": curve.planned}
        kept = curves[stage]
        return LRCurve(planned=kept["planned"], **{name: np.array(kept[name]) for name in _CURVE})

    def checkpoint_due(self) -> bool:
        """Whether to save a checkpoint after this step."""
        every = 60 * self._config.runtime.checkpoint_minutes
        waited = self.folder.writable and time.monotonic() - self._last >= every
        return self.interrupts.stop_requested() or waited

    def save(
        self, place: tuple[int, int, int], state: Sequence[np.ndarray], history: list[dict[str, Any]], elapsed: float
    ) -> None:
        """Writes a checkpoint, beside training.

        Args:
            place: stage, epoch and batch; see `Checkpoint`.
            state: see `Checkpoint`; arrays that do not change any more.
            history: one row per epoch so far.
            elapsed: seconds since the current epoch began.

        Raises:
            RunError: the one before could not be written: the disk is full, or the folder is gone.
        """
        self._checkpoints.save(Checkpoint(*place, state, {**self._record, "history": history, "elapsed": elapsed}))
        self._last = time.monotonic()

    def finish(self) -> None:
        """Marks the run as finished by removing its checkpoints."""
        self._checkpoints.clear()


def _yaml_without(config: Config, names: Sequence[str]) -> str:
    """The configuration as YAML, with these keys of `runtime` reset to their defaults."""
    defaults = {name: RuntimeConfig.model_fields[name].default for name in names}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=defaults)}).to_yaml()
