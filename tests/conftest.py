"""What every test stands on: a backend, no display, a cache of its own, explicit seeds."""

import os
import tempfile

from launch import HASTE

os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # One for all processes of a session, those that tests start too.
    os.environ["KBASELINE_CACHE"] = tempfile.mkdtemp(prefix="kbaseline-test-cache-")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {HASTE}".strip()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # JAX writes compiled programs in place: another process may meet half of one, and compiles it itself.
    warnings = [os.environ.get("PYTHONWARNINGS", ""), "ignore:Error reading persistent compilation cache"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, warnings))

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from filelock import FileLock
from launch import Launched
from small_run import recipe, save_tiny_backbone

from kbaseline.config.load import load_config
from kbaseline.devices.environment import environment
from kbaseline.devices.xla import start_jax
from kbaseline.metrics import Evaluation, evaluate_predictions, final_evaluation
from kbaseline.runs.record import DataSummary, RunResult
from kbaseline.runs.results import write_results
from kbaseline.storage.run_folder import RunFolder

# `jax_numpy_rank_promotion="raise"` is left out: Keras' own Dense layer adds a bias (units,) to (batch, units).


MOST = 500_000_000
"""Bytes of compiled programs that are kept; one version of the code leaves a tenth of it."""

# As every learner does; JAX keeps the programs of other flags apart.
start_jax()


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs stay for later sessions, in pytest's own cache if that can be written to."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    folder = Path(os.environ["KBASELINE_CACHE"], "jax")
    with suppress(AttributeError, OSError):  # without the plugin, and where nothing may be written
        kept = config.cache.mkdir("jax")
        if sum(file.stat().st_size for file in kept.iterdir()) > MOST:
            shutil.rmtree(kept)
        if os.access(kept, os.W_OK):
            folder = kept
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector, a tenth of the time of so much tracing, leaves it alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure() -> None:
    """The session's cache folder goes with the session."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["KBASELINE_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """Every test begins with the same global seeds and Keras' own settings, and leaves those to a module's fixtures."""
    keras.utils.set_random_seed(0)
    yield
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20200401)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes something in a folder of a name, once for all tests of all processes; nobody may change it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
        with FileLock(root / f"shared-{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_backbone(shared: Callable[..., Path]) -> str:
    """The backbone of `small_run`, for all tests."""
    return str(shared("backbone", lambda folder: save_tiny_backbone(folder / "tiny.keras")) / "tiny.keras")


@pytest.fixture(scope="session")
def fit_in_a_shell(shared: Callable[..., Path], tiny_backbone: str) -> Path:
    """A folder in which a shell has run `kbaseline fit` on one device, with the recipe of `small_run`.

    It holds `recipe.yaml`, the run folder `run`, and `said.txt`, what was printed.
    """

    def make(folder: Path) -> None:
        (folder / "recipe.yaml").write_text(load_config(recipe(tiny_backbone)).to_yaml())
        command = ["fit", "--config", folder / "recipe.yaml", "--out", folder / "run"]
        launched = Launched(command, folder / "logs")
        assert launched.codes() == [0], launched.text()
        (folder / "said.txt").write_text(launched.text())

    return shared("fit", make)


@pytest.fixture
def finished_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes run folders as a run leaves them, but with predictions drawn at random and no model."""
    return partial(_finished_run, tmp_path)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same, for all tests of a module."""
    return partial(_finished_run, tmp_path_factory.mktemp("runs"))


def _finished_run(
    parent: Path,
    name: str,
    /,
    *,
    images: int = 100,
    right: int = 80,
    tta: bool = True,
    test: int = 0,
    image_size: tuple[int, int] = (8, 8),
    **changes: Any,
) -> Path:
    """A run folder as a run leaves it, but with predictions drawn at random and no model."""
    tree: dict[str, Any] = {"name": "digits", "data": {"source": "digits"}}
    config = load_config(tree if tta else {**tree, "tta": None}, changes)
    kinds = ("plain", "tta") if tta else ("plain",)
    kept = {
        split: _evaluations(number, count, right if split == "valid" else count, kinds)
        for number, (split, count) in enumerate((("valid", images), ("test", test)))
        if count
    }
    valid, scored = kept["valid"], kept.get("test")
    stages = {"head": 0.5, "finetune": valid["plain"].accuracy}
    history = [
        {"stage": stage, "epoch": 1, "accuracy": value, "images_per_s": speed, "seconds": 2.5, "valid_loss": 1.0}
        for (stage, value), speed in zip(stages.items(), (100.0, 300.0), strict=True)
    ]
    folder = RunFolder.create(parent / name, name)
    folder.write_text("config.yaml", config.to_yaml())
    counts = {split: len(found["plain"].labels) for split, found in kept.items()}
    result = RunResult(
        accuracy=final_evaluation(scored or valid).accuracy,
        stages=stages,
        tta_accuracy=valid["tta"].accuracy if tta else None,
        test_accuracy={kind: found.accuracy for kind, found in scored.items()} if scored else None,
        suggested_lrs={},
        seconds={"data": 1.0, "head": 3.0, "finetune": 4.0, "valid tta": 2.0, "test tta": 2.0},
        seed=config.seed,
        data=DataSummary(source="digits", images=counts, image_size=list(image_size), skipped=[]),
        history=history,
        environment=environment(),
        folder=folder.path,
    )
    write_results(folder, result, kept, [{"stage": "head", "step": 0, "lr": 1e-3, "momentum": 0.9}])
    return folder.path


def _evaluations(seed: int, images: int, right: int, kinds: tuple[str, ...]) -> dict[str, Evaluation]:
    """Predictions of three classes, the first `right` of them right; TTA puts one more right if there is one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=images)
    probabilities = {}
    for position, kind in enumerate(kinds):
        said = labels.copy()
        said[min(right + position, images) :] += 1
        sure = rng.uniform(0.5, 1.0, size=(images, 1))
        probabilities[kind] = np.where(np.eye(3)[said % 3] > 0, sure, (1 - sure) / 2).astype(np.float32)
    return {kind: evaluate_predictions(p, labels, ("cat", "dog", "emu")) for kind, p in probabilities.items()}
