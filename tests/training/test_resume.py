"""A run that was interrupted ends as one that was not; a folder has one run; what is damaged is passed over."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kbaseline import learner, resume_run, run_baseline
from kbaseline.baseline import find_learning_rate
from kbaseline.cli import main
from kbaseline.console.training import StageTable
from kbaseline.errors import InputError, RunError
from kbaseline.learner import Learner
from kbaseline.lr_finder import LRFinder
from kbaseline.runs.record import read_run
from kbaseline.runs.run import read_data
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import Checkpoint, Checkpoints
from kbaseline.training.signals import Interrupts, Stopped

QUIET = Console(quiet=True)
TIMES = ("seconds", "images_per_s")


@pytest.fixture(scope="module")
def recipe(tiny_backbone) -> dict:
    """Stages that hand on an optimizer, replace it, and follow a momentum schedule of an earlier one."""
    return {
        "seed": 3,
        "data": {"source": "digits", "size": 8, "limit": 160, "batch_size": 32},
        "model": {"backbone": tiny_backbone, "hidden": 16},
        "lr_find": {"steps": 20},
        "stages": [
            {"name": "head", "freeze": True, "epochs": 2, "max_lr": 1e-2, "lr_find": False},
            {"name": "again", "freeze": True, "epochs": 1, "max_lr": 1e-3, "schedule": "constant", "lr_find": False},
            {"name": "all", "freeze": False, "epochs": 2, "max_lr": "auto"},
        ],
        "probe": False,
        "tta": {"views": 2, "flip": False, "scale": 1.1},
        "runtime": {"checkpoint_minutes": 1e-9},
    }


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of the recipe's run that nothing interrupted."""
    return run_baseline(recipe, out=tmp_path_factory.mktemp("runs") / "whole", console=QUIET).folder


class Cut(Exception):
    """The end of a process, for a test."""


