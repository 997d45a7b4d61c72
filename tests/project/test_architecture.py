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


LOADED = "import sys; print(sorted({n.split('.')[0] for n in sys.modules} & {'keras', 'jax', 'tensorflow_datasets'}))"


@pytest.mark.parametrize("name", ["kbaseline", "kbaseline.config.load", "kbaseline.errors"])
def test_light_imports(name: str) -> None:
    """Invariant: importing the package or its configuration loads neither Keras nor JAX nor TFDS."""
    assert run(f"import {name}; {LOADED}") == "[]"


def test_help_is_light() -> None:
    """Invariant: `kbaseline --help` answers without loading Keras, JAX or TFDS."""
    pytest.importorskip("kbaseline.cli")
    ask = "from click.testing import CliRunner; from kbaseline.cli import main"
    assert run(f"{ask}; r = CliRunner().invoke(main, ['--help']); assert r.exit_code == 0, r.output; {LOADED}") == "[]"


def test_the_public_names_are_the_promised_ones() -> None:
    """Golden: the surface is these names, each of which loads."""
    entries = {"run_baseline", "resume_run", "BaselineResult", "Learner", "ImageData", "load"}
    parts = {"LRFinder", "OneCycle", "LayerwiseAdamW", "RandomTransforms", "tta_predict"}
    assert set(kbaseline.__all__) == set(dir(kbaseline)) == entries | parts
    assert all(callable(getattr(kbaseline, name)) for name in kbaseline.__all__)


def test_kbaseline_chooses_jax_where_nothing_has_chosen() -> None:
    """Golden: the import sets Keras' backend only if the environment names none."""
    ask = "import os; os.environ.pop('KERAS_BACKEND', 0); {}; import kbaseline; print(os.environ['KERAS_BACKEND'])"
    assert run(ask.format("pass")) == "jax"
    assert run(ask.format("os.environ['KERAS_BACKEND'] = 'numpy'")) == "numpy"


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

    def flags(before: str, machine: str = "pass", then: str = "pass") -> str:
        ask = f"import os; os.environ['XLA_FLAGS'] = '{before}'; import importlib.metadata, platform, jax\n"
        ask += "from kbaseline.devices.xla import prefer_eigen_convolutions as tell\n"
        ask += "platform.machine = lambda: 'x86_64'; jax.__version_info__ = (0, 12, 3)\n"
        ask += f"importlib.metadata.entry_points = lambda **_: ()\n{machine}\n"
        return run(f"{ask}tell(); tell()\n{then}; print(os.environ['XLA_FLAGS'])")

    assert flags(fast_math, then="jax.devices()") == f"{fast_math} {ours}"
    assert flags(theirs) == theirs
    assert flags(fast_math, "platform.machine = lambda: 'arm64'") == fast_math
    assert flags(fast_math, "jax.__version_info__ = (0, 13, 0)") == fast_math
    assert flags(fast_math, "importlib.metadata.entry_points = lambda group: [group]") == fast_math
    assert flags(fast_math, "jax.devices()") == fast_math


def test_a_learner_tells_xla_in_time() -> None:
    """Invariant: of what a `Learner` does nothing starts JAX before XLA is told of its convolutions."""
    ask = "import kbaseline.learner as home; from kbaseline import ImageData, Learner; import jax, numpy as np\n"
    ask += "home.prefer_eigen_convolutions = lambda: print(jax._src.xla_bridge.backends_are_initialized())\n"
    ask += "split = np.zeros((4, 8, 8, 3), 'uint8'), np.arange(4) % 2\n"
    ask += "Learner(ImageData.from_arrays(split, split, size=32), config={'data': {'batch_size': 2}}, "
    assert run(ask + "backbone='resnet20', weights='none')") == "False"
