"""Layers computed in the ways a CPU is fastest at: the numbers of Keras' own, and nothing of it in the saved file."""

import re
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest

from kbaseline.models.cpu import adapt_to_cpu, restore

SHAPE = (9, 7, 5)


def network(
    strides: int | tuple[int, int] = 1, use_bias: bool = True, padding: str = "valid", norm: bool = False
) -> keras.Model:
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 1, strides, padding, use_bias=use_bias, activation="tanh", name="narrow")(image)
    x = keras.layers.Conv2D(4, 3, name="wide")(x)
    if norm:
        x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(image, keras.layers.Conv2D(3, 1, name="last")(x))


def in_training(model: keras.Model, images: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Gradients of a sum of all outputs, by variable and to the images; outputs and running statistics."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=output.shape).astype("float32") for output in keras.tree.flatten(model(images))]

    def loss(values: list, x: np.ndarray) -> tuple[jax.Array, Any]:
        outputs, state = model.stateless_call(values, model.non_trainable_variables, x, training=True)
        outputs = keras.tree.flatten(outputs)
        return sum((a * b).sum() for a, b in zip(outputs, weights, strict=True)), (*outputs, *state)

    variables = model.trainable_variables
    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (to_weights, to_images), found = step([variable.value for variable in variables], images)
    names = [variable.path for variable in variables]
    gradients = dict(zip([*names, "images"], [*to_weights, to_images], strict=True))
    return {name: np.asarray(gradient) for name, gradient in gradients.items()}, [np.asarray(x) for x in found]


def products(model: keras.Model) -> tuple[int, int]:
    """Matrix products and convolutions of a pass forward and back, to weights and images."""

    def loss(values: list, x: np.ndarray) -> jax.Array:
        return keras.ops.sum(model.stateless_call(values, model.non_trainable_variables, x)[0])

    values = [variable.value for variable in model.trainable_variables]
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(values, np.zeros((2, *SHAPE), "float32")))
    return text.count("dot_general"), text.count("conv_general_dilated[")


@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gradients_are_those_of_keras(
    strides: int | tuple[int, int], padding: str, use_bias: bool, rng: np.random.Generator
) -> None:
    """Reference: output and every gradient agree with the stock layers', strided and with a side that is odd."""
    model = network(strides, use_bias, padding)
    images = rng.normal(size=(4, *SHAPE)).astype("float32")
    stock_output, (stock, _) = np.asarray(model(images)), in_training(model, images)
    assert adapt_to_cpu(model) == 2
    ours, _ = in_training(model, images)
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


