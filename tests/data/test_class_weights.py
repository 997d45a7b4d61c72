"""Class weights: what they are, what they refuse, and that the training loss and nothing else follows them."""

import keras
import numpy as np
import pytest
from rich.console import Console

from kbaseline import ImageData, Learner
from kbaseline.config.load import load_config
from kbaseline.data.batches import ImageBatches
from kbaseline.data.class_weights import class_weights
from kbaseline.errors import ConfigError, DataError

LABELS = np.repeat([0, 1, 3], [6, 3, 1])
NAMES = ("cat", "dog", "emu", "fox")


def test_auto_is_inverse_to_the_number_of_images():
    """Golden: of 6, 3 and 1 images an image weighs 10 / (3 x 6), 10 / (3 x 3), 10 / 3; an absent class 1."""
    found = class_weights("auto", LABELS, NAMES)
    np.testing.assert_allclose(found, [10 / 18, 10 / 9, 1, 10 / 3], rtol=1e-6)
    assert found.dtype == np.float32
    assert found[LABELS].mean() == pytest.approx(1)


def test_weights_by_name():
    """Golden: a class not named weighs 1; none at all is None."""
    assert class_weights({"dog": 2, "fox": 0.5}, LABELS, NAMES).tolist() == [1, 2, 1, 0.5]
    assert class_weights("none", LABELS, NAMES) is None


def test_an_unknown_class_is_refused():
    """Golden: a name that is no class gets the likely one."""
    with pytest.raises(
        DataError, match=r"data\.class_weights: 'dgo' is not one of the 4 classes .*Did you mean 'dog'\?"
    ):
        class_weights({"dgo": 2.0}, LABELS, NAMES)


def test_names_are_matched_by_their_composed_form():
    """Golden: the same letters composed in two ways are one name."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    for known, given in ((composed, apart), (apart, composed)):
        assert class_weights({given: 3.0}, np.array([0, 1]), (known, "dog")).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("atuo", "class_weights: must be 'none', 'auto' or a weight for each name of a class; got 'atuo'"),
        (2, "class_weights: must be 'none'"),
        (None, "class_weights: must be 'none'"),
        ({"cat": 0}, "class_weights: a weight must be a number above 0, at most 10,000; got 0 for 'cat'"),
        ({"cat": -1.0}, "got -1.0 for 'cat'"),
        ({"cat": "much"}, "got 'much' for 'cat'"),
        ({"cat": True}, "got True for 'cat'"),
        ({"cat": float("nan")}, "got nan for 'cat'"),
    ],
)
def test_the_configuration_refuses_other_values(value, said):
    """Golden: what is neither a word nor a table of weights is one line with the rule."""
    with pytest.raises(ConfigError, match=said) as caught:
        load_config({"data": {"class_weights": value}})
    assert "\n" not in str(caught.value)


def test_the_configuration_keeps_them(tmp_path):
    """Invariant: each form survives the way through YAML, names with digits and dots included."""
    for value in ("none", "auto", {"cat": 2.0, "7": 0.5, "a.b": 1.0}):
        config = load_config({"data": {"class_weights": value}})
        (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(tmp_path / "config.yaml") == config
        assert config.data.class_weights == value


def linear(classes):
    """One dense layer on the raw pixels, begun at zero."""
    image = keras.Input((2, 2, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(keras.layers.Flatten()(image))
    model = keras.Model(image, keras.layers.Dense(classes, kernel_initializer="zeros")(x))
    model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_the_gradient_is_weighted(rng):
    """Reference: two steps of SGD on the mean of weight x cross-entropy, in numpy; and Keras' own `class_weight`."""
    images = rng.integers(0, 256, (8, 2, 2, 3), dtype=np.uint8)
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2], np.int32)
    weights = np.array([0.5, 2.0, 3.0], np.float32)
    weighted, keras_own = linear(3), linear(3)
    history = weighted.fit(ImageBatches(images, labels, 8, class_weights=weights), epochs=2, verbose=0)
    keras_own.fit(ImageBatches(images, labels, 8), epochs=2, verbose=0, class_weight=dict(enumerate(weights)))
    x, kernel, bias, losses = images.reshape(8, 12) / 255, np.zeros((12, 3)), np.zeros(3), []
    for _ in range(2):
        p = np.exp(x @ kernel + bias)
        p /= p.sum(axis=1, keepdims=True)
        losses.append(np.mean(weights[labels] * -np.log(p[np.arange(8), labels])))
        error = weights[labels, None] * (p - np.eye(3)[labels]) / 8
        kernel, bias = kernel - 0.5 * x.T @ error, bias - 0.5 * error.sum(axis=0)
    for model in (weighted, keras_own):
        for found, expected in zip(model.get_weights(), (kernel, bias), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)


def test_without_weights_batches_are_pairs():
    """Golden: the default hands Keras images and labels alone, as it would without class weights."""
    images = np.zeros((4, 2, 2, 3), np.uint8)
    assert [len(ImageBatches(images, np.arange(4), 4, class_weights=w)[0]) for w in (None, np.ones(4))] == [2, 3]


def test_weights_follow_their_images(rng):
    """Invariant: shuffled, every image keeps the weight of its own label."""
    labels = rng.integers(0, 4, 20).astype(np.int32)
    weights = np.array([1, 2, 3, 4], np.float32)
    batches = ImageBatches(np.zeros((20, 2, 2, 3), np.uint8), labels, 5, class_weights=weights, shuffle=True)
    for _, said, weight in (batches[i] for i in range(len(batches))):
        np.testing.assert_array_equal(weight, weights[said])


def test_training_and_finder_are_weighted_and_validation_is_not(tmp_path):
    """Invariant: twice the weight for every class doubles the losses of finder and training, not that of validation."""
    image = keras.Input((None, None, 3))
    backbone = tmp_path / "tiny.keras"
    keras.Model(image, keras.layers.Conv2D(4, 3, 2, name="conv")(image)).save(backbone)
    data = ImageData.from_source("digits", size=16, limit=128, limit_valid=32)
    losses = {}
    for weight in (1.0, 2.0):
        setting = "none" if weight == 1 else dict.fromkeys(data.class_names, weight)
        config = {"data": {"class_weights": setting}, "lr_find": {"steps": 20, "end_lr": 1e-6}}
        learn = Learner(data, str(backbone), config=config, console=Console(quiet=True))
        sweep = learn.lr_sweep().losses
        (row,) = learn.fit(1, 1e-9)
        losses[weight] = (sweep[0], row["train_loss"], row["valid_loss"])
    ratio = np.divide(losses[2.0], losses[1.0])
    np.testing.assert_allclose(ratio, [2, 2, 1], rtol=1e-4)
