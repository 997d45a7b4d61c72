"""The house rules that a reader relies on: one job a module, imports one way, small parts, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kbaseline

PACKAGE = Path(kbaseline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
RANKS = [
    *(
        "errors",
        "extras",
        "tables",
        "arrays",
        "keys",
        "config",
        "config_text",
        "schedules",
        "data",
        "processes",
        "runtime",
        "distribution",
        "geometry",
        "transforms",
        "zoo",
        "backbones",
        "cpu_layers",
        "model",
        "optimizer",
        "lr_finder",
        "tta",
        "gradcam",
    ),
    *(
        "calibration",
        "metrics",
        "run_folder",
        "finished",
        "progress",
        "inference",
        "plots",
        "pictures",
        "pages",
        "results",
        "report",
        "interrupts",
        "checkpoint",
        "session",
        "training",
        "batch_size",
        "saved",
        "learner",
        "trackers",
        "baseline",
        "predict",
        "answers",
        "endpoints",
        "serve",
        "evaluate",
        "evaluate_tables",
        "compare",
        "contact_sheet",
        "inspect_data",
        "inspect_tables",
        "doctor",
        "export_network",
        "export_formats",
        "model_card",
        "export",
        "cli",
    ),
]
"""A module imports only from those to its left; the pipeline, read left to right."""

FOLDERS = ("data", "cli")
"""Ranks that are folders, whose modules import one another."""

LONG_MODULES = {
    "learner.py": "the verbs, each with a docstring a user reads",
}
"""Modules above 300 lines, each with the reason it is not cut; none may pass 420."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions above 50 lines without their docstring."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(tree: ast.AST) -> set[str]:
    """Full names of the kbaseline modules a piece of code imports from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "kbaseline":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module for name in names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError("relative import; write kbaseline in full")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "kbaseline"}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def rank(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def offences(path: Path, tree: ast.AST) -> list[str]:
    """Imports that break the ranks."""
    own = RANKS.index(rank(path))
    bad = []
    for name in imports(tree):
        parts = name.split(".")
        other = parts[1] if len(parts) > 1 else ""
        if other not in RANKS or RANKS.index(other) > own or (RANKS.index(other) == own and other not in FOLDERS):
            bad.append(f"{name_of(path)} imports {name}")
    return bad


ENTRANCES = ("__init__.py", "__main__.py")


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) not in ENTRANCES], ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """Invariant: a module imports only from modules above it, wherever in the file the import stands."""
    assert rank(path) in RANKS, f"{name_of(path)} has no rank; give it one in RANKS"
    assert offences(path, parse(path)) == []


def test_a_planted_import_against_the_ranks_is_caught() -> None:
    """Invariant: the check above sees an upward import, also inside a function."""
    planted = ast.parse("def f():\n    from kbaseline.learner import Learner\n")
    assert offences(PACKAGE / "tta.py", planted) == ["tta.py imports kbaseline.learner"]


def test_no_cycles_inside_data() -> None:
    """Invariant: the modules of `data/` import one another in one direction, at module level.

    `ImageData.from_source` alone looks up the sources, when called.
    """
    edges = {}
    for path in (PACKAGE / "data").glob("*.py"):
        tree = parse(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "from_source":
                late = {name for name in imports(node) if name.startswith("kbaseline.data")}
                assert late <= {"kbaseline.data.tfds"}, f"{path.name}: {node.name} imports {late} late"
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        own = "kbaseline.data" if path.stem == "__init__" else f"kbaseline.data.{path.stem}"
        edges[own] = {name for name in imports(top) if name.startswith("kbaseline.data")}
    edges.setdefault("kbaseline.data", set())
    done: set[str] = set()
    while ready := {name for name, needs in edges.items() if name not in done and needs <= done}:
        done |= ready
    assert sorted(set(edges) - done) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_its_one_job_first(path: Path) -> None:
    """Invariant: every module begins with a docstring whose first line is a sentence."""
    first = (ast.get_docstring(parse(path)) or "").split("\n")[0]
    assert len(first.split()) >= 3
    assert first.endswith(".")


def test_no_module_is_a_drawer() -> None:
    """Invariant: no module is named after nothing in particular."""
    assert {path.stem for path in MODULES} & {"utils", "util", "helpers", "common", "misc"} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_size(path: Path) -> None:
    """Invariant: at most 300 lines a module, but for those with a reason, which keep to 420."""
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= (420 if name_of(path) in LONG_MODULES else 300)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_function_size(path: Path) -> None:
    """Invariant: at most 50 lines a function, its docstring left out."""
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        doc = node.body[0]
        if ast.get_docstring(node) is not None:
            lines -= (doc.end_lineno or 0) - doc.lineno + 1
        assert lines <= 50 or f"{name_of(path)}:{node.name}" in LONG_FUNCTIONS, f"{node.name}: {lines} lines"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = "import sys; print(sorted({n.split('.')[0] for n in sys.modules} & {'keras', 'jax', 'tensorflow_datasets'}))"


@pytest.mark.parametrize("name", ["kbaseline", "kbaseline.config_text", "kbaseline.errors"])
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
    entries = {"run_baseline", "BaselineResult", "Learner", "ImageData", "load"}
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
    ask = "import os; os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'; from kbaseline import runtime\n"
    ask += "runtime.make_deterministic(); runtime.make_deterministic(); import jax; jax.devices()\n"
    told = run(ask + "print(os.environ['XLA_FLAGS'])")
    assert told == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_convolutions_are_eigens_where_that_was_measured() -> None:
    """Golden: XLA is told before JAX starts, and takes it, unless the user or the machine says otherwise."""
    ours = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    fast_math, theirs = "--xla_cpu_enable_fast_math=false", "--xla_cpu_experimental_ynn_fusion_type=-reduce"

    def flags(before: str, machine: str = "pass", then: str = "pass") -> str:
        ask = f"import os; os.environ['XLA_FLAGS'] = '{before}'; import importlib.metadata, platform, jax\n"
        ask += "from kbaseline.runtime import speed_up_convolutions as tell\n"
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
    ask += "home.speed_up_convolutions = lambda: print(jax._src.xla_bridge.backends_are_initialized())\n"
    ask += "split = np.zeros((4, 8, 8, 3), 'uint8'), np.arange(4) % 2\n"
    ask += "Learner(ImageData.from_arrays(split, split, size=32), config={'data': {'batch_size': 2}}, "
    assert run(ask + "backbone='resnet20', weights='none')") == "False"
