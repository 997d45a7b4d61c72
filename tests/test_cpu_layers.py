"""Layers computed the way a CPU is fastest at: the numbers of Keras' own, and nothing of it in the saved file."""

from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

from kbaseline.cpu_layers import adapt_to_cpu, convolve, max_pool, restore

SHAPE = (17, 15, 5)
"""Sides above 14, from which kernel gradients are products, and odd."""


def gradients(model: keras.Model, images: np.ndarray) -> tuple[list[np.ndarray], ...]:
    """In training: the output; gradients of a sum of it to the trainable variables and to the images; state."""
    weights = np.random.default_rng(1).normal(size=model(images).shape).astype("float32")

    def loss(values: list, x: np.ndarray) -> tuple[jax.Array, Any]:
        outputs, state = model.stateless_call(values, model.non_trainable_variables, x, training=True)
        return keras.ops.sum(outputs * weights), (outputs, state)

    values = [variable.value for variable in model.trainable_variables]
    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (to_weights, to_images), (outputs, state) = step(values, images)
    return tuple([np.asarray(x) for x in found] for found in (to_weights, [to_images], [outputs], state))


def assert_as_keras(image: keras.KerasTensor, x: keras.KerasTensor, changed: int) -> None:
    """An adapted network agrees with the stock one in training, in inference, and in what it learns of the data."""
    model = keras.Model(image, x)
    images = np.random.default_rng(0).normal(size=(4, *image.shape[1:])).astype("float32")
    stock, predicted = gradients(model, images), np.asarray(model(images, training=False))
    assert adapt_to_cpu(model) == changed
    ours = gradients(model, images)
    np.testing.assert_allclose(np.asarray(model(images, training=False)), predicted, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours, stock, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * max(1, np.abs(other).max()))
    assert all(np.abs(gradient).max() > 1e-2 for gradient in stock[0] + stock[1])


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (4, 3)])
def test_convolutions_are_those_of_keras(kernel: int, strides: int, padding: str) -> None:
    """Reference: output and every gradient agree with the stock layer's, where sides divide by strides or do not."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, kernel, strides, padding, activation="tanh")(image)
    assert_as_keras(image, x, changed=1)


def test_rows_and_columns_are_not_confused() -> None:
    """Reference: with unequal strides, of a kernel that is not square."""
    image = keras.Input((23, 16, 3))
    layer = keras.layers.Conv2D(4, (5, 3), (3, 1), "same")
    assert_as_keras(image, layer(image), changed=1)


@pytest.mark.parametrize(("side", "filters"), [(13, 6), (17, 4)])
def test_where_products_are_slower_they_are_not_used(side: int, filters: int) -> None:
    """Golden: a small image, or fewer filters than channels, keeps XLA's kernel gradient, with the same numbers."""
    image = keras.Input((side, side, 5))
    x = keras.layers.Conv2D(filters, 3)(image)
    model = keras.Model(image, x)
    adapt_to_cpu(model)
    assert products(model, (2, side, side, 5)) == (0, 3)
    assert_as_keras(image, x, changed=1)


@pytest.mark.parametrize(("size", "strides"), [(2, 2), (3, 2), (3, 1), ((3, 2), 3), (2, 3)])
def test_pooling_is_that_of_keras(size: int | tuple[int, int], strides: int) -> None:
    """Reference: maxima and where their gradients go, with windows that overlap, touch or leave gaps."""
    image = keras.Input(SHAPE)
    assert_as_keras(image, keras.layers.MaxPooling2D(size, strides)(image), changed=1)


def test_of_equal_values_the_first_gets_the_gradient() -> None:
    """Reference: as XLA has it; behind a ReLU most windows hold zeros alone."""
    images = np.random.default_rng(0).integers(0, 3, (2, 9, 9, 4)).astype("float32")

    def ours(x: Any) -> Any:
        return jax.numpy.sum(max_pool(x, (3, 3), (2, 2)) ** 2 + max_pool(x, (3, 3), (2, 2)))

    def theirs(x: Any) -> Any:
        pooled = keras.ops.max_pool(x, 3, 2, "valid", "channels_last")
        return jax.numpy.sum(pooled**2 + pooled)

    np.testing.assert_array_equal(jax.grad(ours)(images), jax.grad(theirs)(images))


def test_a_value_that_is_no_number_goes_on() -> None:
    """Invariant: wherever in a window it stands, for training stops at it."""
    for row in range(3):
        for column in range(3):
            images = np.ones((1, 3, 3, 1), "float32")
            images[0, row, column] = np.nan
            assert np.isnan(max_pool(images, (3, 3), (1, 1))).all()


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("axis", [-1, 3])
def test_batch_norm_is_that_of_keras(trainable: bool, axis: int) -> None:
    """Reference: output, gradients and moving statistics, of data off zero; frozen, the moving ones."""
    image = keras.Input(SHAPE)
    layer = keras.layers.BatchNormalization(axis, momentum=0.7, epsilon=0.01, gamma_initializer="random_normal")
    x = keras.layers.Rescaling(3.0, offset=2.0)(image)
    x = layer(x)
    layer.trainable = trainable
    # A frozen one has no gradients; behind it something else that has.
    assert_as_keras(image, keras.layers.DepthwiseConv2D(5)(x), changed=1)


def test_batch_norm_of_vectors() -> None:
    """Reference: what is not an image goes Keras' way."""
    image = keras.Input((6,))
    assert_as_keras(image, keras.layers.BatchNormalization()(keras.layers.Dense(5, use_bias=False)(image)), changed=1)


