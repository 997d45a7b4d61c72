"""Convolutions of 1x1 and of images on a CPU: Keras' results up to rounding, and an unchanged saved file."""

from pathlib import Path

import jax
import keras
import numpy as np
import pytest

from kbaseline.models.cpu import adapt_to_cpu, restore

SHAPE = (9, 7, 5)


def network(strides: int | tuple[int, int] = 1, use_bias: bool = True, padding: str = "valid") -> keras.Model:
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 1, strides, padding, use_bias=use_bias, activation="tanh", name="narrow")(image)
    x = keras.layers.Conv2D(4, 3, name="wide")(x)
    return keras.Model(image, keras.layers.Conv2D(3, 1, name="last")(x))


def gradients(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of a weighted sum of the outputs, by variable and with respect to the images."""
    weights = np.random.default_rng(1).normal(size=model(images).shape).astype("float32")

    def loss(values: list, x: np.ndarray) -> jax.Array:
        outputs, _ = model.stateless_call(values, model.non_trainable_variables, x, training=True)
        return (outputs * weights).sum()

    variables = model.trainable_variables
    to_weights, to_images = jax.jit(jax.grad(loss, argnums=(0, 1)))([variable.value for variable in variables], images)
    names = [variable.path for variable in variables]
    return {name: np.asarray(found) for name, found in zip([*names, "images"], [*to_weights, to_images], strict=True)}


def products(model: keras.Model) -> tuple[int, int]:
    """Numbers of matrix products and convolutions in a forward and backward pass, to weights and images."""

    def loss(values: list, x: np.ndarray) -> jax.Array:
        return keras.ops.sum(model.stateless_call(values, model.non_trainable_variables, x)[0] ** 2)

    values = [variable.value for variable in model.trainable_variables]
    # Lowered, because a frozen kernel's gradient stands in the traced program still.
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(values, np.zeros((2, *SHAPE), "float32")).as_text()
    return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")


@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gradients_are_those_of_keras(
    strides: int | tuple[int, int], padding: str, use_bias: bool, rng: np.random.Generator
) -> None:
    """Reference: output and every gradient agree with the stock layers', with strides and with odd sides."""
    model = network(strides, use_bias, padding)
    images = rng.normal(size=(4, *SHAPE)).astype("float32")
    stock_output, stock = np.asarray(model(images)), gradients(model, images)
    assert adapt_to_cpu(model) == 2
    ours = gradients(model, images)
    np.testing.assert_allclose(np.asarray(model(images)), stock_output, rtol=1e-5, atol=1e-6)
    for name, gradient in stock.items():
        assert np.abs(gradient).max() > 1e-2
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-4, atol=1e-6 * np.abs(gradient).max(), err_msg=name)


def test_forward_and_both_gradients_are_products() -> None:
    """Invariant: a 1x1 convolution is three dots where the stock one is three convolutions; frozen, two."""
    model = network()
    assert products(model) == (0, 9)
    adapt_to_cpu(model)
    assert products(model) == (6, 3)
    model.get_layer("narrow").trainable = False
    assert products(model) == (5, 3)


def test_other_layers_are_left_alone() -> None:
    """Invariant: larger kernels, subclasses and other layers stay Keras' own."""

    class Mine(keras.layers.Conv2D):
        pass

    image = keras.Input((8, 8, 6))
    for layer in (
        keras.layers.Conv2D(4, 3),
        keras.layers.Conv2D(4, (1, 2)),
        Mine(4, 1),
        keras.layers.BatchNormalization(center=False),
        keras.layers.LayerNormalization(),
    ):
        assert adapt_to_cpu(keras.Model(image, layer(image))) == 0, layer


def test_images_are_drawn_once(rng: np.random.Generator) -> None:
    """Invariant: the first convolution writes its images to memory; all gradients are Keras', also to the images."""
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same")(image))
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    stock = gradients(model, images)
    assert adapt_to_cpu(model) == 1
    assert "while" in str(jax.make_jaxpr(lambda x: model(x))(images))
    for name, found in gradients(model, images).items():
        np.testing.assert_allclose(found, stock[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: on a GPU the layers are not changed."""
    model = network()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert adapt_to_cpu(model) == 0
    assert products(model) == (0, 9)


@pytest.mark.parametrize("copied", ["saved", "cloned"])
def test_copies_are_stock_models(copied: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Invariant: configuration and file are unchanged; a loaded copy uses Keras' convolution and predicts the same."""
    model = network()
    before = model.get_config()
    adapt_to_cpu(model)
    assert model.get_config() == before
    if copied == "saved":
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
    else:
        again = keras.models.clone_model(model)
        again.set_weights(model.get_weights())
    assert products(model) == (6, 3)
    assert products(again) == (0, 9)
    images = rng.normal(size=(2, *SHAPE)).astype("float32")
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)


def test_restored_layers_are_stock_ones() -> None:
    """Invariant: `restore` removes the change from the layers and from the compiled program."""
    model = network()
    stock = [set(vars(layer)) for layer in model.layers]
    adapt_to_cpu(model)
    restore(model)
    assert [set(vars(layer)) for layer in model.layers] == stock
    assert products(model) == (0, 9)


def test_half_precision_keeps_its_dtype(rng: np.random.Generator) -> None:
    """Invariant: under mixed bfloat16 every layer returns bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network()
    adapt_to_cpu(model)
    each = keras.Model(model.input, [layer.output for layer in model.layers[1:]])
    for training in (True, False):
        outputs = each(rng.normal(size=(2, *SHAPE)).astype("float32"), training=training)
        assert {str(output.dtype) for output in outputs} == {"bfloat16"}