@contextmanager
def cut_at(*place: int) -> Iterator[None]:
    """Ends a run right after it has saved a checkpoint of this stage, epoch and batch."""
    save = Checkpoints.save

    def last(self, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        if (checkpoint.stage, checkpoint.epoch, checkpoint.batch) == place:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", last)
        with pytest.raises(Cut):
            yield


@contextmanager
def stopped_in_validation() -> Iterator[None]:
    """SIGTERM at the first batch of the next validation."""
    with pytest.MonkeyPatch.context() as patch:
        arrive = lambda self, batch, logs=None: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        patch.setattr(StageTable, "on_test_batch_begin", arrive)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            yield


def damage(checkpoint: Path) -> None:
    """Flips one bit in the middle."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)


def variables(path: Path) -> list[np.ndarray]:
    model = keras.models.load_model(path)
    every = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in every]


def facts(folder: Path) -> dict:
    """`result.json` without times."""
    text = (folder / "result.json").read_text()
    return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k not in TIMES})


def assert_same(folder: Path, whole: Path) -> None:
    """Bitwise the same run: files, weights, optimizer, seeds, predictions, history, curves, plots."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    for mine, other in zip(variables(folder / "model.keras"), variables(whole / "model.keras"), strict=True):
        np.testing.assert_array_equal(mine, other)
    with np.load(folder / "predictions.npz") as mine, np.load(whole / "predictions.npz") as other:
        for name in other:
            np.testing.assert_array_equal(mine[name], other[name])
    assert facts(folder) == facts(whole)
    for name in ("lr_find.csv", "lr_find.png", "schedule.png", "history.png", "confusion.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_cut_again_and_again_ends_as_one_that_was_not(recipe, whole, tmp_path, monkeypatch):
    """Cut in an epoch, its validation, between epochs, stages, sweep and first step: bitwise the same (determinism).

    A damaged checkpoint is named and the one before serves; without any the run starts anew and says so. A sweep that
    was finished is not run again, and `max_lr: auto` takes its rate from it.
    """
    run, screen = tmp_path / "run", io.StringIO()
    console = Console(file=screen, width=500)
    with cut_at(0, 0, 1):
        run_baseline(recipe, out=run, console=QUIET)
    for path in run.glob("checkpoints/*.npz"):
        damage(path)
    with cut_at(0, 0, 3):
        resume_run(run, console=console)
    assert screen.getvalue().count("npz': damaged (SHA-256 mismatch)") == 2
    assert "starts from the beginning" in screen.getvalue()
    with stopped_in_validation():
        resume_run(run, console=QUIET)
    assert json.loads(sorted(run.glob("checkpoints/*.json"))[-1].read_text())["batch"] == 5  # trained, not validated
    with cut_at(0, 2, 0):
        resume_run(run, console=QUIET)
    damage(sorted(run.glob("checkpoints/*.npz"))[-1])
    with cut_at(1, 0, 1):
        resume_run(run, console=console)
    assert "continues at head, epoch 2, batch 5" in screen.getvalue()
    with cut_at(2, 0, 0):
        resume_run(run, console=QUIET)
    monkeypatch.setattr(Learner, "lr_sweep", lambda self: pytest.fail("swept again"))
    with cut_at(2, 1, 3):
        resume_run(run, console=QUIET)
    resume_run(run, console=console)
    assert screen.getvalue().count("starts from the beginning") == 1
    assert_same(run, whole)


def test_a_finished_run_says_so(recipe, whole):
    """Resuming one does nothing and gives its result."""
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    result = resume_run(whole, console=QUIET)
    assert result.accuracy == facts(whole)["accuracy"]
    assert [row["stage"] for row in result.history] == ["head", "head", "again", "all", "all"]
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_what_resume_refuses(recipe, tmp_path):
    """A folder without a run, changes beside it, another configuration than the checkpoint's, other data."""
    with pytest.raises(InputError, match=r"holds no config.yaml"):
        resume_run(tmp_path)
    with pytest.raises(InputError, match=r"only runtime\.devices, .* may change"):
        resume_run(tmp_path, seed=4)
    with (
        pytest.raises(InputError, match=r"omit config and out"),
        pytest.warns(DeprecationWarning, match="resume_run"),
    ):
        run_baseline(recipe, resume=tmp_path)
    with cut_at(0, 0, 1):
        run_baseline(recipe, out=tmp_path / "run", console=QUIET)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_lr: 0.01", "max_lr: 0.02"))
    with pytest.raises(InputError, match=r"the config changed since its checkpoint; start a new run"):
        resume_run(tmp_path / "run", console=QUIET)
    assert (tmp_path / "run" / "checkpoints" / "000002.npz").exists()


def test_a_run_belongs_to_its_folder(recipe, tmp_path, monkeypatch):
    """Started with relative paths, it goes on from another directory, in a renamed folder, and with its photos moved.

    It is refused where a photo was replaced by one of the same name, size and time.
    """
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    elsewhere.mkdir()
    rng = np.random.default_rng(0)
    for number in range(50):
        photo = start / "photos" / f"class {number % 10}" / f"{number}.bmp"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(photo)
    shutil.copy(recipe["model"]["backbone"], start / "own.keras")
    monkeypatch.chdir(start)
    changes = {"data": {"source": "photos/", "size": 8, "batch_size": 32, "cache_dir": "cache"}}
    changes |= {"model": {"backbone": "own.keras", "hidden": 16}, "stages": recipe["stages"][:1], "tta": None}
    with cut_at(0, 1, 0):
        run_baseline({**recipe, **changes}, out="run", console=QUIET)
    (start / "run").rename(elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    content, status = photo.read_bytes(), photo.stat()
    photo.write_bytes(content[:-100] + bytes(100))
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match=r"images or labels of 'folder:/.*/start/photos' changed"):
        resume_run("moved", console=QUIET)
    photo.write_bytes(content)
    (start / "photos").rename(elsewhere / "pictures")
    with pytest.raises(InputError, match=r"start/photos': no such folder"):
        resume_run("moved", console=QUIET)
    done = CliRunner().invoke(main, ["fit", "--resume", "moved", "--data", "pictures"])
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(tmp_path)
    run = read_run(elsewhere / "moved")
    assert run.result.data.source == run.config.data.source == f"folder:{elsewhere / 'pictures'}"
    assert run.config.data.cache_dir == start / "cache"
    assert read_data(run).class_names[0] == "class 0"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["moved", "pictures"]


def test_a_folder_has_one_run(recipe, tmp_path):
    """A folder in use is refused to a second run and to `--resume`; the lock file of a dead process is no lock."""
    run = RunFolder.create(tmp_path / "run", "x")
    run.write_text("config.yaml", "{}")
    held = Checkpoints(run, print)
    with pytest.raises(InputError, match=r"another process is using it.*--out"):
        Checkpoints(run, print)
    with pytest.raises(InputError, match=r"another process is using it"):
        resume_run(run.path, console=QUIET)
    held.close()
    assert (run.path / "checkpoints" / "lock").exists()
    Checkpoints(run, print).close()


def test_two_checkpoints_are_kept_and_whole(tmp_path):
    """Every array comes back with its bits, bfloat16 as two bytes; an .npz without its .json does not count."""
    checkpoints = Checkpoints(RunFolder(tmp_path), pytest.fail)
    half = keras.ops.convert_to_numpy(keras.ops.cast([1.5, 2.0], "bfloat16"))
    for epoch in range(4):
        state = [np.float32([epoch, np.nan]), np.uint32(7), half]
        checkpoints.save(Checkpoint(1, epoch, 5, state, {"loss": float("nan"), "rate": 0.1}))
    checkpoints.wait()
    names = sorted(path.name for path in checkpoints.folder.path.iterdir())
    assert names == ["000003.json", "000003.npz", "000004.json", "000004.npz", "lock"]
    (checkpoints.folder.path / "000005.npz").write_bytes(b"half of it")
    found = checkpoints.newest()
    assert found is not None
    assert (found.stage, found.epoch, found.batch, found.record["rate"]) == (1, 3, 5, 0.1)
    np.testing.assert_array_equal(found.state[0], np.float32([3, np.nan]))
    assert found.state[1].dtype == np.uint32
    assert found.state[2].tobytes() == half.tobytes()
    checkpoints.close()


def test_bfloat16_variables_are_restored(tmp_path):
    """A state that NumPy knows only as bytes goes back into its variable (invariant)."""
    from kbaseline.training.state import restore

    variable = keras.Variable(keras.ops.cast([0.0, 0.0], "bfloat16"), dtype="bfloat16")
    restore([variable], [np.frombuffer(np.uint16([0x3FC0, 0x4000]).tobytes(), "V2")])
    assert keras.ops.convert_to_numpy(variable).astype("float32").tolist() == [1.5, 2.0]
    with pytest.raises(InputError, match="does not match this model"):
        restore([variable], [np.zeros(3)])


def test_a_full_disk_stops_with_one_line_and_loses_nothing(recipe, tmp_path):
    """No room for a checkpoint: a RunError, nothing half-written.

    The limit on the size of a file stands for the disk; a checkpoint is the first file that is too large for it.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept_from = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # a compiled program is too large, too
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*000001.npz'.*\.$") as caught:
            run_baseline(recipe, out=tmp_path / "run", console=QUIET)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept_from)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    left = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    assert left == ["checkpoints", "config.yaml", "history.csv", "lock"]


def test_a_folder_that_vanishes_stops_with_one_line(recipe, tmp_path, monkeypatch):
    """The run folder removed under a run is a RunError that says so."""
    monkeypatch.setattr(Learner, "fit_one_cycle", lambda self, *a, **k: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(RunError, match="moved or removed"):
        run_baseline(recipe, out=tmp_path / "run", console=QUIET)


def test_a_signal_is_noted_between_steps_and_raised_elsewhere():
    """Deferred: noted, then `Stopped` with 128 + the signal; a second one, or one outside, is raised at once."""
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts("go on") as interrupts:
        with pytest.raises(Stopped, match="stopped by SIGTERM; go on") as caught, interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.exit_code == 143
    with Interrupts("go on") as interrupts, suppress(Stopped), interrupts.deferred():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)
    with Interrupts("go on"), pytest.raises(Stopped) as caught:
        signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


class Swallowed(keras.callbacks.Callback):
    """A signal whose exception gets lost, as it does under Keras' `except: pass` around the figures of a step."""

    def on_train_batch_end(self, batch, logs=None):
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

    on_predict_batch_end = on_train_batch_end


def test_a_signal_in_a_sweep_ends_it(recipe, tmp_path, monkeypatch):
    """Invariant: the sweep ends after the step in which the signal came, whoever swallows exceptions there."""
    steps, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(LRFinder, "on_train_batch_begin", lambda self, batch, logs=None: steps.append(batch))
    monkeypatch.setattr(LRFinder, "on_train_batch_end", Swallowed.on_train_batch_end)
    with pytest.raises(Stopped, match="stopped by SIGINT; nothing was trained"):
        find_learning_rate(recipe, out=tmp_path / "run", console=QUIET)
    assert steps == [0]
    assert signal.getsignal(signal.SIGINT) is before  # in the background, one that ignores it


def test_a_signal_in_test_time_augmentation_ends_it_and_the_run_can_go_on(recipe, tmp_path, monkeypatch):
    """Invariant: likewise of a prediction; the last checkpoint is there, and the resumed run ends as it should."""
    real = learner.predict_views

    def views(*given, callbacks):
        return real(*given, callbacks=[Swallowed(), *callbacks])

    short = {**recipe, "stages": [{**recipe["stages"][0], "epochs": 1}]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "predict_views", views)
        with pytest.raises(Stopped, match="--resume"):
            run_baseline(short, out=tmp_path / "run", console=QUIET)
    assert resume_run(tmp_path / "run", console=QUIET).tta_accuracy is not None


def test_sigterm_saves_says_how_to_go_on_and_ends_with_143(recipe, tmp_path):
    """A real process that gets SIGTERM in training leaves a checkpoint, the line to type, and code 143."""
    from kbaseline.config.load import load_config

    stages = [{**recipe["stages"][0], "epochs": 1000}]
    config = tmp_path / "c.yaml"
    config.write_text(load_config({**recipe, "stages": stages, "runtime": {}}).to_yaml())
    command = [sys.executable, "-u", "-m", "kbaseline", "fit", "--config", str(config), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("    3 "):
                process.terminate()
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert f"stopped by SIGTERM; continue with: kbaseline fit --resume {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors
    checkpoints = Checkpoints(RunFolder(tmp_path / "run"), pytest.fail)
    found = checkpoints.newest()
    checkpoints.close()
    assert found is not None
    assert found.epoch >= 3


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """SIGKILL in every phase: each resumed run equals the one left alone, and no file is half-written."""
    script = Path(__file__).parents[2] / "benchmarks" / "kill.py"
    done = subprocess.run([sys.executable, script, "--out", tmp_path / "kill"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 equal" in done.stdout
