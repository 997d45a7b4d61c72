"""The zoo: names, preprocessing, weights, saved backbones, and errors."""

import socket
import urllib.error
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from small_run import Scaled

from kbaseline.errors import DownloadError, ModelError
from kbaseline.models import backbones
from kbaseline.models.backbones import ImageNetPreprocessing, layer_groups, leaves, load_backbone, resnet20
from kbaseline.models.zoo import ZOO


def tiny(path: Path, *head: layers.Layer, channels: int = 3) -> Path:
    """A saved feature extractor that takes RGB 0-255."""
    body = [layers.Input((None, None, channels)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, name="c1")]
    body += [layers.BatchNormalization(name="n1"), layers.Conv2D(6, 3, name="c2"), layers.Conv2D(5, 1, name="c3")]
    keras.Sequential([*body, *head], name="tiny").save(path)
    return path


def test_the_zoo_is_what_the_readme_names() -> None:
    """Golden: the documented names exist; resnet50 has Caffe's preprocessing, resnet20 its own."""
    promised = {"resnet50", "resnet101", "resnet152", "mobilenet_v2", "efficientnetv2_b0", "convnext_tiny", "resnet20"}
    assert promised <= set(ZOO)
    assert (ZOO["resnet50"].preprocessing, ZOO["resnet50"].pretrained) == ("caffe", "imagenet")
    assert (ZOO["resnet20"].preprocessing, ZOO["resnet20"].pretrained) == ("tf", "cifar10")
    assert ZOO["efficientnetv2_b0"].preprocessing is ZOO["convnext_tiny"].preprocessing is None


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocessing_reference(rng: np.random.Generator, mode: str) -> None:
    """Reference: BGR less the means, -1..1, or channel statistics, written out in numpy."""
    images = rng.uniform(0, 255, (2, 4, 5, 3)).astype("float32")
    expected = {
        "caffe": images[..., ::-1] - np.array([103.939, 116.779, 123.68]),
        "tf": images / 127.5 - 1,
        "torch": (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
    }[mode]
    layer = ImageNetPreprocessing(mode)
    np.testing.assert_allclose(np.array(layer(images)), expected, atol=1e-4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    np.testing.assert_array_equal(np.array(again(images)), np.array(layer(images)))


def test_resnet20_golden() -> None:
    """Golden: ResNet-20's 19 convolutions and two projections, 0.27 M parameters, a quarter of the side."""
    model = resnet20()
    convolutions = [layer for layer in leaves(model) if isinstance(layer, layers.Conv2D)]
    assert len(convolutions) == 19 + 2
    kernels = 3 * 16 * 9 + 6 * 16 * 16 * 9 + (16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) * 9 + 16 * 32 + 32 * 64
    norms = 4 * (7 * 16 + 7 * 32 + 7 * 64)
    assert model.count_params() == kernels + norms
    assert model.compute_output_shape((None, 32, 32, 3)) == (None, 8, 8, 64)


def group_names(model: keras.Model) -> list[list[str]]:
    return [[layer.name for layer in group] for group in layer_groups(model)]


def test_groups_of_a_resnet_are_cut_before_conv4() -> None:
    """Golden: resnet20's early group ends with its third stage."""
    early, late = group_names(resnet20())
    assert early[0] == "conv1_conv"
    assert early[-1].startswith("conv3_")
    assert {name.split("_")[0] for name in late} == {"conv4"}
    assert {name.split("_")[0] for name in early} == {"conv1", "conv2", "conv3"}


def test_groups_of_another_network_are_its_halves(tmp_path: Path) -> None:
    """Golden: four layers with weights are split into two and two, in order."""
    model, preprocessing = load_backbone(str(tiny(tmp_path / "b.keras")), size=16)
    assert preprocessing is None
    assert group_names(model) == [["c1", "n1"], ["c2", "c3"]]


def test_groups_of_blocks_with_equal_names_are_blocks() -> None:
    """Golden: where two layers have one name, or a block has weights of its own, its blocks are divided, not layers."""
    image = x = keras.Input((None, None, 3))
    for number in range(4):
        inner = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")]
        x = keras.Sequential(inner, name=f"block{number}")(x)
    assert group_names(keras.Model(image, x)) == [["block0", "block1"], ["block2", "block3"]]
    scaled = keras.Sequential([keras.Input((8, 8, 3)), Scaled(name="scaled0"), Scaled(name="scaled1")])
    assert group_names(scaled) == [["scaled0"], ["scaled1"]]


def test_a_saved_backbone_keeps_its_weights_by_default(tmp_path: Path) -> None:
    """Invariant: `imagenet` keeps the saved weights, a file replaces them, `none` draws new ones."""
    path = tiny(tmp_path / "b.keras")
    saved = keras.models.load_model(path)
    kernel = np.array(saved.get_layer("c2").kernel)
    kept, _ = load_backbone(str(path), size=16)
    np.testing.assert_array_equal(np.array(kept.get_layer("c2").kernel), kernel)
    fresh, _ = load_backbone(str(path), "none", size=16)
    assert (np.array(fresh.get_layer("c2").kernel) != kernel).any()
    saved.get_layer("c2").kernel.assign(kernel * 2)
    saved.save_weights(tmp_path / "w.weights.h5")
    filled, _ = load_backbone(str(path), str(tmp_path / "w.weights.h5"), size=16)
    np.testing.assert_array_equal(np.array(filled.get_layer("c2").kernel), kernel * 2)


def test_a_weights_file_fills_a_name_of_the_zoo(tmp_path: Path) -> None:
    """Invariant: `weights: FILE` gives resnet20 the weights saved from one."""
    keras.utils.set_random_seed(5)
    source = resnet20()
    source.save_weights(tmp_path / "w.weights.h5")
    model, preprocessing = load_backbone("resnet20", str(tmp_path / "w.weights.h5"))
    assert preprocessing == "tf"
    for ours, theirs in zip(model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unknown_names_get_a_suggestion() -> None:
    """Golden: an unknown backbone's error names the closest one; a missing `.keras` file's error names the rule."""
    with pytest.raises(ModelError, match=r"backbone 'resnet5': no such name.*Did you mean 'resnet50'"):
        load_backbone("resnet5")
    with pytest.raises(ModelError, match=r"no such file; give a \.keras model or a name"):
        load_backbone("nowhere/at-all.keras")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet20", "imagenet", "weights 'imagenet': no such weights for resnet20; give 'cifar10'"),
        ("resnet50", "cifar10", "weights 'cifar10': no such weights for resnet50; give 'imagenet'"),
        ("resnet50", "nowhere.h5", "weights 'nowhere.h5': no such file for resnet50"),
    ],
)
def test_unknown_weights_are_errors(name: str, weights: str, said: str) -> None:
    """Golden: unknown weights or a missing file are errors before anything is built."""
    with pytest.raises(ModelError, match=said):
        load_backbone(name, weights)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    """Golden: a weights file of another network and an invalid file are errors of one line with the file name."""
    other = tmp_path / "other.weights.h5"
    keras.models.load_model(tiny(tmp_path / "b.keras")).save_weights(other)
    junk = tmp_path / "junk.weights.h5"
    junk.write_bytes(b"not hdf5")
    for path in (other, junk):
        with pytest.raises(ModelError, match=r"weights '.*h5': not for resnet20") as caught:
            load_backbone("resnet20", str(path))
        assert "\n" not in str(caught.value)
    resnet20().save_weights(tmp_path / "r.weights.h5")
    with pytest.raises(ModelError, match=r"r\.weights\.h5': not for tiny"):
        load_backbone(str(tmp_path / "b.keras"), str(tmp_path / "r.weights.h5"), size=16)


def test_files_that_are_no_backbone(tmp_path: Path) -> None:
    """Golden: the error for a classifier, a grey or fixed-size network and a broken file gives the reason."""
    with pytest.raises(ModelError, match=r"must give a feature map .*Save it without its pooling and classifier"):
        load_backbone(str(tiny(tmp_path / "top.keras", layers.GlobalAveragePooling2D())), size=16)
    with pytest.raises(ModelError, match=r"must take RGB images \(16, 16, 3\)"):
        load_backbone(str(tiny(tmp_path / "grey.keras", channels=1)), size=16)
    fixed = keras.Sequential([layers.Input((32, 32, 3)), layers.Conv2D(2, 3)])
    fixed.save(tmp_path / "fixed.keras")
    with pytest.raises(ModelError, match=r"must take RGB images \(16, 16, 3\).*it takes \(None, 32, 32, 3\)"):
        load_backbone(str(tmp_path / "fixed.keras"), size=16)
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(ModelError, match="not a Keras model that can be read") as caught:
        load_backbone(str(broken), size=16)
    assert "\n" not in str(caught.value)


def fails(error: Exception) -> object:
    def urlretrieve(*_: object, **__: object) -> None:
        raise error

    return urlretrieve


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("http://x", 403, "Forbidden", None, None),  # type: ignore[arg-type]
        TimeoutError("timed out"),
        ConnectionResetError("reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_download_impossible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    """Golden: weights that cannot be downloaded are a DownloadError in one line with three remedies.

    Invariant: without a network the download fails after seconds, and the socket timeout of the process is restored.
    """
    limits = []

    def build(**_: object) -> None:
        limits.append(socket.getdefaulttimeout())
        keras.utils.get_file("kbaseline-no-such-weights.h5", "http://localhost/x.h5", cache_dir=tmp_path)

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fails(error))
    monkeypatch.setattr(keras.applications, "ResNet50", build)
    before = socket.getdefaulttimeout()
    with pytest.raises(DownloadError, match=r"weights 'imagenet' of resnet50: could not be downloaded") as caught:
        load_backbone("resnet50")
    for remedy in ("model.weights=FILE", "model.weights=none", "kbaseline fit --config quickstart"):
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert socket.getdefaulttimeout() == before
    assert limits == [backbones.DOWNLOAD_TIMEOUT]
    assert 0 < backbones.DOWNLOAD_TIMEOUT <= 30


def test_an_error_that_is_no_download_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: another error while building is not reported as a network error."""

    def build(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(keras.applications, "ResNet50", build)
    with pytest.raises(ZeroDivisionError):
        load_backbone("resnet50")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_row_builds_and_gives_a_feature_map(name: str) -> None:
    """Invariant: each backbone builds without weights, outputs a feature map, and has two groups with weights.

    Reference: the table has the parameter count of the built model and Keras' default input size.
    """
    model, _ = load_backbone(name, "none")
    assert model.count_params() == ZOO[name].parameters
    if ZOO[name].application is not None:
        whole = getattr(keras.applications, ZOO[name].application)(weights=None)
        assert whole.input_shape[1] in (ZOO[name].size, None)  # MobileNetV3 leaves it open
    shape = model.compute_output_shape((None, 64, 64, 3))
    assert len(shape) == 4
    assert all(layer_groups(model))
