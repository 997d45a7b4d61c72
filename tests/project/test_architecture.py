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
    assert crowded["."] <= 32


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_imports() -> None:
    """Invariant: the package, its configuration, errors and metrics load nothing that takes a second."""
    ask = "import sys, kbaseline, kbaseline.config.load, kbaseline.errors, kbaseline.metrics\n"
    heavy = {"keras", "jax", "tensorflow_datasets", "sklearn", "matplotlib"}
    assert run(f"{ask}print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_public_names_are_the_promised_ones() -> None:
    """Golden: the surface is these names, each of which loads."""
    entries = {"run_baseline", "resume_run", "BaselineResult", "Learner", "ImageData", "load"}
    parts = {"LRFinder", "OneCycle", "LayerwiseAdamW", "RandomTransforms", "tta_predict", "features", "audit_images"}
    assert set(kbaseline.__all__) == set(dir(kbaseline)) == entries | parts
    assert all(callable(getattr(kbaseline, name)) for name in kbaseline.__all__)


def test_xla_has_its_flags_and_children_do_not() -> None:
    """Golden: XLA reads our flags beside the user's as JAX starts; the environment, and what is started, gets its own.

    Eigen's only where it was measured, and not where the user or the machine says otherwise. Convolutions go into CUDA
    graphs only where layers for a GPU are on, and a JAX with CUDA knows the flag. Programs of other flags
    and numbers of cores stay apart in JAX's cache.
    """
    graphs = "--xla_gpu_enable_command_buffer=+CONVOLUTION"
    eigen, strict = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution", "--xla_gpu_deterministic_ops=true"
    user, theirs = "--xla_cpu_enable_fast_math=false", "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    code = f"""
import importlib.metadata, os, platform
from types import SimpleNamespace
from unittest import mock

import jax
from kbaseline.devices import xla

platform.machine, importlib.metadata.entry_points = lambda: "x86_64", lambda **_: ()
jax.__version_info__ = (0, 12, 3)
devices, key = jax.devices, jax._src.cache_key

def plugin(name):
    return lambda group: [SimpleNamespace(name=name)]

def show(flags, owner=os, name="name", value=os.name, **settings):
    os.environ["XLA_FLAGS"] = flags
    jax.devices = lambda: print(os.environ["XLA_FLAGS"])
    with mock.patch.object(owner, name, value):
        xla.start_jax(**settings)
    assert os.environ["XLA_FLAGS"] == flags

show({theirs!r})
show({user!r}, platform, "machine", lambda: "arm64")
show({user!r}, jax, "__version_info__", (0, 13, 0))
show({user!r}, importlib.metadata, "entry_points", plugin("tpu"))
show({user!r}, importlib.metadata, "entry_points", plugin("xla_cuda13"))
os.environ["KBASELINE_GPU_LAYERS"] = "1"
show({user!r}, importlib.metadata, "entry_points", plugin("tpu"))
show({user!r}, importlib.metadata, "entry_points", plugin("xla_cuda13"))
show("--xla_gpu_enable_command_buffer=", importlib.metadata, "entry_points", plugin("xla_cuda13"))
jax.__version_info__ = (0, 10, 2)
show({user!r}, importlib.metadata, "entry_points", plugin("xla_cuda13"))
os.environ["KBASELINE_GPU_LAYERS"] = "0"
show({user!r}, deterministic=True)
del os.environ["XLA_FLAGS"]
jax.devices, key.custom_hook = devices, lambda: ""
os.environ["NPROC"] = "3"
xla.start_jax()
assert "XLA_FLAGS" not in os.environ
print(key.custom_hook())
with mock.patch.object(jax, "devices", lambda: exit("again")):
    xla.start_jax(deterministic=True)
"""
    lines = [theirs, *[user] * 5, f"{user} {graphs}", "--xla_gpu_enable_command_buffer=", user]
    assert run(code).splitlines() == [*lines, f"{user} {strict} {eigen}", f" 3 cores {eigen}"]


def test_a_learner_tells_xla_in_time() -> None:
    """Invariant: of what a `Learner` does nothing starts JAX before XLA is told of its convolutions."""
    ask = "import kbaseline.learner as home; from kbaseline import ImageData, Learner; import jax, numpy as np\n"
    ask += "home.start_jax = lambda **_: exit(print(jax._src.xla_bridge.backends_are_initialized()))\n"
    ask += "split = np.zeros((4, 8, 8, 3), 'uint8'), np.arange(4) % 2\n"
    ask += "Learner(ImageData.from_arrays(split, split, size=32), config={'data': {'batch_size': 2}}, "
    assert run(ask + "backbone='resnet20', weights='none')") == "False"
