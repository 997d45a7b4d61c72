"""The classifier: head, parameter counts, initial loss, freezing, and saving in one file."""

import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from small_run import Scaled

from kbaseline.errors import ModelError
from kbaseline.models.classifier import (
    build_classifier,
    build_extractor,
    classifier_groups,
    freeze,
    group_rows,
    set_linear_head,
    soften_logits,
    unfreeze,
)
from kbaseline.optimizer import LayerwiseAdamW

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def built(tiny_backbone: str) -> keras.Model:
    return build_classifier(5, 16, tiny_backbone, seed=1)


@pytest.fixture
def small(built: keras.Model) -> Iterator[keras.Model]:
    """A small classifier of five classes at 16 pixels, untrained and unfrozen again after each test."""
    before = [(variable, variable.numpy().copy()) for variable in built.variables]
    yield built
    unfreeze(built)
    for variable, value in before:
        variable.assign(value)


@pytest.fixture(scope="module")
def large() -> keras.Model:
    """The article's model, with random weights; built once, since it takes seconds."""
    return build_classifier(10, 128, "resnet50", "none")


@pytest.fixture
def photos(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    # int32: of int64 JAX 0.12 warns that it truncates it.
    return rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8), rng.integers(0, 5, 12).astype(np.int32)


def size(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


# --- the article's model ----------------------------------------------------------------------------------------------


def test_parameter_counts_golden(large: keras.Model) -> None:
    """Golden: frozen with BatchNorm trained, ResNet50 with ten classes has fastai's 2,165,130 trainable parameters.

    They are the same, since what Keras' layout adds to torchvision's, a bias to each of the 53 convolutions (26,560
    numbers, without effect before BatchNorm), is frozen. Unfrozen they count: fastai's 25,620,042 and 26,560 more.
    """
    try:
        freeze(large, train_bn=True)
        assert size(large.trainable_variables) == 2_165_130
        freeze(large, train_bn=False)
        assert size(large.trainable_variables) == 2_165_130 - 2 * 26_560
    finally:
        unfreeze(large)
    assert size(large.trainable_variables) == 25_620_042 + 26_560


def test_layer_groups_golden(large: keras.Model) -> None:
    """Golden: the groups are stem to layer2, layer3 and layer4, head, with torchvision's counts and Keras' biases."""
    early, late, head = (set(group) for group in classifier_groups(large))
    counted = []
    for group in (early, late, head):
        owned = [v for v in large.trainable_variables if group & set(v.path.split("/"))]
        biases = [v for v in owned if v.path.endswith("conv/bias")]
        counted.append(size(owned) - size(biases))
    assert counted == [9_536 + 215_808 + 1_219_584, 7_098_368 + 14_964_736, 2_112_010]
    assert sum(counted) == 25_620_042


def test_every_variable_has_one_group(large: keras.Model) -> None:
    """Invariant: the groups cover every trainable variable once, frozen or not, as the optimizer requires."""
    for model in (large, build_classifier(5, 16, "resnet20", "none")):
        for prepare in (unfreeze, freeze):
            prepare(model)
            LayerwiseAdamW(groups=classifier_groups(model)).build(model.trainable_variables)
        unfreeze(model)


def test_head_golden(large: keras.Model) -> None:
    """Golden: max and average pooled, 4096 -> BN -> 0.25 -> 512 -> ReLU -> BN -> 0.5 -> 10, torch's BatchNorm."""
    head = large.layers[[layer.name for layer in large.layers].index("head_pool") - 2 :]
    assert {type(layer).__name__ for layer in head[:2]} == {"GlobalMaxPooling2D", "GlobalAveragePooling2D"}
    kinds = ["Concatenate", "BatchNormalization", "Dropout", "Dense", "ReLU", "BatchNormalization", "Dropout", "Dense"]
    assert [type(layer).__name__ for layer in head[2:]] == kinds
    pool, norm, drop, hidden, _, norm2, drop2, logits = head[2:]
    assert [tensor._keras_history.operation.name for tensor in pool.input] == ["head_max", "head_average"]
    assert pool.output.shape == (None, 4096)
    assert (drop.rate, drop2.rate) == (0.25, 0.5)
    assert hidden.kernel.shape == (4096, 512)
    assert logits.kernel.shape == (512, 10)
    assert hidden.use_bias
    assert logits.use_bias
    for layer in (norm, norm2):
        assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


def test_initialisation(large: keras.Model) -> None:
    """Golden: both dense layers are He-normal, untruncated (std sqrt(2 / fan_in)), with biases 0."""
    for name, fan_in, tolerance in (("head_hidden", 4096, 0.005), ("head_logits", 512, 0.03)):
        kernel, bias = (np.array(v, np.float64) for v in large.get_layer(name).weights)
        expected = math.sqrt(2 / fan_in)
        assert kernel.std() == pytest.approx(expected, rel=tolerance)
        assert abs(kernel.mean()) < 0.05 * expected
        # Keras' usual he_normal stops at 2.27 standard deviations.
        assert np.abs(kernel).max() > 3 * expected
        assert not bias.any()


def test_batchnorm_follows_the_article(large: keras.Model) -> None:
    """Golden: every BatchNorm of the body has momentum 0.9, what PyTorch calls 0.1; Keras' own would be 0.99."""
    norms = [la for la in large.get_layer("backbone").layers if isinstance(la, layers.BatchNormalization)]
    assert len(norms) == 53
    assert {layer.momentum for layer in norms} == {0.9}


# --- the small model --------------------------------------------------------------------------------------------------


def test_first_loss(small: keras.Model, rng: np.random.Generator) -> None:
    """Reference: the training loss of the untrained head is that of independent N(0, 4) logits.

    Not ln(classes) itself: BatchNorm gives the last layer 512 inputs of variance 1, dropout doubles their mean square,
    and kaiming_normal_ (variance 2 / 512) makes logits of variance 4. Their mean cross-entropy, by simulation in numpy,
    lies between ln(classes) and ln(classes) + 2. fastai begins there too. With the last kernel at zero it is ln 5.
    """
    images, labels = rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8), rng.integers(0, 5, 64)
    noise = rng.normal(0, 2, (200_000, 5))
    expected = np.mean(np.log(np.exp(noise).sum(axis=1)) - noise[:, 0])
    assert math.log(5) < expected < math.log(5) + 2
    logits = small(images, training=True)
    assert float(LOSS(labels, logits)) == pytest.approx(expected, rel=0.2)
    assert np.array(logits).var() == pytest.approx(4, rel=0.25)
    last = small.get_layer("head_logits").kernel
    kept = np.array(last)
    last.assign(kept * 0)
    try:
        assert float(LOSS(labels, small(images, training=True))) == pytest.approx(math.log(5), rel=1e-6)
    finally:
        last.assign(kept)


