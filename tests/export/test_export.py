"""Exports: every format answers as the run does, one that does not is never seen, and the card tells the truth."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small_run import save_doubt

import kbaseline
from kbaseline.cli import main
from kbaseline.config.load import load_config
from kbaseline.data import decode
from kbaseline.errors import InputError, RunError
from kbaseline.export import export
from kbaseline.export import formats as export_formats
from kbaseline.export.card import render_card
from kbaseline.export.export import export_run
from kbaseline.export.formats import FORMATS
from kbaseline.export.network import compute_in_float32, stock_network
from kbaseline.models import cpu as cpu_layers
from kbaseline.models.backbones import ImageNetPreprocessing, leaves
from kbaseline.models.classifier import build_classifier
from kbaseline.runs.run import load
from kbaseline.storage.run_folder import RunFolder
from kbaseline.transforms import RandomTransforms

NAMES = ["cat", "dog", "emu"]
HAS_ONNX = all(importlib.util.find_spec(name) for name in FORMATS["onnx"].packages)
KINDS = ["keras", pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="the onnx extra")), "stablehlo"]


@pytest.fixture(scope="module")
def network(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes that sees 16 pixels, its weights drawn."""
    path = tmp_path_factory.mktemp("network") / "model.keras"
    build_classifier(3, 16, tiny_backbone, hidden=16, seed=5).save(path)
    return path


@pytest.fixture
def run(finished_run: Callable[..., Path], network: Path) -> Path:
    """A finished run of that classifier on digits, 8x8 pixels."""
    folder = finished_run("run", **{"data.size": 16})
    shutil.copy(network, folder)
    return folder


def exported(kind: str, path: Path) -> tuple[Callable[[np.ndarray], Any], dict[str, Any]]:
    """An exported file as somebody without kbaseline reads it."""
    if kind == "keras":
        return keras.models.load_model(path).predict_on_batch, json.loads(zipfile.ZipFile(path).read("kbaseline.json"))
    if kind == "onnx":
        import onnx
        import onnxruntime

        assert [(used.domain, used.version) for used in onnx.load(path).opset_import] == [("", 18)]
        session = onnxruntime.InferenceSession(path)
        (taken,), (given, strange) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [8, 8, 3])
        assert (given.name, given.type, given.shape[1:]) == ("probabilities", "tensor(float)", [3])
        assert (strange.name, strange.type, strange.shape[1:]) == ("unfamiliarity", "tensor(float)", [])
        texts = session.get_modelmeta().custom_metadata_map
        facts = {name: json.loads(texts[name]) for name in ("class_names", "doubt")}
        return lambda images: dict(
            zip((given.name, strange.name), session.run(None, {"images": images}), strict=True)
        ), facts
    import jax.export

    with zipfile.ZipFile(path) as archive:
        network = jax.export.deserialize(bytearray(archive.read("network.jax_export")))
        facts = json.loads(archive.read("kbaseline.json"))
    assert str(network.in_avals) == "(ShapedArray(uint8[batch,8,8,3]),)"
    return network.call, facts


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_as_the_run(kind: str, run: Path, rng: np.random.Generator, tmp_path: Path) -> None:
    """Reference: read without kbaseline, every format gives the run's calibrated probabilities and unfamiliarity for
    batches of 1 and 3, its class names and thresholds, and, by its card's own lines in a process that cannot import
    kbaseline, the run's answer to a photo."""
    doubt = save_doubt(run, 32)
    done = export_run(run, kind)
    assert sorted(path.name for path in done.path.parent.iterdir()) == sorted([FORMATS[kind].file, "model_card.md"])
    assert done.agreement.source == "validation images of digits"
    assert (done.agreement.images, done.agreement.batches) == (100, (1, 25))
    predict, facts = exported(kind, done.path)
    assert (facts["class_names"], facts["doubt"]) == (NAMES, doubt.summary())
    images = rng.integers(0, 256, size=(3, 8, 8, 3), dtype=np.uint8)
    saved = load(run)
    answer = saved.answer(images)
    expected = answer.probabilities
    raw = replace(saved, doubt=None).predict(images)
    np.testing.assert_allclose(expected, raw**0.5 / (raw**0.5).sum(axis=1, keepdims=True), atol=1e-6)  # temperature 2
    assert np.ptp(expected, axis=0).max() > 1e-3  # they do depend on the image
    for count in (1, 3):
        found = predict(images[:count])
        assert {name: np.asarray(one).dtype for name, one in found.items()} == dict.fromkeys(found, np.float32)
        np.testing.assert_allclose(found["probabilities"], expected[:count], atol=1e-5)
        np.testing.assert_allclose(found["unfamiliarity"], answer.unfamiliarity[:count], rtol=1e-4)

    Image.fromarray(images[0]).save(done.path.parent / "photo.jpg", format="PNG")  # whose pixels stay what they are
    (lines,) = re.findall(r"```python\n(.*?)```", done.card.read_text(encoding="utf-8"), re.DOTALL)
    said = alone(lines, done.path.parent).splitlines()
    inside = [NAMES[i] for i in (-expected[0]).argsort() if answer.sets[0][i]]
    assert " ".join(["90 % set:", *inside]) in said
    assert ("none of these, probably" in said) == (answer.unfamiliarity[0] > 1)
    name, probability = said[-1].split()
    assert name == NAMES[expected[0].argmax()]
    assert float(probability) == pytest.approx(expected[0].max(), abs=1e-5)


