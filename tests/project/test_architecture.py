"""What a reader relies on: a module says its job, folders stay small, imports are light.

That imports go one way is a contract of import-linter, in `pyproject.toml`.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kbaseline

PACKAGE = Path(kbaseline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_its_one_job_first(path: Path) -> None:
    """Invariant: every module begins with a docstring whose first line is a sentence."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert len(first.split()) >= 3
    assert first.endswith(".")


def test_a_folder_can_be_read_at_a_glance() -> None:
    """Invariant: no folder shows more than about twenty entries; the package shows its rooms and the recipe's parts."""
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    crowded = {
        name_of(folder): count
        for folder in folders
        if (count := sum(entry.name not in ("__pycache__", "configs") for entry in folder.iterdir())) > 20
    }
    assert crowded.keys() <= {"."}
    assert crowded["."] <= 28


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_imports() -> None:
    """Invariant: the package, its configuration, errors and metrics load neither Keras, JAX, TFDS nor scikit-learn."""
    ask = "import sys, kbaseline, kbaseline.config.load, kbaseline.errors, kbaseline.metrics\n"
    heavy = {"keras", "jax", "tensorflow_datasets", "sklearn"}
    assert run(f"{ask}print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_public_names_are_the_promised_ones() -> None:
    """Golden: the surface is these names, each of which loads."""
    entries = {"run_baseline", "resume_run", "BaselineResult", "Learner", "ImageData", "load"}
    parts = {"LRFinder", "OneCycle", "LayerwiseAdamW", "RandomTransforms", "tta_predict", "features"}
    assert set(kbaseline.__all__) == set(dir(kbaseline)) == entries | parts
    assert all(callable(getattr(kbaseline, name)) for name in kbaseline.__all__)


def test_deterministic_tells_xla_before_jax_starts() -> None:
    """Golden: `runtime.deterministic` sets XLA's flag, beside those there are, and JAX starts with it."""
    ask = "import os; os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'\n"
    ask += "from kbaseline.devices import xla; xla.make_deterministic(); xla.make_deterministic()\n"
    ask += "import jax; jax.devices()\n"
    told = run(ask + "print(os.environ['XLA_FLAGS'])")
    assert told == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_convolutions_are_eigens_where_that_was_measured() -> None:
    """Golden: XLA is told before JAX starts, and takes it, unless the user or the machine says otherwise."""
    ours = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    fast_math, theirs = "--xla_cpu_enable_fast_math=false", "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    code = f"""
import importlib.metadata, os, platform
from unittest import mock

import jax
from kbaseline.devices.xla import prefer_eigen_convolutions

platform.machine, importlib.metadata.entry_points = lambda: "x86_64", lambda **_: ()
jax.__version_info__ = (0, 12, 3)

def show(flags, owner=os, name="name", value=os.name):
    os.environ["XLA_FLAGS"] = flags
    with mock.patch.object(owner, name, value):
        prefer_eigen_convolutions()
        prefer_eigen_convolutions()
    print(os.environ["XLA_FLAGS"])

show({theirs!r})
show({fast_math!r}, platform, "machine", lambda: "arm64")
show({fast_math!r}, jax, "__version_info__", (0, 13, 0))
show({fast_math!r}, importlib.metadata, "entry_points", lambda group: [group])
show({fast_math!r})
jax.devices()
show({fast_math!r})
"""
    assert run(code).splitlines() == [theirs, *[fast_math] * 3, f"{fast_math} {ours}", fast_math]


def test_a_learner_tells_xla_in_time() -> None:
    """Invariant: of what a `Learner` does nothing starts JAX before XLA is told of its convolutions."""
    ask = "import kbaseline.learner as home; from kbaseline import ImageData, Learner; import jax, numpy as np\n"
    ask += "home.prefer_eigen_convolutions = lambda: exit(print(jax._src.xla_bridge.backends_are_initialized()))\n"
    ask += "split = np.zeros((4, 8, 8, 3), 'uint8'), np.arange(4) % 2\n"
    ask += "Learner(ImageData.from_arrays(split, split, size=32), config={'data': {'batch_size': 2}}, "
    assert run(ask + "backbone='resnet20', weights='none')") == "False"
