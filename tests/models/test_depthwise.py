"""Depthwise and grouped convolutions, dense layers of images on a CPU: Keras' outputs and gradients up to rounding."""

import jax
import keras
import numpy as np
import pytest

from kbaseline.models.cpu import adapt_to_cpu, restore

SIDES = (21, 7)  # 21 rows are added up two and two, one left over.
CHANNELS = 4

LAYERS = {
    "3x3": lambda: keras.layers.DepthwiseConv2D(3, padding="same"),
    "3x3 valid, activation, no bias": lambda: keras.layers.DepthwiseConv2D(3, activation="relu6", use_bias=False),
    "3x3 stride 2": lambda: keras.layers.DepthwiseConv2D(3, 2, "same"),
    "3x3 stride 2 valid, multiplier": lambda: keras.layers.DepthwiseConv2D(3, 2, "valid", depth_multiplier=2),
    "3x3 dilated, multiplier": lambda: keras.layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, dilation_rate=2
    ),
    "3x3 dilated by rows, valid": lambda: keras.layers.DepthwiseConv2D(3, dilation_rate=(3, 1)),
    "3x3 stride 3 of a kernel smaller than it": lambda: keras.layers.DepthwiseConv2D(2, 3, "same"),
    "1x3": lambda: keras.layers.DepthwiseConv2D((1, 3), padding="same"),
    "5x5": lambda: keras.layers.DepthwiseConv2D(5, padding="same", activation="tanh"),
    "5x5 stride 2": lambda: keras.layers.DepthwiseConv2D(5, 2, "same"),
    "7x7": lambda: keras.layers.DepthwiseConv2D(7, padding="same"),
    "7x7 valid": lambda: keras.layers.DepthwiseConv2D(7),
    "separable": lambda: keras.layers.SeparableConv2D(4, 3, 2, "same", activation="relu"),
    "separable, multiplier": lambda: keras.layers.SeparableConv2D(4, 3, depth_multiplier=2, use_bias=False),
    "grouped": lambda: keras.layers.Conv2D(CHANNELS, 7, padding="same", groups=CHANNELS),
    "grouped, multiplier, stride 2": lambda: keras.layers.Conv2D(
        2 * CHANNELS, (3, 5), 2, "same", groups=CHANNELS, activation="tanh"
    ),
    "two groups": lambda: keras.layers.Conv2D(6, 3, padding="same", groups=2, activation="tanh"),
    "two groups, stride 2 valid": lambda: keras.layers.Conv2D(6, (3, 2), 2, groups=2, use_bias=False),
    "two groups, dilated": lambda: keras.layers.Conv2D(2, 3, padding="same", groups=2, dilation_rate=2),
    "two groups, 1x1 stride 2": lambda: keras.layers.Conv2D(6, 1, 2, groups=2),
    "dense, of images": lambda: keras.layers.Dense(4, activation="tanh"),
}


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """All layers side by side, so that each pass is one program."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*SIDES, CHANNELS))
    outputs = {}
    for name, build in LAYERS.items():
        layer = build()
        outputs[name] = layer(image)
        if layer.use_bias:
            layer.bias.assign(np.linspace(-1, 1, layer.bias.shape[0]))
    return keras.Model(image, outputs)


def passes(model: keras.Model, images: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """Output, gradient of every weight and gradient of the image, by layer."""

    def run(x: jax.Array, kernels: dict, name: str) -> jax.Array:
        layer = model.get_layer(names[name])
        return layer.stateless_call(kernels, [], x)[0]

    @jax.jit
    def everything(x: jax.Array) -> dict:
        found = {}
        for name in LAYERS:
            layer = model.get_layer(names[name])
            values = [variable.value for variable in layer.trainable_variables]
            output, backward = jax.vjp(lambda x, v, n=name: run(x, v, n), x, values)
            weights = np.random.default_rng(1).normal(size=output.shape).astype(output.dtype)
            found[name] = output, *jax.tree.leaves(backward(weights))
        return found

    names = {name: layer.name for name, layer in zip(LAYERS, model.layers[1:], strict=True)}
    return jax.tree.map(np.asarray, everything(images))


def test_outputs_and_gradients_are_those_of_keras(network: keras.Model, rng: np.random.Generator) -> None:
    """Reference: strides, paddings, dilations, multipliers, biases and activations, forward and backward."""
    images = rng.normal(size=(5, *SIDES, CHANNELS)).astype("float32")
    stock = passes(network, images)
    assert adapt_to_cpu(network) == len(LAYERS)
    ours = passes(network, images)
    restore(network)
    for name, expected in stock.items():
        assert len(ours[name]) == len(expected) >= 3
        for array, reference in zip(ours[name], expected, strict=True):
            size = np.abs(reference).max()
            assert size > 1e-2
            np.testing.assert_allclose(array, reference, rtol=1e-4, atol=2e-6 * size, err_msg=name)
