"""The zoo's table: what it says of weights is so, and it is printed without Keras. Its numbers: test_backbones."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

from kbaseline.cli import main
from kbaseline.models.backbones import resnet20
from kbaseline.models.zoo import ZOO, zoo_table


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def test_cached_weights_are_seen_where_keras_keeps_them(keras_home):
    """A file under Keras' own name in its cache is a cached backbone; the bundled one is always here."""
    (keras_home / "models").mkdir()
    (keras_home / "models" / "efficientnetb0_notop.h5").touch()
    found = CliRunner().invoke(main, ["backbones", "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["name"] for row in rows] == list(ZOO)
    assert {row["name"] for row in rows if row["cached"]} == {"resnet20", "efficientnet_b0"}


def test_the_bundled_backbones_parameters_are_counted():
    """Reference: the table's figure is the built model's. The others are built by a slow test of backbones."""
    assert ZOO["resnet20"].parameters == resnet20().count_params()


def test_the_table_fits_80_columns(keras_home):
    """Every name and figure stands whole in a line of its own on a narrow terminal."""
    console = Console(width=80)
    with console.capture() as shown:
        console.print(zoo_table())
    lines = shown.get().splitlines()
    assert len(lines) == 1 + len(ZOO)
    for name, line in zip(ZOO, lines[1:], strict=True):
        assert line.split()[0] == name
    assert "bundled" in lines[1]


def test_it_is_printed_without_keras():
    """Invariant: listing the zoo loads neither Keras nor JAX."""
    code = "import sys; from kbaseline.cli import main; main(['backbones'], standalone_mode=False)\n"
    code += "assert not {'keras', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
