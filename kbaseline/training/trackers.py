"""Trackers: log the metrics of every epoch to TensorBoard, Weights & Biases or MLflow during training.

Each is an optional package that does not need TensorFlow. `history.csv` and `result.json` are always written.
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
"""Tracker -> the module it needs; `pip install 'kbaseline[TRACKER]'` installs it."""

_PROJECT = "kbaseline"
"""Default name of the project or experiment; environment variables override it."""

_NAMES = {"loss": "train_loss", "accuracy": "train_accuracy", "val_loss": "valid_loss", "val_accuracy": "accuracy"}
"""Keras' names of metrics -> those of `history.csv`."""


class Service(Protocol):
    """A service that records metrics."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Records the metrics of an epoch, counted from 1 over all stages."""

    def close(self, failed: bool) -> None:
        """Ends the service's run."""


class Tracker(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs the metrics of every epoch to a service; epochs are counted over all stages.

    If the service fails, one line is printed, logging stops and training continues.

    Args:
        name: name of the tracker.
        service: the service to log to.
        console: where a failure is printed.
    """

    def __init__(self, name: str, service: Service, console: Console) -> None:
        super().__init__()
        self.name, self.console = name, console
        self.epochs = 0
        self._service: Service | None = service

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs losses, accuracies (0 to 1) and the learning rate of the head."""
        self.epochs += 1
        metrics = {_NAMES.get(key, key): float(value) for key, value in (logs or {}).items()}
        self.log({**metrics, "learning_rate": float(self.model.optimizer.learning_rate)})

    def log(self, metrics: Mapping[str, float]) -> None:
        """Logs metrics for the last epoch."""
        if self._service is None:
            return
        try:
            self._service.log(metrics, self.epochs)
        except Exception as error:
            self.console.print(
                f"{self.name}: failed, training continues without it ({with_kind(error)})",
                style="yellow",
                markup=False,
            )
            self.close(failed=True)

    def close(self, failed: bool) -> None:
        """Ends the service's run, once."""
        service, self._service = self._service, None
        if service is not None:
            with suppress(Exception):
                service.close(failed)


def require_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed, before any long work starts.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        require(f"runtime.log {name!r}", name, _PACKAGES[name])


@contextmanager
def tracking(folder: Path, config: Config, console: Console) -> Iterator[list[Tracker]]:
    """Opens the trackers listed in `config.runtime.log`, and closes them however the block ends.

    Args:
        folder: the run folder; its name is the name of the tracked run, and TensorBoard's files go there.
        config: logged as the run's settings, by dotted key.
        console: where a tracker's failure is printed.

    Raises:
        InputError: a tracker cannot be started, for instance because of a missing login.
    """
    trackers: list[Tracker] = []
    failed = True
    try:
        for name in dict.fromkeys(config.runtime.log if is_first() else ()):
            trackers.append(Tracker(name, _start(name, folder, config), console))
        yield trackers
        failed = False
    finally:
        for tracker in trackers:
            tracker.close(failed)


def _start(name: str, folder: Path, config: Config) -> Service:
    services: dict[str, Callable[[Path, Config], Service]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
        "mlflow": _MLflow,
    }
    try:
        return services[name](folder, config)
    except Exception as error:
        raise InputError(
            f"runtime.log {name!r}: cannot be started ({with_kind(error)}). Set it up as its documentation describes, "
            "or remove it."
        ) from error


class _TensorBoard:
    """Event files in `tensorboard/` of the run folder; `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(logdir=str(folder / "tensorboard"))
        self._writer.add_text("config", f"```yaml\n{config.to_yaml()}```")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """A Weights & Biases run; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = module.init(project=project, name=folder.name, config=config.model_dump(mode="json"))

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._run.log({**metrics, "epoch": epoch})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """An MLflow run at `MLFLOW_TRACKING_URI`, by default `mlflow.db` in the working folder."""

    def __init__(self, folder: Path, config: Config) -> None:
        module = importlib.import_module("mlflow")
        self._client = module.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        existing = self._client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in flattened(config.model_dump(mode="json")).items():
            self._client.log_param(self._id, key, value)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=epoch)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
