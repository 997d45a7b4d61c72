"""A network that is read from a file draws no random weights first, and is the same network."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kbaseline.models.backbones import load_backbone, read_model
from kbaseline.models.blank import blank_weights
from kbaseline.models.zoo import BUNDLED_RESNET20

RANDOM = ["RandomNormal", "RandomUniform", "TruncatedNormal", "HeNormal", "GlorotUniform", "Orthogonal"]


def network(dtype: str = "float32") -> keras.Model:
    """A layer for each kind of random weights, and constants of several values."""
    dense = [layers.Dense(6, kernel_initializer=kind, dtype=dtype, name=kind) for kind in RANDOM]
    norm = layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(3), name="norm")
    return keras.Sequential([layers.Input((6,)), *dense, norm])


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever draws random weights fails."""

    def draw(initializer: keras.initializers.Initializer, *args: object, **kwargs: object) -> None:
        raise AssertionError(f"{type(initializer).__name__} was drawn")

    for name in (*RANDOM, "VarianceScaling"):
        monkeypatch.setattr(getattr(keras.initializers, name), "__call__", draw)


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_numbers_are_zeros_and_constants_stay(dtype: str) -> None:
    """Golden: kernels are zero in their own dtype, constants as they were, and the configuration is untouched."""
    with blank_weights():
        model = network(dtype)
    for name in RANDOM:
        layer = model.get_layer(name)
        assert not np.any(layer.kernel)
        assert layer.kernel.dtype == dtype
        assert layer.get_config()["kernel_initializer"]["class_name"] == name
    assert [float(np.mean(variable)) for variable in model.get_layer("norm").weights] == [3, 0, 0, 1]
    with pytest.raises(AssertionError, match="was drawn"):
        network()


def test_other_threads_draw() -> None:
    """Golden: a layer that another thread builds meanwhile is random, and so is one that is built afterwards."""
    with blank_weights(), ThreadPoolExecutor(1) as other:
        assert np.any(other.submit(network).result().get_layer("HeNormal").kernel)
        assert not np.any(network().get_layer("HeNormal").kernel)
    assert np.any(network().get_layer("HeNormal").kernel)


def test_read_models_draw_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Reference: a saved model, a saved backbone and the networks of the zoo have their own weights, not one drawn."""
    saved = network()
    saved.save(tmp_path / "saved.keras")
    backbone = keras.Sequential([layers.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv")])
    backbone.save(tmp_path / "backbone.keras")
    request.getfixturevalue("nothing_drawn")
    bundled, _ = load_backbone("resnet20")
    from_file, _ = load_backbone("resnet20", weights=str(BUNDLED_RESNET20))
    found = [read_model(tmp_path / "saved.keras", "saved"), load_backbone(str(tmp_path / "backbone.keras"), size=8)[0]]
    for one, other in zip([*found, bundled], [saved, backbone, from_file], strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one.get_weights(), other.get_weights(), strict=True))
        assert np.any(one.get_weights()[0])
    assert all(np.any(weights) for weights in load_backbone("efficientnet_lite0")[0].get_weights())
    with pytest.raises(AssertionError, match="was drawn"):
        load_backbone("resnet20", weights="none")
