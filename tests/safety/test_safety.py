"""Loading never executes: neither a model nor a run folder runs code, reads or writes outside of itself.

Every test plants a payload that would leave a mark, and looks for the mark afterwards.
"""

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from surfaces import finished_folder, model_members, zipped

import kbaseline
from kbaseline.config.load import load_config, parse_assignments
from kbaseline.data.sources.tfds import cifar
from kbaseline.errors import ConfigError, DownloadError, InputError, ModelError
from kbaseline.models.backbones import load_backbone, read_model
from kbaseline.runs.record import read_run
from kbaseline.storage.npz import DamagedError, read_array, read_arrays

PACKAGE = Path(kbaseline.__file__).parent


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a payload would make."""
    return tmp_path / "mark"


def layer(module: Any, class_name: str, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A layer as `config.json` describes it."""
    inside = {"name": "evil", **(config or {})}
    return {"module": module, "class_name": class_name, "config": inside, "name": "evil", "inbound_nodes": [], **more}


def planted(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A `.keras` file whose configuration was changed by hand."""
    members = dict(model_members())
    tree = json.loads(members["config.json"])
    change(tree)
    path.write_bytes(zipped({**members, "config.json": json.dumps(tree).encode()}))
    return path


def refuse(path: Path, mark: Path) -> str:
    """What is said of a model, by both ways in to load one; nothing may have run."""
    said = []
    for read in (lambda: read_model(path, "model"), lambda: load_backbone(str(path), "auto", 32)):
        with pytest.raises(ModelError) as caught:
            read()
        said.append(str(caught.value))
        assert len(said[-1].splitlines()) == 1
        assert not mark.exists()
    return said[0]


def test_a_lambda_layer_is_refused(tmp_path: Path, mark: Path) -> None:
    """Golden: a model that Keras itself saved with a Python lambda, whose bytecode it would have to run."""
    image = keras.Input((8, 8, 3))
    target = str(mark)
    made = keras.layers.Lambda(lambda x: (__import__("pathlib").Path(target).touch(), x)[1], output_shape=(8, 8, 3))
    keras.Model(image, made(image)).save(tmp_path / "lambda.keras")
    mark.unlink(missing_ok=True)  # Building the model ran it.
    assert "lambda" in refuse(tmp_path / "lambda.keras", mark).lower()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("builtins", "exec"),
        ("pathlib", "Path"),
        ("planted_module", "Layer"),
        ("keras.utils", "get_file"),
        ("keras.config", "enable_unsafe_deserialization"),
        ("keras.saving", "load_model"),
        ("keras.src.saving.serialization_lib", "enable_unsafe_deserialization"),
    ],
)
@pytest.mark.parametrize("kind", ["layer", "function", "activation"])
def test_a_name_from_elsewhere_is_refused(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, kind: str
) -> None:
    """Invariant: `module` and `class_name` reach neither Python's modules, nor one beside the file, nor what in Keras
    fetches files or turns safe mode off."""
    (tmp_path / "planted_module.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    function = {"module": module, "class_name": "function", "config": name, "registered_name": name}

    def change(tree: dict[str, Any]) -> None:
        layers = tree["config"]["layers"]
        if kind == "layer":
            layers.insert(1, layer(module, name, {"args": [f"touch {mark}"], "origin": mark.as_uri()}))
        elif kind == "function":
            layers.insert(1, {**layer("keras.layers", "Lambda", {"function": function}), "build_config": {}})
        else:
            next(one for one in layers if one["class_name"] == "Conv2D")["config"]["activation"] = function

    refuse(planted(tmp_path / "m.keras", change), mark)
    assert keras.src.saving.serialization_lib.in_safe_mode() is not False


def test_a_pickled_torch_module_is_refused(tmp_path: Path, mark: Path) -> None:
    """Golden: Keras' wrapper of PyTorch modules would unpickle one; without PyTorch it cannot even try."""
    module = {"class_name": "__bytes__", "config": {"value": pickle.dumps(Payload(mark)).decode("latin-1")}}
    evil = layer("keras.layers", "TorchModuleWrapper", {"module": module})
    refuse(planted(tmp_path / "m.keras", lambda tree: tree["config"]["layers"].insert(1, evil)), mark)


@pytest.mark.parametrize("link", ["none", "external link", "external data", "soft link"])
def test_weights_from_another_file_are_refused(tmp_path: Path, mark: Path, link: str) -> None:
    """Invariant: an HDF5 link in the weights does not bring in the content of another file; without one they load."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["0"] = np.ones((3, 3, 3, 2), np.float32)
    weights = tmp_path / "model.weights.h5"
    weights.write_bytes(model_members()["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        place = file["layers/conv2d/vars"]
        del place["0"]
        if link == "none":
            place["0"] = np.ones((3, 3, 3, 2), np.float32)
        elif link == "external link":
            place["0"] = h5py.ExternalLink(str(secret), "/0")
        elif link == "soft link":
            place["0"] = h5py.SoftLink("/layers/dense/vars/0")
        else:
            place.create_dataset("0", (3, 3, 3, 2), np.float32, external=[(str(secret), 0, 216)])
    path = tmp_path / "m.keras"
    path.write_bytes(zipped({**model_members(), "model.weights.h5": weights.read_bytes()}))
    if link == "none":
        read_model(path, "model")
        return
    refuse(path, mark)
    path = tmp_path / "m.weights.h5"
    path.write_bytes(weights.read_bytes())
    whole = tmp_path / "whole.keras"
    whole.write_bytes(zipped(model_members()))
    with pytest.raises(ModelError, match="weights"):
        load_backbone(str(whole), str(path), 32)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path, mark: Path) -> None:
    """Invariant: a model whose file lacks a layer's weights is refused, not completed in silence."""
    weights = tmp_path / "model.weights.h5"
    weights.write_bytes(model_members()["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        del file["layers/conv2d"]
    path = tmp_path / "m.keras"
    path.write_bytes(zipped({**model_members(), "model.weights.h5": weights.read_bytes()}))
    refuse(path, mark)


@pytest.mark.parametrize("name", ["../mark", "assets/../../mark", "{mark}"])
def test_a_model_writes_nothing_outside(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, name: str
) -> None:
    """Invariant: an archive's member that leads out of it (zip slip) is not unpacked there."""
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(inner))
    path = inner / "m.keras"
    path.write_bytes(zipped({**model_members(), name.format(mark=mark): b"payload"}))
    read_model(path, "model")
    assert not mark.exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"inner"}


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".keras"])
def test_older_formats_are_refused(tmp_path: Path, mark: Path, suffix: str) -> None:
    """Golden: an HDF5 model, whose reader checks less, is no `.keras` file whatever it is called."""
    path = tmp_path / f"m{suffix}"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": []}})
    assert "not a .keras file" in refuse(path, mark)