def alone(code: str, folder: Path) -> str:
    """What code prints in a process where kbaseline cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = f"import sys; sys.modules['kbaseline'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("mode", "size"), [("caffe", (5, 9)), ("tf", (40, 36)), ("torch", (16, 16))])
def test_the_stock_network_is_the_classifier(mode: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Invariant: for images smaller, more than twice as large and as large as the network's, nothing of kbaseline is
    left in the graph and no probability changes."""
    image = keras.Input((None, None, 3), dtype="uint8")
    x = ImageNetPreprocessing(mode)(RandomTransforms(16)(image))
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    network = stock_network(model, size, size, "squish")
    assert "kbaseline" not in json.dumps(network.get_config())
    assert network.input_shape == (None, *size, 3)
    images = rng.integers(0, 256, size=(4, *size, 3), dtype=np.uint8)
    expected = keras.ops.softmax(model.predict_on_batch(images))
    np.testing.assert_allclose(network.predict_on_batch(images), expected, atol=1e-6)


@pytest.mark.skipif(not HAS_ONNX, reason="the onnx extra")
def test_max_pooling_reaches_onnx_runtime(rng: np.random.Generator, tmp_path: Path) -> None:
    """Reference: a ResNet's pooling, padded or not, gives ONNX Runtime the numbers it gives Keras, before and after."""
    image = x = keras.Input((17, 16, 3), dtype="uint8", name="images")
    for padding in ("valid", "same"):
        x = keras.layers.MaxPooling2D(3, 2, padding)(x)
    x = keras.layers.Activation("softmax", name="probabilities")(
        keras.layers.Flatten()(keras.ops.cast(x, "float32") / 64)
    )
    model = keras.Model(image, x)
    images = rng.integers(0, 256, size=(2, 17, 16, 3), dtype=np.uint8)
    expected = np.asarray(model(images))
    FORMATS["onnx"].write(model, {"class_names": []}, tmp_path / "model.onnx")
    predict, _ = FORMATS["onnx"].read(tmp_path / "model.onnx")
    np.testing.assert_allclose(predict(images)["probabilities"], expected, atol=1e-6)
    np.testing.assert_array_equal(model(images), expected)


