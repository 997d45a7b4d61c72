"""1x1 convolutions as matrix products: the numbers of Keras' own, and nothing of it in the saved file."""

from pathlib import Path

import keras
import numpy as np
import pytest

from kbaseline.pointwise import use_matrix_products


def network(strides: int = 1, use_bias: bool = True, padding: str = "valid") -> keras.Model:
    image = keras.Input((9, 7, 5))
    x = keras.layers.Conv2D(6, 1, strides, padding, use_bias=use_bias, activation="tanh", name="narrow")(image)
    x = keras.layers.Conv2D(4, 3, name="wide")(x)
    return keras.Model(image, keras.layers.Conv2D(3, 1, name="last")(x))


def gradients(model: keras.Model, images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Gradients of the mean squared output to the trainable variables and to the images."""
    import jax

    def loss(values: list, x: np.ndarray) -> jax.Array:
        outputs, _ = model.stateless_call(values, model.non_trainable_variables, x, training=True)
        return keras.ops.mean(keras.ops.square(outputs))

    values = [variable.value for variable in model.trainable_variables]
    to_weights, to_images = jax.jit(jax.grad(loss, argnums=(0, 1)))(values, images)
    return [np.asarray(gradient) for gradient in to_weights], np.asarray(to_images)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gradients_are_those_of_keras(strides: int, padding: str, use_bias: bool, rng: np.random.Generator) -> None:
    """Reference: output and every gradient agree with the stock layers', strided and with a side that is odd."""
    model = network(strides, use_bias, padding)
    images = rng.normal(size=(4, 9, 7, 5)).astype("float32")
    stock_output, (stock, stock_images) = np.asarray(model(images)), gradients(model, images)
    assert use_matrix_products(model) == 2
    ours, our_images = gradients(model, images)
    np.testing.assert_allclose(np.asarray(model(images)), stock_output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_images, stock_images, rtol=1e-4, atol=1e-7)
    for mine, theirs in zip(ours, stock, strict=True):
        assert np.abs(theirs).max() > 1e-4
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_forward_and_both_gradients_are_products() -> None:
    """Invariant: compiled, a 1x1 convolution is three dots where the stock one is three convolutions; frozen, two."""
    import jax

    model = network()
    images = np.zeros((2, 9, 7, 5), "float32")

    def loss(values: list, x: np.ndarray) -> jax.Array:
        return keras.ops.sum(model.stateless_call(values, model.non_trainable_variables, x)[0])

    def dots_and_convolutions() -> tuple[int, int]:
        values = [variable.value for variable in model.trainable_variables]
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(values, images))
        return text.count("dot_general"), text.count("conv_general_dilated[")

    assert dots_and_convolutions() == (0, 9)
    use_matrix_products(model)
    assert dots_and_convolutions() == (6, 3)
    model.get_layer("narrow").trainable = False
    assert dots_and_convolutions() == (5, 3)


def test_other_convolutions_are_left_alone() -> None:
    """Invariant: larger kernels, groups and other layers stay Keras' own."""
    image = keras.Input((8, 8, 4))
    for layer in (
        keras.layers.Conv2D(4, 3),
        keras.layers.Conv2D(4, 1, groups=2),
        keras.layers.DepthwiseConv2D(1),
        keras.layers.Dense(3),
    ):
        assert use_matrix_products(keras.Model(image, layer(image))) == 0


def test_the_saved_model_is_a_stock_one(tmp_path: Path, rng: np.random.Generator) -> None:
    """Invariant: configuration and file do not show the change; a loaded copy predicts the same."""
    model = network()
    before = model.get_config()
    use_matrix_products(model)
    assert model.get_config() == before
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert "convolution_op" not in vars(again.get_layer("narrow"))
    images = rng.normal(size=(2, 9, 7, 5)).astype("float32")
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_its_dtype(rng: np.random.Generator) -> None:
    """Invariant: under mixed bfloat16 the layer computes and returns bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network()
    use_matrix_products(model)
    assert model(rng.normal(size=(2, 9, 7, 5)).astype("float32")).dtype == "bfloat16"