def step(model: keras.Model, photos: tuple[np.ndarray, np.ndarray]) -> tuple[set[str], set[str]]:
    """Two training steps; the paths of the variables that moved, and of those that did not."""
    model.compile(keras.optimizers.Adam(1e-2), LOSS)
    before = {v.path: np.array(v) for v in model.variables}
    model.fit(*photos, batch_size=6, verbose=0)
    moved = {v.path for v in model.variables if (np.array(v) != before[v.path]).any()}
    return moved, set(before) - moved


def body_paths(model: keras.Model) -> set[str]:
    return {v.path for v in model.get_layer("backbone").variables}


NORM_PARTS = {"gamma", "beta", "moving_mean", "moving_variance"}


def last_part(path: str) -> str:
    return path.split("/")[-1]


def test_frozen_with_batchnorm_trained(small: keras.Model, photos: tuple[np.ndarray, np.ndarray]) -> None:
    """Invariant: after real steps gamma, beta and running statistics of the body moved, and no bit of a convolution."""
    freeze(small, train_bn=True)
    moved, still = step(small, photos)
    body = body_paths(small)
    assert {last_part(path) for path in body & moved} == NORM_PARTS
    assert {last_part(path) for path in body & still} == {"kernel", "bias"}
    assert {path for path in moved if "head_" in path} >= {"head_hidden/kernel", "head_logits/kernel"}


