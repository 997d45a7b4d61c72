"""A session: the part of a run that one process does, from where the last one got to, in a folder nobody else uses."""

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

PLACE = ("devices", "coordinator", "num_processes", "process_id")
"""The keys of `runtime` that say where a run runs, which may be another place when it is resumed."""

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
            raise ValueError("the arrays of a sweep differ in length")
        return self


class _Start(BaseModel):
    """What is read of a checkpoint besides its state; a loss may be infinite."""

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
    """Holds a run folder, saves the run between two steps when it is time or a signal asks for it, and can go on.

    As a context manager it takes over SIGINT and SIGTERM, and lets go of the folder at the end.

    Args:
        folder: the run folder.
        config: the run's configuration.
        say: takes a line for the person who watches, and perhaps a style.
        resumed: whether the folder is that of an earlier process.

    Attributes:
        folder: the run folder.
        start: where an earlier process got to, or None.
        interrupts: the signals.

    Raises:
        InputError: another process runs in the folder, or it cannot be written to.
    """

    def __init__(self, folder: RunFolder, config: Config, say: Callable[..., None], *, resumed: bool) -> None:
        self.folder = folder
        self.start: Checkpoint | None = None
        self._config, self._say, self._resumed = config, say, resumed
        self._checkpoints = Checkpoints(folder, lambda line: say(line, "yellow"))
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
        """Lets another process have the folder."""
        self._checkpoints.close()

    def begin(self, data: ImageData, seconds: dict[str, float]) -> None:
        """Writes the configuration, or finds out how far an earlier process got and that it had the same task.

        Args:
            data: what is learnt from.
            seconds: of each part of the run; takes those of an earlier process, and is kept as it grows.

        Raises:
            InputError: configuration or data are not those of the earlier process.
            RunError: the folder cannot be written to.
        """
        self._record: dict[str, Any] = {
            "config": _anywhere(self._config, PLACE),
            "data": data.fingerprint(),
            "environment": environment(),
            "seconds": seconds,
            "sweeps": {},
        }
        if not self._resumed:
            # Each process has its own number, and the folder none.
            self.folder.write_text("config.yaml", _anywhere(self._config, PLACE[1:]))
            self._say(f"run folder: {self.folder.path}")
            return
        for folder in (self.folder, self._checkpoints.folder):
            folder.tidy()
        self.start = self._checkpoints.newest()
        if self.start is None:
            self._say(f"{self.folder.path}: no checkpoint that can be used; the run starts anew", "yellow")
            return
        earlier = self.start.record
        self._check(self.start)
        self._compare(earlier)
        self._record["sweeps"] |= earlier["sweeps"]
        for part, spent in earlier["seconds"].items():
            seconds.setdefault(part, spent)
        stage, epoch, batch = self._config.stages[self.start.stage], self.start.epoch, self.start.batch
        place = (
            f"at {stage.name}, epoch {epoch + 1}, batch {batch + 1}" if epoch < stage.epochs else f"after {stage.name}"
        )
        self._say(f"{self.folder.path}: goes on {place}")

    def _check(self, start: Checkpoint) -> None:
        """Refuses what is whole and yet says nothing that a run of this configuration could have written."""
        try:
            _Start.model_validate({"stage": start.stage, "epoch": start.epoch, "batch": start.batch, **start.record})
            if not start.epoch <= self._config.stages[start.stage].epochs:
                raise ValueError(f"epoch {start.epoch} of {self._config.stages[start.stage].epochs}")
        except (ValueError, TypeError, IndexError, RecursionError) as error:
            raise InputError(
                f"run folder {str(self.folder.path)!r}: its checkpoint is not one of this version ({one_line(error)}); "
                "start a new run."
            ) from None

    def _compare(self, earlier: Mapping[str, Any]) -> None:
        for what in ("config", "data"):
            if self._record[what] != earlier[what]:
                raise InputError(
                    f"run folder {str(self.folder.path)!r}: the {what} changed since its checkpoint; start a new run."
                )
        for name, now in self._record["environment"].items():
            if now != (then := earlier["environment"].get(name)):
                self._say(f"{name} was {then}, is {now}: the result may differ in its last digits", "yellow")

    def curve(self, stage: str, sweep: Callable[[], LRCurve]) -> LRCurve:
        """A stage's learning-rate sweep: the one of an earlier process, or a new one, which is kept."""
        curves = self._record["sweeps"]
        if stage not in curves:
            curve = sweep()
            arrays = {name: getattr(curve, name).tolist() for name in _CURVE}
            curves[stage] = {**arrays, "planned": curve.planned}
        kept = curves[stage]
        return LRCurve(planned=kept["planned"], **{name: np.array(kept[name]) for name in _CURVE})

    def due(self) -> bool:
        """Whether a checkpoint is wanted within an epoch."""
        every = 60 * self._config.runtime.checkpoint_minutes
        waited = self.folder.written and time.monotonic() - self._last >= every
        return self.interrupts.reached() or waited

    def save(
        self, place: tuple[int, int, int], state: Sequence[np.ndarray], history: list[dict[str, Any]], elapsed: float
    ) -> None:
        """Writes a checkpoint.

        Args:
            place: stage, epoch and batch; see `Checkpoint`.
            state: see `Checkpoint`.
            history: one row for each epoch up to now.
            elapsed: seconds of the running epoch.

        Raises:
            RunError: the disk is full, or the folder has gone.
        """
        self._checkpoints.save(Checkpoint(*place, state, {**self._record, "history": history, "elapsed": elapsed}))
        self._last = time.monotonic()

    def finish(self) -> None:
        """Marks the run as finished: its checkpoints go."""
        self._checkpoints.clear()


def _anywhere(config: Config, names: Sequence[str]) -> str:
    """The configuration as YAML, with these keys of `runtime` at their defaults."""
    defaults = {name: RuntimeConfig.model_fields[name].default for name in names}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=defaults)}).to_yaml()
