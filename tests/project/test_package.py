"""The package as a whole: its public names, its backend, and its snippets in the docs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn.datasets
from small_run import save_quickstart

import kbaseline

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python(script: str, **environment: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"} | environment
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to run in, in a world whose digits are 500, so that tracing is most of a script's time."""
    digits = sklearn.datasets.load_digits()
    digits.images, digits.target = digits.images[:500], digits.target[:500]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
    monkeypatch.chdir(tmp_path)


def test_what_is_not_public_is_not_there():
    """The package hands out no name but its own, with Python's own error."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kbaseline.no_such_name


def test_a_strangers_type_checker_reads_the_types():
    """The marker of PEP 561 lies in the package, all of which the wheel takes; an InputError is a ValueError."""
    assert (Path(kbaseline.__file__).parent / "py.typed").is_file()
    with pytest.raises(ValueError, match="max_lr must be one positive number"):
        kbaseline.OneCycle(0, 10)


def test_an_import_chooses_jax_and_registers_its_layers():
    """Importing kbaseline chooses JAX when KERAS_BACKEND is not set, and registers kbaseline's classes with Keras.

    Also where somebody asked for Keras' spec in between, as libraries do that only look whether it is there.
    """
    script = (
        "import kbaseline, importlib.util; assert importlib.util.find_spec('keras')\n"
        "import keras; print(keras.backend.backend())\n"
        "print(keras.saving.get_registered_object('kbaseline>RandomTransforms').__name__)"
    )
    done = python(script)
    assert done.stdout.split() == ["jax", "RandomTransforms"], done.stderr


@pytest.mark.parametrize("order", ["import kbaseline, keras", "import keras, kbaseline"])
def test_another_backend_is_named(order):
    """If another backend was chosen already, a warning names it and the remedy, whichever is imported first."""
    done = python(f"{order}\nprint(keras.backend.backend())", KERAS_BACKEND="numpy")
    assert done.stdout.strip() == "numpy", done.stderr
    assert re.search(r"'numpy'.*set KERAS_BACKEND=jax", done.stderr)


def test_the_articles_snippet_runs_on_digits(few_digits, tiny_backbone, monkeypatch, capsys):
    """docs/article.py runs word for word, here on digits at 16 pixels and a network that compiles fast."""
    monkeypatch.setattr(sys, "argv", ["article.py", "digits", "16", tiny_backbone])
    exec((ROOT / "docs/article.py").read_text(encoding="utf-8"), {"__name__": "__main__"})  # noqa: S102 - our own file
    plain = re.search(r"plain ([\d.]+)%, with test-time augmentation ([\d.]+)%", capsys.readouterr().out)
    assert plain
    assert float(plain[1]) > 50
    assert float(plain[2]) > 50


@pytest.mark.parametrize("number", range(2))
def test_readme_python_blocks_run(number, tmp_path, few_digits, tiny_backbone):
    """Every Python block of the README runs as it stands; the file `quickstart` is the same on a smaller network."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    save_quickstart(tmp_path, tiny_backbone)
    exec(blocks[number], {"__name__": "__main__"})  # noqa: S102 - our own page


SIDE_BY_SIDE = re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL)
"""fastai's script and ours."""


def test_readme_verbs_are_the_originals():
    """The two scripts side by side ask the same of the learner."""
    original, ours = (re.findall(r"learn\.(\w+)\(([^)]*\)?)", code) for code in SIDE_BY_SIDE)
    assert [(verb.lower(), given) for verb, given in original] == ours


@pytest.mark.slow
def test_readme_verbs_run(few_digits, capsys):
    """Ours runs, here on digits at 16 pixels and with the bundled network. Smoke: docs/article.py asks the same."""
    small = SIDE_BY_SIDE[1].replace('"tfds:cifar10", size=128', '"digits", size=16').replace("resnet50", "resnet20")
    assert small.count("digits") == small.count("resnet20") == 1
    exec(small, {"__name__": "__main__"})  # noqa: S102 - our own page
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0.3  # chance is 0.1


USER = """
from kbaseline import ImageData, Learner, load, run_baseline
learn = Learner(ImageData.from_source("digits", size=32), backbone="resnet20")
rate: float = learn.lr_find().suggest("valley")
rows = learn.fit_one_cycle(3, max_lr=slice(rate / 100, rate))
rows.plot().savefig("history.png")
result = learn.tta()
result.worst(9).save("worst.html")
accuracy: float = result.tta.accuracy
run = load(run_baseline("quickstart").folder)
run.show(["a.png"])
wrong: int = learn.tta("valid").tta.accuracy
"""


@pytest.mark.slow
def test_a_users_script_is_checked_against_our_types(tmp_path: Path) -> None:
    """mypy finds the package's types (`py.typed`) and in a script nothing but the one mistake in its last line."""
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"script.py:{len(USER.splitlines())}: error: Incompatible types in assignment"), done.stdout
    assert rest == ["Found 1 error in 1 file (checked 1 source file)"]


def test_types_are_part_of_the_package() -> None:
    """Golden: without this file, no checker and few editors read our types."""
    assert (Path(kbaseline.__file__).parent / "py.typed").is_file()
