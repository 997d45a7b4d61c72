"""The environment is not trusted: what is set otherwise is named, or set for the command line's own process."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import keras
import numpy as np
import pytest
from click.testing import CliRunner

from kbaseline import ImageData, Learner, load, run_baseline
from kbaseline.cli import main
from kbaseline.devices import xla
from kbaseline.devices.parallel import device_summary
from kbaseline.devices.settings import check_settings
from kbaseline.errors import InputError
from kbaseline.models.zoo import keras_home


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | environment
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=env)


SHOW = """
from kbaseline.cli.options import start_keras
start_keras()
import jax, keras
from kbaseline.devices.settings import check_settings
check_settings()
print(keras.config.backend(), keras.config.dtype_policy().name, keras.config.image_data_format())
"""


def test_the_command_line_has_its_own_precision(tmp_path: Path) -> None:
    """Golden: `keras.json` and JAX_ENABLE_X64 decide nothing there; an empty KERAS_BACKEND is none."""
    (tmp_path / "keras.json").write_text(
        '{"floatx": "float16", "image_data_format": "channels_first", "backend": "numpy"}'
    )
    done = python("-c", SHOW, KERAS_HOME=str(tmp_path), JAX_ENABLE_X64="1", KERAS_BACKEND="")
    assert done.stdout.split() == ["jax", "float32", "channels_last"], done.stderr


def test_the_command_line_starts_keras_without_what_no_command_uses() -> None:
    """Invariant: Keras does not import scikit-learn, pandas and Matplotlib there; code that wants them finds them."""
    libraries = "'sklearn', 'pandas', 'matplotlib'"
    code = f"""
import sys
import {{first}}
from kbaseline.cli.options import start_keras
start_keras()
import kbaseline.commands.predict
print([name for name in ({libraries}) if name in sys.modules])
import sklearn.linear_model, matplotlib.pyplot
"""
    for first, found in (("numpy", []), ("matplotlib", ["matplotlib"])):
        done = python("-c", code.format(first=first))
        assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_PLATFORMS": "cuda"}, ("JAX_PLATFORMS is 'cuda'", "unset it", "kbaseline[cuda13]")),
        ({"JAX_PLATFORMS": "nonsense"}, ("JAX_PLATFORMS is 'nonsense'", "list of known backends", "unset it")),
        ({"KERAS_HOME": "{"}, ("keras.json: Keras cannot start with it", "bfloat16", "correct or delete it")),
    ],
)
def test_what_cannot_start_is_one_line(environment: dict[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    """Golden: the setting, what is wrong with it, and the remedy; exit code 2."""
    if environment.get("JAX_PLATFORMS") == "cuda" and jax.default_backend() == "gpu":
        pytest.skip("here is a GPU")
    if "KERAS_HOME" in environment:
        (tmp_path / "keras.json").write_text('{"floatx": "bfloat16"}')
        environment = {"KERAS_HOME": str(tmp_path)}
    done = python("-m", "kbaseline", "doctor", **environment)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line
    assert "AssertionError" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_data_format", "channels_first"), ("floatx", "float64"), ("max_epochs", 1), ("max_steps_per_epoch", 1)],
)
def test_a_programs_own_setting_is_named(name: str, value: object) -> None:
    """Golden: somebody's program keeps its setting; the line names it, its value and the call that helps."""
    change = getattr(keras.config, f"set_{name}")
    before = getattr(keras.config, name)()
    change(value)
    try:
        with pytest.raises(InputError, match=f"Keras' {name} is {value!r} .*keras.config.set_{name}"):
            check_settings()
    finally:
        change(before)
    check_settings()


def test_64_bits_are_named() -> None:
    """Golden: JAX's 64-bit mode draws other random numbers from the same seed."""
    with jax.enable_x64(True), pytest.raises(InputError, match="JAX_ENABLE_X64"):
        check_settings()


def test_every_entry_says_what_to_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Golden: where Keras came first and on another backend, one line says so, before anything is read or written."""
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    monkeypatch.chdir(tmp_path)
    split = np.zeros((4, 8, 8, 3), "uint8"), np.arange(4) % 2
    entries = (
        lambda: run_baseline("quickstart"),
        lambda: load("nowhere"),
        lambda: Learner(ImageData.from_arrays(split, split, size=32), "resnet20"),
    )
    for entry in entries:
        with pytest.raises(InputError, match=r"'tensorflow'.* restart this process .*import kbaseline before Keras"):
            entry()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("platforms", "visible", "plugins", "words"),
    [
        (None, None, [], "it is installed without CUDA: `pip install 'kbaseline[cuda13]'`"),
        (None, "0", ["xla_cuda12"], "its CUDA plugin does not start (see JAX's own message): `pip install"),
        ("cpu", None, [], None),
        (None, "", [], None),
        (None, "-1", ["xla_cuda12"], None),
    ],
)
def test_a_gpu_without_cuda_is_named(
    platforms: str | None, visible: str | None, plugins: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden: the reason and the extra to install are said where there is a GPU; not where another device was meant."""
    if jax.default_backend() != "cpu":
        pytest.skip("JAX uses the GPU here")
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidia0")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [SimpleNamespace(name=n) for n in plugins])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        line = device_summary(None, 32)
    finally:
        jax.config.update("jax_platforms", before)
    assert line is None if words is None else words in (line or "")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cache", ("'~/.cache/kbaseline'", "set data.cache_dir")),
        ("data ~/photos", ("'~/photos'", "write the path in full")),
        ("data csv:~/table.csv", ("'~/table.csv'", "write the path in full")),
        ("fit --config ~/mine.yaml", ("'~/mine.yaml'", "write the path in full")),
        ("fit --data digits --out ~/run", ("'~/run'", "write the path in full")),
        ("doctor --config quickstart --set model.backbone=~/b.keras", ("'~/b.keras'", "write the path in full")),
        ("evaluate ~/run", ("'~/run'", "write the path in full")),
    ],
)
def test_without_a_home(command: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: a user the system does not know (`docker run --user`) reads which path needs one, and the remedy."""
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    if command == "cache":
        monkeypatch.delenv("KBASELINE_CACHE")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    done = CliRunner().invoke(main, command.split())
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert "HOME is not set" in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert keras_home() == Path("/tmp/.keras")  # noqa: S108 - Keras' own


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    """Golden: in a read-only home programs are not kept, and JAX is not left to warn of each."""
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir, xla._programs
    try:
        xla._programs = before[0]
        xla.set_compilation_cache(tmp_path / "file")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        xla._programs = before[1]
