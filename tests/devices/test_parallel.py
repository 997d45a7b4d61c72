"""Eight devices or several processes train, sweep and predict as one device does, and fail together."""

import io
import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import keras
import numpy as np
import pytest
import small_run
from launch import Launched
from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.data.batches import ImageBatches
from kbaseline.devices.parallel import available_devices, data_parallel
from kbaseline.devices.predict import prediction_batch_size
from kbaseline.errors import ConfigError, InputError
from kbaseline.learner import Learner

TOLERANCE = 1e-5
"""Largest difference of a loss, relative, and of a weight or probability; measured: up to 1e-6."""


@pytest.fixture
def recipe(fit_in_a_shell) -> Path:
    """The small run's recipe."""
    return fit_in_a_shell / "recipe.yaml"


@pytest.fixture
def whole(fit_in_a_shell) -> Path:
    """The recipe's run folder from one device."""
    return fit_in_a_shell / "run"


def assert_alike(folder: Path, whole: Path) -> None:
    """Asserts equal runs up to float summation order: curves, suggestions, predictions, weights, seeds."""
    for figure, difference in small_run.differences(folder, whole).items():
        # The finder ends at rates that amplify differences.
        assert difference <= (10 * TOLERANCE if figure.startswith("lr_find") else TOLERANCE), figure


def assert_one_speaks(launched: Launched) -> None:
    """Only the first process says anything, and no other writes a file anywhere."""
    assert all(launched.text(number) == "" for number in range(1, len(launched.logs)))
    assert all(not list(folder.iterdir()) for folder in launched.folders)


def test_two_processes_train_as_one(recipe, whole, tmp_path):
    """The first stage alone, without a sweep or views: the epoch of one device (reference). The smoke of the next."""
    first = json.dumps(small_run.recipe("")["stages"][:1])
    command = ["fit", "--config", recipe, "--out", tmp_path / "run", "--set", f"stages={first}", "--set", "tta=null"]
    launched = Launched(command, tmp_path / "logs", 2)
    assert launched.codes() == [0, 0], launched.text()
    assert "2 devices of 2 processes share every batch, 16 images each\n" in launched.text()
    epochs = (small_run.columns(run / "history.csv") for run in (tmp_path / "run", whole))
    for mine, other in zip(*(columns.values() for columns in epochs), strict=True):
        assert mine[0] == pytest.approx(other[0], rel=TOLERANCE)
    assert_one_speaks(launched)