def test_batch_norm_in_inference_and_with_a_mask() -> None:
    """Reference: then it is Keras' own, which also knows what the moving statistics are for."""
    layer = keras.layers.BatchNormalization()
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layer(image))
    images = np.random.default_rng(0).normal(5, 2, (2, 4, 4, 3)).astype("float32")
    mask = np.array([[[True] * 4] * 4, [[False] * 4] * 4])
    stock = [np.asarray(layer(images, training=True, mask=mask)), np.asarray(layer.moving_mean)]
    layer.moving_mean.assign(np.zeros(3))
    layer.moving_variance.assign(np.ones(3))
    assert adapt_to_cpu(model) == 1
    np.testing.assert_array_equal(layer(images, training=True, mask=mask), stock[0])
    np.testing.assert_array_equal(layer.moving_mean, stock[1])
    before = np.asarray(layer.moving_mean)
    layer(images, training=False)
    np.testing.assert_array_equal(layer.moving_mean, before)


def products(model: keras.Model, shape: tuple[int, ...]) -> tuple[int, int]:
    """Matrix products and convolutions of a pass forward and back, to weights and images."""

    def loss(values: list, x: np.ndarray) -> jax.Array:
        return keras.ops.sum(model.stateless_call(values, model.non_trainable_variables, x)[0])

    values = [variable.value for variable in model.trainable_variables]
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(values, np.zeros(shape, "float32")))
    return text.count("dot_general"), text.count("conv_general_dilated[")


def test_what_becomes_a_product() -> None:
    """Invariant: a 1x1 convolution is three dots, frozen two; a 3x3 one keeps two convolutions, frozen too."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 1, name="narrow")(image)
    x = keras.layers.Conv2D(8, 3, name="wide")(x)
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(x))
    assert products(model, (2, *SHAPE)) == (0, 9)
    assert adapt_to_cpu(model) == 3
    assert products(model, (2, *SHAPE)) == (7, 2)
    model.get_layer("narrow").trainable = False
    assert products(model, (2, *SHAPE)) == (6, 2)


def test_a_frozen_layer_computes_no_kernel_gradient() -> None:
    """Invariant: compiled, the kernel gradient that nobody asks for is gone."""
    images, kernel = np.ones((2, 17, 15, 5), "float32"), np.ones((3, 3, 5, 6), "float32")
    to_images = jax.grad(lambda x, k: convolve(x, k, (1, 1), "same").sum())
    assert "dot(" not in jax.jit(to_images).lower(images, kernel).compile().as_text()


def test_other_layers_are_left_alone() -> None:
    """Invariant: what would compute something else, or is no faster, stays Keras' own."""

    class Mine(keras.layers.Conv2D):
        pass

    image = keras.Input((8, 8, 4))
    for layer in (
        keras.layers.Conv2D(4, 3, dilation_rate=2),
        keras.layers.Conv2D(4, 1, groups=2),
        Mine(4, 1),
        keras.layers.DepthwiseConv2D(1),
        keras.layers.Dense(3),
        keras.layers.MaxPooling2D(4),
        keras.layers.MaxPooling2D(3, padding="same"),
        keras.layers.AveragePooling2D(2),
        keras.layers.BatchNormalization(axis=1),
        keras.layers.BatchNormalization(scale=False),
        keras.layers.BatchNormalization(center=False),
        keras.layers.BatchNormalization(renorm=True),
        keras.layers.LayerNormalization(),
    ):
        assert adapt_to_cpu(keras.Model(image, layer(image))) == 0, layer


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: on a GPU Keras' own layers stay."""
    image = keras.Input(SHAPE)
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(image))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert adapt_to_cpu(model) == 0
    assert "convolution_op" not in vars(model.layers[-1])


def small_network() -> keras.Model:
    """One of each kind that is changed."""
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 1, name="narrow")(image)
    x = keras.layers.Conv2D(6, 3, padding="same", name="wide")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(image, keras.layers.MaxPooling2D(3, 2, name="pool")(x))


@pytest.mark.parametrize("copied", ["saved", "cloned"])
def test_copies_are_stock_models(copied: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Invariant: configuration and file do not show the change; a copy computes in Keras' way and predicts the same."""
    model = small_network()
    before = model.get_config()
    assert adapt_to_cpu(model) == 4
    assert model.get_config() == before
    if copied == "saved":
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
    else:
        again = keras.models.clone_model(model)
        again.set_weights(model.get_weights())
    for name in ("narrow", "wide", "norm", "pool"):
        assert {"call", "convolution_op"} & set(vars(model.get_layer(name)))
        assert not {"call", "convolution_op"} & set(vars(again.get_layer(name)))
    images = rng.normal(size=(2, *SHAPE)).astype("float32")
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)


def test_restored_layers_are_stock_ones() -> None:
    """Invariant: nothing of the change is left, in the layers and in the program."""
    model = small_network()
    stock = [set(vars(layer)) for layer in model.layers]
    before = products(model, (2, *SHAPE))
    adapt_to_cpu(model)
    assert products(model, (2, *SHAPE)) != before
    restore(model)
    assert [set(vars(layer)) for layer in model.layers] == stock
    assert products(model, (2, *SHAPE)) == before


def test_half_precision_keeps_its_dtype(rng: np.random.Generator) -> None:
    """Invariant: under mixed bfloat16 the layers compute and return bfloat16, statistics in float32, as Keras' do."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small_network()
    images = rng.normal(3, 1, (4, *SHAPE)).astype("float32")
    stock = model(images, training=True)
    statistics = np.asarray(model.get_layer("norm").moving_mean)
    model.get_layer("norm").moving_mean.assign(np.zeros(6))
    adapt_to_cpu(model)
    ours = model(images, training=True)
    assert ours.dtype == stock.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(ours, "float32"), np.asarray(stock, "float32"), atol=0.05)
    np.testing.assert_allclose(np.asarray(model.get_layer("norm").moving_mean), statistics, rtol=1e-3)