def test_a_bfloat16_network_is_exported_in_float32(tiny_backbone: str, rng: np.random.Generator) -> None:
    """Reference: its probabilities are those of the same weights in float32, which bfloat16's are not."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_classifier(3, 16, tiny_backbone, hidden=16)
    keras.config.set_dtype_policy("float32")
    same = build_classifier(3, 16, tiny_backbone, hidden=16)
    same.set_weights(model.get_weights())
    images = rng.integers(0, 256, size=(4, 8, 8, 3), dtype=np.uint8)
    expected, coarse = (keras.ops.softmax(one.predict_on_batch(images)) for one in (same, model))
    assert np.abs(coarse - expected).max() > 1e-4
    assert compute_in_float32(model)
    assert not compute_in_float32(model)
    np.testing.assert_allclose(
        stock_network(model, (8, 8), (8, 8), "squish").predict_on_batch(images), expected, atol=1e-6
    )


def damaged(damage: str) -> export_formats.Format:
    """The Keras format, read with something wrong."""

    def read(path: Path) -> tuple[Any, dict[str, Any]]:
        predict, facts = FORMATS["keras"].read(path)
        if damage == "names":
            return predict, {**facts, "class_names": NAMES[::-1]}
        if damage == "nan":
            return lambda images: {name: one * np.nan for name, one in predict(images).items()}, facts
        name = "unfamiliarity" if damage == "strange" else "probabilities"
        wrong, size = (0.02, 1) if damage == "strange" else (2e-4, 25 if damage == "batch" else 1)
        # Right at one size of batch, wrong at the other.
        return lambda images: (found := predict(images)) | {name: found[name] + wrong * (len(images) == size)}, facts

    return replace(FORMATS["keras"], read=read)


@pytest.mark.parametrize("damage", ["names", "nan", "batch", "single", "strange"])
def test_a_file_that_disagrees_is_never_seen(damage: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: other names, NaN, 2e-4 of a probability or 0.02 of an unfamiliarity at one batch size end the export
    with exit code 1, one line, and nothing in the run folder."""
    if damage == "strange":
        save_doubt(run, 32)
    before = sorted(run.rglob("*"))
    monkeypatch.setattr(export, "get_format", lambda name: damaged(damage))
    done = CliRunner().invoke(main, ["export", str(run), "--format", "keras"])
    assert (done.exit_code, done.stdout) == (1, "")
    said = "gives an unfamiliarity that differs" if damage == "strange" else "disagrees with"
    assert re.search(rf"model\.keras {said} .* nothing was written\. Try another format\.\n$", done.stderr)
    assert sorted(run.rglob("*")) == before