def test_frozen_without_batchnorm(small: keras.Model, photos: tuple[np.ndarray, np.ndarray]) -> None:
    """Invariant: with `train_bn` false nothing of the body moves, running statistics included; the head does."""
    freeze(small, train_bn=False)
    moved, _ = step(small, photos)
    assert body_paths(small) & moved == set()
    assert {"head_hidden/kernel", "head_logits/bias", "head_bn1/gamma", "head_bn1/moving_mean"} <= moved


def test_unfrozen(small: keras.Model, photos: tuple[np.ndarray, np.ndarray]) -> None:
    """Invariant: unfrozen, every variable of the body moves."""
    freeze(small, train_bn=False)
    unfreeze(small)
    moved, _ = step(small, photos)
    assert body_paths(small) - moved == set()


def test_unfrozen_without_batchnorm(small: keras.Model, photos: tuple[np.ndarray, np.ndarray]) -> None:
    """Invariant: unfrozen with `train_bn` false, the body's BatchNorm stays; its convolutions and the head move."""
    unfreeze(small, train_bn=False)
    moved, _ = step(small, photos)
    body = body_paths(small)
    assert {last_part(path) for path in body & moved} == {"kernel", "bias"}
    assert {last_part(path) for path in body - moved} == NORM_PARTS
    assert "head_bn1/moving_mean" in moved