def assert_as_keras(model: keras.Model, images: np.ndarray, changed: int) -> None:
    """An adapted network agrees with the stock one in training, in inference, and in what it learns of the data."""
    rng = np.random.default_rng(2)
    for variable in model.variables:  # none is zero or one
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    (stock, results), predicted = in_training(model, images), model.predict(images, verbose=0)
    assert adapt_to_cpu(model) == changed
    (ours, our_results), our_predicted = in_training(model, images), model.predict(images, verbose=0)
    for mine, theirs in zip(
        [*our_results, *keras.tree.flatten(our_predicted)], [*results, *keras.tree.flatten(predicted)], strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    scale = max(np.abs(gradient).max() for gradient in stock.values())
    assert scale > 0.1
    for name, gradient in stock.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("shape", [(9, 7, 5), (6,)])
def test_batch_norm_is_that_of_keras(trainable: bool, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Reference: output, gradients and moving statistics, of data off zero; frozen, the moving ones."""
    image = keras.Input(shape)
    layer = keras.layers.BatchNormalization(momentum=0.7, epsilon=0.01)
    outputs = keras.layers.Dense(3)(layer(keras.layers.Rescaling(3.0, offset=2.0)(image)))
    layer.trainable = trainable
    assert_as_keras(keras.Model(image, outputs), rng.normal(size=(4, *shape)).astype("float32"), changed=1)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_bias_before_batch_norm_is_as_if_added(trainable: bool, kernel: int, rng: np.random.Generator) -> None:
    """Reference: outputs, gradients and the running mean agree; other readers of the convolution see its bias."""
    image = keras.Input(SHAPE)
    biased = keras.layers.Conv2D(4, kernel, name="biased")(image)
    layer = keras.layers.BatchNormalization(axis=3, momentum=0.7, name="norm")
    normed = layer(biased)
    layer.trainable = trainable
    images = rng.normal(size=(4, *SHAPE)).astype("float32")
    assert_as_keras(keras.Model(image, keras.layers.Conv2D(3, 3)(normed)), images, changed=2)
    assert_as_keras(keras.Model(image, [normed, biased]), images, changed=2)


def test_a_bias_before_batch_norm_is_left_out() -> None:
    """Invariant: a compiled step adds none; its gradient is zero, not what rounding leaves of it."""
    image = keras.Input(SHAPE)
    biased = keras.layers.Conv2D(4, 3, padding="same", name="biased")
    model = keras.Model(image, keras.layers.BatchNormalization()(biased(image)))

    def step(x: np.ndarray) -> str:
        values = [variable.value for variable in model.trainable_variables]

        def outputs(values: list) -> Any:
            return model.stateless_call(values, model.non_trainable_variables, x, training=True)[0].sum()

        return str(jax.jit(outputs).lower(values).as_text()).split("func.func private")[0]

    images = np.zeros((2, *SHAPE), "float32")
    added = f"stablehlo.add %[0-9]+, %[0-9]+ : tensor<2x{SHAPE[0]}x{SHAPE[1]}x4xf32>"
    stock = len(re.findall(added, step(images)))
    adapt_to_cpu(model)
    assert len(re.findall(added, step(images))) == stock - 1
    assert not in_training(model, images)[0][biased.bias.path].any()


def test_batch_norm_of_other_data_than_the_convolutions(rng: np.random.Generator) -> None:
    """Invariant: called alone, it normalises what it is given, not what the convolution gave last."""
    image = keras.Input(SHAPE)
    convolution, norm = keras.layers.Conv2D(5, 1), keras.layers.BatchNormalization()
    model = keras.Model(image, norm(convolution(image)))
    images = rng.normal(size=(4, *SHAPE)).astype("float32")
    stock = np.asarray(norm(images, training=True))
    adapt_to_cpu(model)
    convolution(images)
    np.testing.assert_allclose(norm(images, training=True), stock, rtol=1e-5, atol=1e-6)


def test_batch_norm_with_a_mask_is_that_of_keras(rng: np.random.Generator) -> None:
    """Reference: what is masked counts for nothing, in the output and in the running mean."""
    layer = keras.layers.BatchNormalization()
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layer(image))
    images = rng.normal(5, 2, (2, 4, 4, 3)).astype("float32")
    mask = np.array([[[True] * 4] * 4, [[False] * 4] * 4])
    stock = [np.asarray(layer(images, training=True, mask=mask)), np.asarray(layer.moving_mean)]
    layer.moving_mean.assign(np.zeros(3))
    layer.moving_variance.assign(np.ones(3))
    assert adapt_to_cpu(model) == 1
    np.testing.assert_array_equal(layer(images, training=True, mask=mask), stock[0])
    np.testing.assert_array_equal(layer.moving_mean, stock[1])


def test_other_layers_are_left_alone() -> None:
    """Invariant: larger kernels, groups, subclasses and other layers stay Keras' own."""

    class Mine(keras.layers.Conv2D):
        pass

    image = keras.Input((8, 8, 4))
    for layer in (
        keras.layers.Conv2D(4, 3),
        keras.layers.Conv2D(4, (1, 2)),
        keras.layers.Conv2D(4, 1, groups=2),
        Mine(4, 1),
        keras.layers.DepthwiseConv2D(1),
        keras.layers.Dense(3),
        keras.layers.BatchNormalization(axis=1),
        keras.layers.BatchNormalization(scale=False),
        keras.layers.BatchNormalization(center=False),
        keras.layers.BatchNormalization(renorm=True),
    ):
        assert adapt_to_cpu(keras.Model(image, layer(image))) == 0, layer


def test_what_is_not_linear_keeps_its_bias() -> None:
    """Invariant: behind an activation BatchNorm cannot take the bias away."""
    image = keras.Input(SHAPE)
    relu = keras.layers.Conv2D(4, 3, activation="relu")
    assert adapt_to_cpu(keras.Model(image, keras.layers.BatchNormalization()(relu(image)))) == 1
    assert "call" not in vars(relu)


def test_a_shared_batch_norm_is_that_of_keras(rng: np.random.Generator) -> None:
    """Reference: behind two convolutions each keeps its own numbers, and the running mean sees both."""
    image = keras.Input(SHAPE)
    shared, first, second = keras.layers.BatchNormalization(), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 3)
    model = keras.Model(image, [shared(first(image)), shared(second(image))])
    assert_as_keras(model, rng.normal(size=(4, *SHAPE)).astype("float32"), changed=2)


def test_a_network_without_a_graph_is_that_of_keras(rng: np.random.Generator) -> None:
    """Reference: nobody knows there what stands before a BatchNorm; its bias stays."""

    class Network(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = keras.layers.Conv2D(4, 1), keras.layers.BatchNormalization()

        def call(self, images: Any, training: bool = False) -> Any:
            return self.norm(self.convolution(images), training=training)

    model, images = Network(), rng.normal(size=(4, *SHAPE)).astype("float32")
    model(images)
    assert_as_keras(model, images, changed=2)


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: on a GPU Keras' own layers stay."""
    model = network()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert adapt_to_cpu(model) == 0
    assert products(model) == (0, 9)


@pytest.mark.parametrize("copied", ["saved", "cloned"])
def test_copies_are_stock_models(copied: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Invariant: configuration and file do not show the change; a copy computes in Keras' way and predicts the same."""
    model = network(norm=True)
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
    """Invariant: nothing of the change is left, in the layers and in the program."""
    model = network(norm=True)
    stock = [set(vars(layer)) for layer in model.layers]
    adapt_to_cpu(model)
    restore(model)
    assert [set(vars(layer)) for layer in model.layers] == stock
    assert products(model) == (0, 9)


def test_half_precision_keeps_its_dtype(rng: np.random.Generator) -> None:
    """Invariant: under mixed bfloat16 every layer returns bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network(norm=True)
    adapt_to_cpu(model)
    each = keras.Model(model.input, [layer.output for layer in model.layers[1:]])
    for training in (True, False):
        outputs = each(rng.normal(size=(2, *SHAPE)).astype("float32"), training=training)
        assert {str(output.dtype) for output in outputs} == {"bfloat16"}