@pytest.mark.parametrize(
    ("processes", "devices"),
    [(1, 8), pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
    ids=str,
)
def test_many_devices_train_as_one(recipe, whole, tmp_path, processes, devices):
    """Eight devices of one process, two processes of two, four of one: the run of one device (reference).

    Only the first process prints, and no other process writes a file.
    """
    launched = Launched(["fit", "--config", recipe, "--out", tmp_path / "run"], tmp_path / "logs", processes, devices)
    assert launched.codes() == [0] * processes, launched.text()
    among = f"of {processes} processes " if processes > 1 else ""
    each = 32 // (processes * devices)
    assert f"{processes * devices} devices {among}share every batch, {each} images each\n" in launched.text()
    assert_alike(tmp_path / "run", whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in whole.iterdir())
    assert_one_speaks(launched)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_other_numbers_go_on(recipe, whole, tmp_path, victim):
    """SIGKILL of one of two processes within an epoch: the other ends within a minute and prints the reason.

    If the first process died, JAX prints it. The run is resumed in four processes; SIGTERM to one of them stops all
    after the same step. It is then resumed in one process with eight devices, and equals the uninterrupted run.
    """
    run = tmp_path / "run"
    launched = Launched(["fit", "--config", recipe, "--out", run], tmp_path / "two", 2)
    wait_for(run, launched, stage=0)
    launched.processes[victim].kill()
    began = time.monotonic()
    codes = launched.codes()
    assert time.monotonic() - began < 60
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == (1 if victim else -signal.SIGABRT)
    said = "start all of them again, with --resume RUN" if victim else "indicates that another task died"
    assert said in launched.text(1 - victim)

    launched = Launched(["fit", "--resume", run], tmp_path / "four", 4)
    wait_for(run, launched, stage=1)
    launched.processes[2].terminate()
    assert launched.codes() == [128 + signal.SIGTERM] * 4, launched.text()
    assert "stopped by SIGTERM; continue with: kbaseline fit --resume" in launched.text()

    launched = Launched(["fit", "--resume", run], tmp_path / "eight", 1, 8)
    assert launched.codes() == [0], launched.text()
    assert "continues at all, epoch" in launched.text()
    assert_alike(run, whole)


def wait_for(run: Path, launched: Launched, stage: int) -> None:
    """Waits until a checkpoint within an epoch of a stage exists."""
    while all(process.poll() is None for process in launched.processes):
        for path in run.glob("checkpoints/*.json"):
            try:
                place = json.loads(path.read_text())
            except FileNotFoundError:
                continue
            if place["stage"] == stage and place["batch"] > 0:
                return
        time.sleep(0.01)
    launched.codes()
    pytest.fail(f"ended too early: {launched.text()}")


@pytest.mark.slow
def test_a_mistake_is_said_by_each_process_and_none_is_left_waiting(recipe, tmp_path):
    """A batch size that is not a multiple of three: each process exits with code 2 and one line; no folder."""
    launched = Launched(["fit", "--config", recipe, "--out", tmp_path / "run"], tmp_path / "logs", 3)
    assert launched.codes() == [2, 2, 2], launched.text()
    assert launched.text(2) == (
        "Error: data.batch_size 32: must be a multiple of the 3 devices that share a batch; the nearest is 33."
    )
    assert not (tmp_path / "run").exists()


def fake_devices(monkeypatch, *processes: int) -> None:
    """Makes JAX report this many devices in each process."""
    devices = [SimpleNamespace(process_index=index) for index, count in enumerate(processes) for _ in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: len(processes))


def test_devices_and_batch_must_fit(monkeypatch):
    """Golden: no distribution for one device; the error names the nearest batch size; too many devices are an error."""
    assert data_parallel("all", 64) is None
    fake_devices(monkeypatch, 8)
    assert data_parallel(1, 64) is None
    for batch, nearest in ((60, 64), (5, 8), (1, 8), (67, 64)):
        with pytest.raises(InputError, match=rf"batch_size {batch}: .* multiple of the 8 devices .* is {nearest}\.$"):
            data_parallel("all", batch)
    with pytest.raises(InputError, match=r"runtime.devices 9: there are only 8; set it to 8 or less"):
        data_parallel(9, 72)
    with pytest.raises(InputError, match=r"batch_size 'auto': .* give a number for the 8 that share a batch"):
        data_parallel("all", "auto")
    fake_devices(monkeypatch, 4, 2)
    with pytest.raises(InputError, match=r"there are only 2"):
        data_parallel("all", 64)


def test_a_run_goes_on_with_the_devices_that_are_here(monkeypatch):
    """Golden: of more devices than there are, as many as share the batch equally; what is said; enough stay."""
    for here, wanted, batch, chosen, said in (
        ([2], 8, 64, 2, "runtime.devices: 2 of 2 here share a batch of 64; the run was configured for 8"),
        ([3], 8, 64, 2, "runtime.devices: 2 of 3 here share a batch of 64; the run was configured for 8"),
        ([3], "all", 64, 2, "runtime.devices: 2 of 3 here share a batch of 64; the run was configured for all"),
        ([4], "all", 64, "all", ""),
        ([1], "all", 64, "all", ""),
        ([2, 1], 4, 64, 1, "runtime.devices: 1 of 1 here share a batch of 64; the run was configured for 4"),
    ):
        fake_devices(monkeypatch, *here)
        printed = io.StringIO()
        config = load_config({"runtime": {"devices": wanted}, "data": {"batch_size": batch}})
        found = available_devices(config, Console(file=printed))
        assert (found.runtime.devices, printed.getvalue().strip()) == (chosen, said)


def test_a_run_of_many_devices_is_loaded_on_one(whole, tmp_path):
    """Golden: `Learner.load` of a run of eight devices, where there is one, says so and predicts."""
    run, printed = tmp_path / "run", io.StringIO()
    shutil.copytree(whole, run)
    config = load_config(run / "config.yaml", {"runtime.devices": 8})
    (run / "config.yaml").write_text(config.to_yaml())
    learn = Learner.load(run, console=Console(file=printed, width=200))
    assert "runtime.devices: 1 of 1 here share a batch of 32; the run was configured for 8\n" in printed.getvalue()
    assert learn.distribution is None
    assert learn.predict(learn.data.valid.images[:2]).shape == (2, 10)


def test_the_keys_of_processes_come_together():
    """Golden: errors for a coordinator without process numbers, and for a process number out of range."""
    for runtime, match in (
        ({"coordinator": "host:1234"}, "coordinator needs num_processes and process_id"),
        ({"coordinator": "host:1234", "num_processes": 2, "process_id": 2}, "process_id must be less than"),
        ({"coordinator": "host"}, "runtime.coordinator: String should match pattern"),
        ({"devices": 0}, "runtime.devices: Input should be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_config({"runtime": runtime})


class Rows:
    """Images that record which of them were read."""

    def __init__(self, number: int) -> None:
        self.array = np.arange(number, dtype=np.uint8)[:, None, None, None]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        self.read += chosen.tolist()
        return self.array[chosen]


def parts(monkeypatch, devices: int, processes: int, **settings) -> list[ImageBatches]:
    """The same split as each of several processes sees it."""
    found = []
    monkeypatch.setattr(keras.distribution, "distribution", lambda: SimpleNamespace(num_model_replicas=devices))
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        found.append(ImageBatches(Rows(23), np.arange(23, dtype=np.int32), **settings))
    return found


def test_each_process_reads_its_own_part_of_every_batch(monkeypatch):
    """Invariant: the parts, one after the other, are the batch of one device; no image is read twice."""
    whole = ImageBatches(Rows(23), np.arange(23), 8, shuffle=True, seed=5)
    mine = parts(monkeypatch, 4, 2, batch_size=8, shuffle=True, seed=5)
    for index in range(len(whole)):
        images, labels = (np.concatenate(both) for both in zip(*(part[index] for part in mine), strict=True))
        np.testing.assert_array_equal(images, whole[index][0])
        np.testing.assert_array_equal(labels, whole[index][1])
    assert len(mine[0].images.read) == len(mine[1].images.read) == 8
    assert not set(mine[0].images.read) & set(mine[1].images.read)


def test_padding_is_cut(monkeypatch):
    """Invariant: every padded batch is a multiple of the devices; `unpadded` returns one row per image."""
    mine = parts(monkeypatch, 4, 2, batch_size=6, pad=True)
    rows = [np.concatenate([part[index][0] for part in mine])[:, 0, 0] for index in range(len(mine[0]))]
    assert [len(batch) for batch in rows] == [8, 8, 8, 8]
    np.testing.assert_array_equal(mine[0].unpadded(np.concatenate(rows))[:, 0], np.arange(23))


def test_a_cpu_predicts_few_large_images_at_once(monkeypatch):
    """As many pixels as 16 images of 128 x 128 a device, but one image at least; an accelerator takes them all."""
    sides = (8, 32, 128, 224, 1024)
    assert [prediction_batch_size(64, side**2) for side in sides] == [64, 64, 16, 5, 1]
    monkeypatch.setattr(keras.distribution, "distribution", lambda: SimpleNamespace(num_model_replicas=8))
    assert [prediction_batch_size(64, side**2) for side in sides] == [64, 64, 64, 40, 8]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert {prediction_batch_size(64, side**2) for side in sides} == {64}