@pytest.mark.parametrize("how", ["object array", "pickle alone"])
def test_pickles_are_not_loaded(tmp_path: Path, mark: Path, how: str) -> None:
    """Invariant: neither predictions nor checkpoints nor cached arrays are unpickled."""
    run = finished_folder(tmp_path / "run")
    path = run / "predictions.npz"
    objects = np.array([Payload(mark)], dtype=object)
    if how == "object array":
        np.savez(path, class_names=objects, valid_labels=objects)
        np.save(tmp_path / "a.npy", objects)
    else:
        for file in (path, tmp_path / "a.npy"):
            file.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(InputError, match=r"cannot be read \(.*pickle"):
        read_run(run)
    for read in (lambda: read_arrays(path), lambda: read_array(tmp_path / "a.npy"), lambda: read_array(path)):
        with pytest.raises(DamagedError):
            read()
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system"])
def test_yaml_makes_no_objects(tmp_path: Path, mark: Path, tag: str) -> None:
    """Invariant: a Python tag in a configuration or after --set is refused, not obeyed."""
    (tmp_path / "c.yaml").write_text(f"name: {tag} [{mark}]\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_assignments([f"name={tag} [{mark}]"])
    assert not mark.exists()


def test_an_archive_of_images_is_read_not_unpacked(tmp_path: Path, mark: Path) -> None:
    """Invariant: CIFAR's archive is read in memory, by the names that are wanted; no member of it reaches the disk."""

    class Info:
        prefix, label_files, train_files, test_files, label_keys = "c/", ["l.txt"], ["t.bin"], [], ["label"]

    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../mark", str(mark), "c/l.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("c/t.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DownloadError, match=r"cannot be unpacked|is missing or incomplete"):
        cifar._unpacked(archive, Info)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.tar.gz"}


def test_one_way_to_read_each_kind_of_file() -> None:
    """Invariant: `np.load`, `yaml.load`, `load_model` and pickle stand where they are made safe and nowhere else."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in (
            "np.load(",
            "yaml.load(",
            "load_model(",
            "import pickle",
            "import dill",
            "joblib",
            "marshal",
            "eval(",
        ):
            if call in text and (call != "eval(" or " eval(" in text):
                found.setdefault(call, set()).add(path.name)
    safe = {"np.load(": {"npz.py"}, "yaml.load(": {"keys.py"}, "load_model(": {"backbones.py"}}
    assert found == safe | {"import pickle": {"torch_file.py"}}


def test_a_zip_of_a_model_is_read_whole(tmp_path: Path) -> None:
    """Golden: the same members, put together by hand and with nothing planted, are a model: the tests above refuse
    what was planted, not their own handiwork."""
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(model_members()))
    assert zipfile.is_zipfile(path)
    assert read_model(path, "model").count_params() > 0
