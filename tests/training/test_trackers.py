"""Trackers: what a service gets is what the run found, and no service can spoil a run."""

import importlib.util
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from kbaseline import ImageData, Learner
from kbaseline.config.load import load_config
from kbaseline.errors import InputError
from kbaseline.training.trackers import Tracker, require_trackers, tracking

QUIET = Console(quiet=True)
CONFIG = load_config({"runtime": {"log": ["tensorboard"]}, "data": {"batch_size": 16, "size": 8}})


class Notebook:
    """A service that keeps what it gets."""

    def __init__(self, fails: bool = False) -> None:
        self.rows, self.closed, self.fails = [], [], fails

    def log(self, figures, epoch):
        if self.fails:
            raise ConnectionError("no route to host")
        self.rows.append((epoch, dict(figures)))

    def close(self, failed):
        self.closed.append(failed)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """A tiny network on noise, whose two stages take a second."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    path = tmp_path_factory.mktemp("backbone") / "tiny.keras"
    first = keras.layers.Conv2D(4, 3, 2, "same")(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same")(first)).save(path)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(40, 8, 8, 3), dtype=np.uint8)
    data = ImageData.from_arrays((pictures[:32], np.arange(32) % 2), (pictures[32:], np.arange(8) % 2))
    return Learner(data, backbone=str(path), config=CONFIG, console=QUIET)


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of every scalar in TensorBoard's event file, read by its published framing.

    A record is its length (8 bytes), a checksum (4), the event, a checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    raw, found, start = path.read_bytes(), [], 0
    while start < len(raw):
        (length,) = struct.unpack_from("<Q", raw, start)
        event = Event.FromString(raw[start + 12 : start + 12 + length])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
        start += length + 16
    return found


def test_tensorboards_file_holds_the_history(learner, tmp_path):
    """Reference: the event file, read by hand, has the history's losses and accuracy; epochs count over stages."""
    pytest.importorskip("tensorboardX")
    learner.history.clear()
    with tracking(tmp_path, CONFIG, QUIET) as trackers:
        learner.callbacks[:] = trackers
        learner.fit_one_cycle(2, 1e-3)
        learner.fit(1, 1e-3)
        trackers[0].log({"final_accuracy": 0.75})
    found = scalars(tmp_path / "tensorboard")
    for name in ("train_loss", "valid_loss", "accuracy"):
        steps = [(step, value) for tag, step, value in found if tag == name]
        assert [step for step, _ in steps] == [1, 2, 3]
        np.testing.assert_allclose([v for _, v in steps], [row[name] for row in learner.history], rtol=1e-6)
    assert ("final_accuracy", 3, 0.75) in found
    rates = [value for tag, _, value in found if tag == "learning_rate"]
    assert rates[1] < rates[0] < 1e-3 == pytest.approx(rates[2])


def test_a_service_that_fails_is_given_up_and_training_goes_on(learner):
    """Invariant: a service without a network costs one line, not the training; it is closed as failed, once."""
    broken, well = Notebook(fails=True), Notebook()
    console = Console(width=200)
    learner.callbacks[:] = [Tracker("mlflow", broken, console), Tracker("wandb", well, console)]
    with console.capture() as shown:
        rows = learner.fit(2, 1e-3)
    assert len(rows) == 2
    assert shown.get() == "mlflow: failed, training continues without it (ConnectionError: no route to host)\n"
    assert broken.closed == [True]
    assert [epoch for epoch, _ in well.rows] == [1, 2]
    assert set(well.rows[0][1]) == {"train_loss", "train_accuracy", "valid_loss", "accuracy", "learning_rate"}


@pytest.mark.parametrize("fails", [False, True])
def test_services_are_closed_however_the_run_ends(fails, tmp_path, monkeypatch):
    """Invariant: the service hears whether the run came to its end."""
    service = Notebook()
    monkeypatch.setattr("kbaseline.training.trackers._TensorBoard", lambda folder, config: service)

    def run():
        with tracking(tmp_path, CONFIG, QUIET):
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert service.closed == [fails]


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    """One line that says what to install, before anything is trained; no tracker, no complaint."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_trackers(())
    with pytest.raises(InputError, match=r"'wandb': needs the package wandb; run `pip install 'kbaseline\[wandb\]'`"):
        require_trackers(("wandb",))


def test_a_service_that_cannot_begin_is_one_line(tmp_path, monkeypatch):
    """Invariant: a refused login ends the run before training, in one line with the service's reason."""

    def refuse(folder, config):
        raise RuntimeError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr("kbaseline.training.trackers._TensorBoard", refuse)
    with pytest.raises(
        InputError, match=r"'tensorboard': cannot be started \(RuntimeError: No API key.* Use"
    ) as caught:
        tracking(tmp_path, CONFIG, QUIET).__enter__()
    assert "\n" not in str(caught.value)


def test_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    """The real package, offline: it takes figures and settings and leaves its file."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = CONFIG.model_copy(update={"runtime": CONFIG.runtime.model_copy(update={"log": ("wandb",)})})
    with tracking(tmp_path / "run-7", config, QUIET) as (tracker,):
        tracker.log({"accuracy": 0.5})
        summary = dict(tracker._service._run.summary)
        assert (summary["accuracy"], summary["epoch"]) == (0.5, 0)
        assert tracker._service._run.config["data"]["size"] == 8
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"run-7" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_keeps_a_run_in_its_store(tmp_path, monkeypatch):
    """The real package, in an SQLite file: figures by epoch, settings by dotted key, and how the run ended."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = CONFIG.model_copy(update={"runtime": CONFIG.runtime.model_copy(update={"log": ("mlflow",)})})
    with tracking(tmp_path / "run-7", config, QUIET) as (tracker,):
        tracker.epochs = 2
        tracker.log({"accuracy": 0.5})
        assert tracker._service is not None
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("kbaseline").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run-7", "FINISHED")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "accuracy")] == [(2, 0.5)]
    assert run.data.params["stages.0.name"] == "head"
