"""A session: the work of one process on a run, with its folder locked, from the last checkpoint if there is one."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kbaseline.config.keys import parse_yaml
from kbaseline.config.load import load_config
from kbaseline.config.schema import Config, RuntimeConfig
from kbaseline.data import ImageData
from kbaseline.devices.environment import environment
from kbaseline.errors import ConfigError, InputError, one_line
from kbaseline.lr_finder import LRCurve
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import Checkpoint, Checkpoints
from kbaseline.training.places import PROCESS_KEYS, difference
from kbaseline.training.signals import Interrupts

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
    floor: dict[str, float | int | str | None] | None = None
    leaked: dict[str, list[int]] | None = None


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
        """Loads the last checkpoint of an earlier process and checks that it fits; writes the configuration.

        Args:
            data: the training data.
            seconds: seconds per part of the run; updated with those of an earlier process, and saved in checkpoints.

        Raises:
            InputError: the configuration or the data changed since the checkpoint.
            RunError: the folder cannot be written to.
        """
        text = _yaml(self._config)
        self._record: dict[str, Any] = {
            "config": text,
            "data": data.fingerprint(),
            "environment": environment(),
            "seconds": seconds,
            "sweeps": {},
        }
        if self._resumed:
            self._go_on(data, seconds)
        self.folder.write_text("config.yaml", text)
        if not self._resumed:
            self._log(f"run folder: {self.folder.path}")

    def _go_on(self, data: ImageData, seconds: dict[str, float]) -> None:
        for folder in (self.folder, self._checkpoints.folder):
            folder.tidy()
        self.start = self._checkpoints.newest()
        if self.start is None:
            self._log(f"{self.folder.path}: no usable checkpoint; the run starts from the beginning", "yellow")
            return
        earlier = self.start.record
        self._check_unchanged(self._checked_config(self.start), earlier, data)
        self._record["sweeps"] |= earlier["sweeps"]
        self._record |= {name: earlier[name] for name in ("floor", "leaked") if name in earlier}
        for part, spent in earlier["seconds"].items():
            seconds.setdefault(part, spent)
        stage, epoch, batch = self._config.stages[self.start.stage], self.start.epoch, self.start.batch
        place = (
            f"at {stage.name}, epoch {epoch + 1}, batch {batch + 1}" if epoch < stage.epochs else f"after {stage.name}"
        )
        self._log(f"{self.folder.path}: continues {place}")

    def _checked_config(self, start: Checkpoint) -> Config:
        """The configuration of a checkpoint; refuses an intact one that a run of ours cannot have written."""
        try:
            _CheckpointRecord.model_validate(
                {"stage": start.stage, "epoch": start.epoch, "batch": start.batch, **start.record}
            )
            if not start.epoch <= self._config.stages[start.stage].epochs:
                raise ValueError(f"epoch {start.epoch} of {self._config.stages[start.stage].epochs}")
            return load_config(dict(parse_yaml(start.record["config"], "its configuration")))
        except (ConfigError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise InputError(
                f"run folder {str(self.folder.path)!r}: its checkpoint was not written by this version "
                f"({one_line(error)}); start a new run."
            ) from None

    def _check_unchanged(self, config: Config, earlier: Mapping[str, Any], data: ImageData) -> None:
        # The configurations, not their texts: another version may know more keys, and order them otherwise.
        if changed := difference(config, self._config):
            raise InputError(
                f"run folder {str(self.folder.path)!r}: {changed}; the config changed since its checkpoint; "
                "start a new run."
            )
        if earlier["data"] not in (self._record["data"], data.fingerprint(contents=False)):
            raise InputError(
                f"run folder {str(self.folder.path)!r}: images or labels of {self._config.data.source!r} changed since "
                "its checkpoint; restore them, or start a new run."
            )
        before, today = earlier["environment"], self._record["environment"]
        for name in {**today, **before}:
            if (now := today.get(name, "not set")) != (then := before.get(name, "not set")):
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

    def once(self, name: Literal["floor", "leaked"], work: Callable[[], Any]) -> Any:
        """What was found before training, as JSON types: saved by an earlier process, or found by `work` and saved."""
        if name not in self._record:
            self._record[name] = work()
        return self._record[name]

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


def _yaml(config: Config) -> str:
    """The configuration as YAML, without what differs between processes and does not belong in the folder."""
    defaults = {name: RuntimeConfig.model_fields[name].default for name in PROCESS_KEYS}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=defaults)}).to_yaml()
