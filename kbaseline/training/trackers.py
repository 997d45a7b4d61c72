"""Trackers: every epoch's figures to TensorBoard, Weights & Biases or MLflow while a run trains.

Each is an optional package that needs no TensorFlow. `history.csv` and `result.json` are written with them or without.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import keras
from rich.console import Console

from kbaseline.config.keys import flattened
from kbaseline.config.schema import Config
from kbaseline.devices.multihost import is_first
from kbaseline.errors import InputError, require, with_kind

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""Tracker -> the module it needs; `pip install 'kbaseline[TRACKER]'` brings it."""

_PROJECT = "kbaseline"
"""Runs are kept under this project or experiment, unless the environment names another."""

_NAMES = {"loss": "train_loss", "accuracy": "train_accuracy", "val_loss": "valid_loss", "val_accuracy": "accuracy"}
"""Keras' names of figures -> those of `history.csv`."""


class Service(Protocol):
    """A place that takes figures."""

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Takes the figures of an epoch, counted from 1 over all stages."""

    def close(self, failed: bool) -> None:
        """Ends the run there."""


class Tracker(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands every epoch's figures to a service; epochs are counted on from stage to stage.

    A service that fails is given up with one line, for no tracker is worth a training.

    Args:
        name: the tracker's.
        service: where the figures go.
        console: where a failure is told.
    """

    def __init__(self, name: str, service: Service, console: Console) -> None:
        super().__init__()
        self.name, self.console = name, console
        self.epochs = 0
        self._service: Service | None = service

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Hands over losses, accuracies (0 to 1) and the learning rate of the head."""
        self.epochs += 1
        figures = {_NAMES.get(key, key): float(value) for key, value in (logs or {}).items()}
        self.log({**figures, "learning_rate": float(self.model.optimizer.learning_rate)})

    def log(self, figures: Mapping[str, float]) -> None:
        """Hands over figures as those of the last epoch."""
        if self._service is None:
            return
        try:
            self._service.log(figures, self.epochs)
        except Exception as error:
            self.console.print(
                f"{self.name}: given up, training goes on ({with_kind(error)})",
                style="yellow",
                markup=False,
            )
            self.close(failed=True)

    def close(self, failed: bool) -> None:
        """Ends the run there, once."""
        service, self._service = self._service, None
        if service is not None:
            with suppress(Exception):
                service.close(failed)


def require_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is missing, before anything long is begun.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        require(f"runtime.log {name!r}", name, _PACKAGES[name])


@contextmanager
def tracking(folder: Path, config: Config, console: Console) -> Iterator[list[Tracker]]:
    """Opens the trackers `config.runtime.log` names, and closes them however the block ends.

    Args:
        folder: the run folder, whose name the run has there too; TensorBoard's file lies in it.
        config: recorded as the run's settings, by dotted key.
        console: where a tracker's failure is told.

    Raises:
        InputError: one cannot begin, for instance for want of a login.
    """
    trackers: list[Tracker] = []
    failed = True
    try:
        for name in dict.fromkeys(config.runtime.log if is_first() else ()):
            trackers.append(Tracker(name, _opened(name, folder, config), console))
        yield trackers
        failed = False
    finally:
        for tracker in trackers:
            tracker.close(failed)


def _opened(name: str, folder: Path, config: Config) -> Service:
    services: dict[str, Callable[[Path, Config], Service]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
        "mlflow": _MLflow,
    }
    try:
        return services[name](folder, config)
    except Exception as error:
        raise InputError(
            f"runtime.log {name!r}: cannot begin ({with_kind(error)}). Set it up as {name} says, or leave it out."
        ) from error


class _TensorBoard:
    """Event files in `tensorboard/` of the run folder: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(logdir=str(folder / "tensorboard"))
        self._writer.add_text("config", f"```yaml\n{config.to_yaml()}```")

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = module.init(project=project, name=folder.name, config=config.model_dump(mode="json"))

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        self._run.log({**figures, "epoch": epoch})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run where `MLFLOW_TRACKING_URI` says, else where MLflow keeps its own: `mlflow.db` in the working folder."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("mlflow")
        self._client = module.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in flattened(config.model_dump(mode="json")).items():
            self._client.log_param(self._id, key, value)

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._id, name, value, step=epoch)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