def test_converters_see_the_layers_of_keras(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: none is a matrix product instead, as of a loaded run on a CPU; a file would spell it out."""
    # The network of this run has no 1x1 convolutions.
    product = "convolution_op", cpu_layers._pointwise_convolution
    monkeypatch.setattr(
        cpu_layers, "_replacement", lambda layer: product if type(layer) is keras.layers.Conv2D else None
    )
    assert any(cpu_layers.is_adapted(layer) for layer in leaves(load(run).model))
    seen: list[bool] = []

    def stock(model: keras.Model, *sizes: Any) -> keras.Model:
        seen.extend(cpu_layers.is_adapted(layer) for layer in leaves(model))
        return stock_network(model, *sizes)

    monkeypatch.setattr(export, "stock_network", stock)
    export_run(run, "keras")
    assert seen
    assert not any(seen)


def test_what_a_converter_does_not_know_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: a converter that fails ends the export with its reason, and nothing is left."""

    def write(*_: object) -> None:
        raise NotImplementedError("no plugin\nfor primitive 'fft'")

    monkeypatch.setattr(export, "get_format", lambda name: replace(FORMATS["keras"], write=write))
    with pytest.raises(RunError, match=r"cannot be created \(NotImplementedError: no plugin for primitive 'fft'\)"):
        export_run(run, "keras")
    assert not (run / "exports").exists()


def test_what_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Golden: a missing package, another format, no run, a size out of range and a used folder are one line each."""

    def refused(*arguments: object) -> str:
        with pytest.raises(InputError) as caught:
            export_run(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "must be one of keras, onnx, stablehlo. Did you mean 'onnx'?" in refused(run, "onxx")
    assert "no such folder" in refused(tmp_path / "gone", "keras")
    assert "input size 8 0: height and width must be 8 to 4096" in refused(run, "keras", None, (8, 0))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    assert "exists and is not empty" in refused(run, "keras", tmp_path / "used")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert refused(run, "onnx") == "format 'onnx': needs the package onnx; run `pip install 'kbaseline[onnx]'`."
    done = CliRunner().invoke(main, ["export", str(run), "--format", "tflite"])
    assert (done.exit_code, "Traceback" in done.output) == (2, False)


def test_without_its_data_a_run_is_checked_on_photographs(run: Path, tmp_path: Path) -> None:
    """Golden: where the data has gone the images are scikit-learn's photographs, and that is told; the size is the one
    the run kept, or the one asked for."""
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("source: digits", "source: 'folder:/gone'"), encoding="utf-8")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["data"]["image_size"] = [12, 10]
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    done = CliRunner().invoke(main, ["export", str(run), "--format", "stablehlo", "--out", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.stderr
    assert "crops of scikit-learn's photographs (the run's data: no folder /gone)" in done.stdout
    assert "uint8 (batch, 12, 10, 3) in" in done.stdout
    asked = ["export", str(run), "--format", "stablehlo", "--out", str(tmp_path / "asked"), "--input-size", "9", "20"]
    assert "uint8 (batch, 9, 20, 3) in" in CliRunner().invoke(main, asked).stdout


def test_a_hundred_images_are_decoded_to_check_a_hundred(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Of all images of a source only those to compare on are decoded, fitted like the run's; nothing is cached."""
    for number in range(620):
        photo = tmp_path / "photos" / NAMES[number % 3] / f"{number}.bmp"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (number % 256,) * 3).save(photo)
    (tmp_path / "photos" / "cat" / "bad.jpg").write_bytes(b"bad")
    changes = {"data.source": f"folder:{tmp_path / 'photos'}", "data.cache_dir": str(tmp_path / "cache")}
    RunFolder(run).write_text("config.yaml", load_config(run / "config.yaml", changes).to_yaml())
    opened, genuine = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda file, *rest: (opened.append(file), genuine(file, *rest))[1])
    images, source = export._real_images(load(run))
    assert (len(opened), images.shape) == (100, (100, 8, 8, 3))
    assert len(np.unique(images[:, 0, 0, 0])) > 50
    assert source == f"validation images of folder:{tmp_path / 'photos'}"
    assert not (tmp_path / "cache" / "images").exists()


def test_the_card_holds_what_the_run_found(run: Path, tmp_path: Path) -> None:
    """Golden: accuracies with intervals, plain and TTA, counts, recipe, versions; what a user named stays text."""
    saved = load(run)
    (tmp_path / "model.onnx").write_bytes(b"1234")
    kept = export.read_run(run)
    evil = ("a|b", "*c*\n# d", "<script>")
    card = render_card(
        replace(kept, class_names=evil), "onnx", tmp_path / "model.onnx", (8, 8), "checked", rounded=True
    )
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", card, re.MULTILINE))
    assert rows["accuracy"] == "80.00 % | 81.00 %"
    assert rows["95 % interval"] == "71.12 – 86.66 % | 72.22 – 87.49 %"
    assert rows["file"] == "`model.onnx`, 4 bytes"
    assert rows["0"].startswith(r"a\|b | ")
    assert rows["1"].startswith(r"\*c\* \# d | ")
    assert rows["2"].startswith(r"\<script\> | ")
    assert rows["head"].startswith("frozen | 3 | ")
    assert "digits: 100 valid images" in card
    assert f"seed {saved.config.seed}" in card
    assert f"kbaseline {kbaseline.__version__}" in card
    assert f"Keras {keras.__version__}" in card
    assert "in bfloat16; this file computes in float32" in card
