"""The zoo's table: the state of the weights is right, and it prints without Keras. Parameters: test_backbones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from kbaseline.cli import main
from kbaseline.commands.doctor import weights_status
from kbaseline.config.load import load_config
from kbaseline.errors import ModelError
from kbaseline.models.backbones import resnet20
from kbaseline.models.zoo import ZOO, resolve_weights, zoo_table


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def test_cached_weights_are_seen_where_keras_keeps_them(keras_home):
    """A file under Keras' own name in its cache is a cached backbone; bundled and packaged ones are always here."""
    (keras_home / "models").mkdir()
    (keras_home / "models" / "efficientnetb0_notop.h5").touch()
    found = CliRunner().invoke(main, ["backbones", "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["name"] for row in rows] == list(ZOO)
    here = {row["name"] for row in rows if row["cached"]} - {"efficientnet_lite2"}  # an extra
    assert here == {"resnet20", "efficientnet_b0", "efficientnet_lite0"}


def test_the_bundled_backbones_parameters_are_counted():
    """Reference: the table has the parameter count of the built model. A slow test of backbones builds the others."""
    assert ZOO["resnet20"].parameters == resnet20().count_params()


def test_weights_mean_one_thing_to_a_run_and_to_doctor(keras_home, tmp_path, monkeypatch):
    """Golden: names, files and `none` of a row and of a saved model; `doctor` reports as missing what a run refuses."""
    monkeypatch.chdir(tmp_path)
    for name in ("own.keras", "w.h5"):
        (tmp_path / name).touch()
    cached = keras_home / "models" / ZOO["resnet50"].file
    packaged = ZOO["efficientnet_lite0"].weights_file
    for backbone, weights, kind, file, here in (
        ("resnet50", "auto", "own", cached, False),
        ("resnet50", "imagenet", "own", cached, False),
        ("resnet50", "none", "none", None, True),
        ("resnet50", "w.h5", "file", Path("w.h5"), True),
        ("efficientnet_lite0", "imagenet", "own", packaged, True),
        ("resnet20", "cifar10", "own", ZOO["resnet20"].weights_file, True),
        ("own.keras", "auto", "own", Path("own.keras"), True),
        ("own.keras", "none", "none", None, True),
        ("own.keras", "w.h5", "file", Path("w.h5"), True),
    ):
        found = resolve_weights(backbone, weights)
        assert (found.kind, found.file, found.row) == (kind, file, ZOO.get(backbone))
        config = load_config({"model": {"backbone": backbone, "weights": weights}})
        assert weights_status(config)[0] is here
    for backbone, weights in (
        ("resnet5", "auto"),
        ("no.keras", "none"),
        ("resnet20", "imagenet"),
        ("own.keras", "cifar10"),
        ("resnet20", "no.h5"),
    ):
        with pytest.raises(ModelError) as refused:
            resolve_weights(backbone, weights)
        config = load_config({"model": {"backbone": backbone, "weights": weights}})
        assert weights_status(config) == (False, str(refused.value))


def test_the_table_fits_80_columns(keras_home):
    """On a narrow terminal every row is complete in one line."""
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
