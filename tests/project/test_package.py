"""The package as a whole: its public names, its backend, and its snippets in the docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kbaseline
from kbaseline.config.load import load_config

ROOT = Path(__file__).parents[2]


def python(script: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    env = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"} | environment
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)


FEW_DIGITS = """
import sklearn.datasets
def few(load=sklearn.datasets.load_digits):
    digits = load()
    digits.images, digits.target = digits.images[:500], digits.target[:500]
    return digits
sklearn.datasets.load_digits = few
"""


def python_on_few_digits(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a script as it stands, in a world whose digits are 500, so that compiling is most of its time."""
    return subprocess.run(
        [sys.executable, "-c", FEW_DIGITS + script], capture_output=True, text=True, check=False, cwd=folder
    )


def test_public_names_exist_and_are_documented():
    """Every name of `__all__` can be imported and has a docstring."""
    for name in kbaseline.__all__:
        assert (getattr(kbaseline, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kbaseline.no_such_name


def test_backend_becomes_jax_where_nothing_has_chosen():
    """Importing kbaseline chooses JAX when KERAS_BACKEND is not set."""
    done = python("import kbaseline, os, keras; print(keras.backend.backend())")
    assert done.stdout.strip() == "jax", done.stderr


def test_a_library_that_only_looks_for_keras_does_no_harm():
    """kbaseline's classes are registered although somebody asked for Keras' spec before importing it."""
    script = (
        "import kbaseline, importlib.util; assert importlib.util.find_spec('keras')\n"
        "import keras; print(keras.saving.get_registered_object('kbaseline>RandomTransforms').__name__)"
    )
    done = python(script)
    assert done.stdout.strip() == "RandomTransforms", done.stderr


@pytest.mark.parametrize("order", ["import kbaseline, keras", "import keras, kbaseline"])
def test_another_backend_is_named(order):
    """If another backend was chosen already, a warning names it and the remedy, whichever is imported first."""
    done = python(f"{order}\nprint(keras.backend.backend())", KERAS_BACKEND="numpy")
    assert done.stdout.strip() == "numpy", done.stderr
    assert re.search(r"'numpy'.*set KERAS_BACKEND=jax", done.stderr)


def test_the_articles_snippet_runs_on_digits(tmp_path, tiny_backbone):
    """docs/article.py runs word for word, here on digits at 16 pixels and a network that compiles fast."""
    arguments = ["article.py", "digits", "16", tiny_backbone]
    done = python_on_few_digits(
        f"import sys\nsys.argv = {arguments}\n{(ROOT / 'docs/article.py').read_text()}", tmp_path
    )
    assert done.returncode == 0, done.stderr
    plain = re.search(r"plain ([\d.]+)%, with test-time augmentation ([\d.]+)%", done.stdout)
    assert plain, done.stdout
    assert float(plain[1]) > 50
    assert float(plain[2]) > 50


@pytest.mark.parametrize("number", range(2))
def test_readme_python_blocks_run(number, tmp_path, tiny_backbone):
    """Every Python block of the README runs as it stands; the file `quickstart` is the same on a smaller network."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    small = {"model.backbone": tiny_backbone, "model.weights": "auto", "data.size": 16, "lr_find.steps": 40}
    (tmp_path / "quickstart").write_text(load_config("quickstart", small).to_yaml())
    done = python_on_few_digits(blocks[number], tmp_path)
    assert done.returncode == 0, done.stderr


def test_readme_verbs_are_the_originals(tmp_path):
    """The two scripts side by side ask the same of the learner, and ours runs, here on digits at 16 pixels."""
    original, ours = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    calls = [re.findall(r"learn\.(\w+)\(([^)]*\)?)", code) for code in (original, ours)]
    assert [(verb.lower(), given) for verb, given in calls[0]] == calls[1]
    small = ours.replace('"tfds:cifar10", size=128', '"digits", size=16').replace("resnet50", "resnet20")
    assert small.count("digits") == small.count("resnet20") == 1
    done = python_on_few_digits(small, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.3  # chance is 0.1