def test_blocks_of_ones_own_are_frozen_and_trained(photos: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Invariant: equal blocks, and blocks with weights of their own, are frozen but for BatchNorm, and all train."""
    image = x = keras.Input((None, None, 3))
    for number in range(2):
        x = keras.Sequential([Scaled(name="scaled")], name=f"block{number}")(x)
    keras.Model(image, x).save(tmp_path / "own.keras")
    model = build_classifier(5, 16, str(tmp_path / "own.keras"), hidden=8)
    body = model.get_layer("backbone")
    for prepare, expected in ((freeze, 2 * 2), (unfreeze, 2 * 5)):
        prepare(model)
        assert len(body.trainable_variables) == expected
        early, late, _ = (row["trainable"] for row in group_rows(model))
        assert early + late == size(body.trainable_variables) > early > 0
        model.compile(LayerwiseAdamW(1e-2, classifier_groups(model), [1, 1, 1]), LOSS)
        before = [np.array(variable) for variable in body.variables]
        model.fit(*photos, batch_size=6, verbose=0)
        still = [v for v, old in zip(body.variables, before, strict=True) if (np.array(v) == old).all()]
        assert len(still) == (2 * 3 if prepare is freeze else 0)


def test_a_linear_head_is_the_probe(rng: np.random.Generator, tiny_backbone: str) -> None:
    """Reference: a linear head set to a probe gives its logits, and softened a part of them; no class gets -inf."""
    images = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    features = build_extractor(16, tiny_backbone).predict(images, verbose=0)
    weights, bias = rng.normal(size=(32, 4)), np.array([0.5, -1, 2, -np.inf])
    model = build_classifier(4, 16, tiny_backbone, head="linear", dropout=0.5)
    set_linear_head(model, weights, bias)
    logits = model.predict(images, verbose=0)
    np.testing.assert_allclose(logits[:, :3], (features @ weights + bias)[:, :3], rtol=1e-4, atol=1e-4)
    assert (logits[:, 3] < -9000).all()
    soften_logits(model, 4)
    np.testing.assert_allclose(model.predict(images, verbose=0), logits / 4, rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in model.layers if layer.trainable_variables][1:] == ["head_logits"]


def test_it_takes_raw_pixels_of_any_size(small: keras.Model, rng: np.random.Generator) -> None:
    """Invariant: uint8 images of any height and width give float32 logits; inference has no randomness."""
    for shape in ((2, 16, 16, 3), (2, 9, 30, 3)):
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        logits = small.predict(images, verbose=0)
        assert logits.shape == (2, 5)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, small.predict(images, verbose=0))


def test_it_trains_smaller_images_than_it_predicts(
    photos: tuple[np.ndarray, np.ndarray], tiny_backbone: str, tmp_path: Path
) -> None:
    """Invariant: with `train_size` the network trains at that size; saved and loaded, it predicts at its own."""
    plain = build_classifier(5, 16, tiny_backbone, seed=1, hidden=8)
    model = build_classifier(5, 16, tiny_backbone, seed=1, hidden=8, transforms={"train_size": 8})
    np.testing.assert_array_equal(model.predict(photos[0], verbose=0), plain.predict(photos[0], verbose=0))
    sides = []
    backbone = model.get_layer("backbone")
    call = backbone.call
    backbone.call = lambda x, training=None, **given: sides.append((training, x.shape[1])) or call(x, training, **given)
    step(model, photos)
    model.predict(photos[0], verbose=0)
    assert set(sides) == {(True, 8), (False, 16)}
    del backbone.call
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("transforms").train_size == 8
    # Keras' own layers in the one, ours in the other.
    again = loaded.predict(photos[0], verbose=0)
    np.testing.assert_allclose(again, model.predict(photos[0], verbose=0), rtol=1e-5, atol=1e-4)


def test_a_backbone_of_one_size_trains_at_no_other(tmp_path: Path) -> None:
    """Golden: the error names the backbone, its size and the key; without `train_size` it is built."""
    fixed = keras.Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.Conv2D(2, 3)])
    fixed.save(tmp_path / "fixed.keras")
    path = str(tmp_path / "fixed.keras")
    with pytest.raises(ModelError, match=r"takes images of 32 pixels only.*set transforms\.train_size to null, got 24"):
        build_classifier(2, 32, path, transforms={"train_size": 24})
    build_classifier(2, 32, path, transforms={"train_size": 32})


def test_the_seed_fixes_the_weights(small: keras.Model) -> None:
    """Determinism: the same seed builds the same weights, another seed others, regardless of earlier random draws.

    And the caller's generators stay as they were.
    """
    keras.utils.set_random_seed(99)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the caller's
    kernels = []
    for seed in (3, 3, 4):
        model = build_classifier(3, 16, "resnet20", "none", seed=seed, hidden=8)
        body, head = model.get_layer("backbone"), model.get_layer("head_hidden")
        kernels.append([np.array(body.layers[1].kernel), np.array(head.kernel)])
    for first, second, other in zip(*kernels, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_a_saved_model_needs_no_more_than_the_import(
    small: keras.Model, photos: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Invariant: another process that imports kbaseline and keras loads the file and predicts the same.

    This is the test of the import hook in `kbaseline/__init__.py`, in both orders of import.
    """
    images = photos[0]
    unfreeze(small)
    small.compile(LayerwiseAdamW(groups=classifier_groups(small), multipliers=[0.01, 0.1, 1]), LOSS)
    small.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    expected = small.predict(images, verbose=0)
    predict = "np.save('out.npy', m.predict(np.load('images.npy'), verbose=0))"
    for order, then in (("import kbaseline, keras", predict), ("import keras, kbaseline", "print(m.optimizer.groups)")):
        code = f"{order}; import numpy as np; m = keras.models.load_model('model.keras'); {then}"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    # Another process, compiled for other shapes, rounds the last digits otherwise.
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-4)


def test_bfloat16_keeps_the_head_in_float32(photos: tuple[np.ndarray, np.ndarray], tiny_backbone: str) -> None:
    """Invariant: under mixed_bfloat16 the body computes in bfloat16, transforms, head and logits in float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_classifier(3, 16, tiny_backbone, hidden=8)
    assert model.get_layer("backbone").get_layer("first_conv").compute_dtype == "bfloat16"
    assert {layer.compute_dtype for layer in model.layers if layer.name.startswith("head_")} == {"float32"}
    assert model.get_layer("transforms").compute_dtype == "float32"
    logits = model.predict(photos[0], verbose=0)
    assert logits.dtype == np.float32
    assert (logits != logits.astype("bfloat16").astype("float32")).any()


def test_fewer_than_two_classes() -> None:
    """Golden: a single class is an error."""
    with pytest.raises(ModelError, match="num_classes must be at least 2; got 1"):
        build_classifier(1, 16, "resnet20", "none")
