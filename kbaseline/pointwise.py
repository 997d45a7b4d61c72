"""On a CPU, the kernel gradient of 1x1 convolutions as one matrix product: same network, same numbers, faster.

XLA's CPU backend computes that gradient as a convolution, several times slower than the product (benchmarks/cpu.py
measures both side by side). Its forward pass and its input gradient are good and stay, and so do other kernel sizes,
whose gradient gains nothing as products.
"""

from functools import partial
from typing import Any

import jax
import keras
from jax import lax

from kbaseline.backbones import leaves

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def use_matrix_products(model: keras.Model) -> int:
    """Makes a model's 1x1 convolutions compute their kernel gradients as matrix products, if JAX runs on a CPU.

    Weights, configuration and the saved file stay those of Keras' own layers; a loaded copy is a stock model. A frozen
    layer computes as Keras does. Compile the model afterwards.

    Args:
        model: any built Keras model; its `Conv2D` layers with 1x1 kernels, one group, channels last, are changed.

    Returns:
        How many layers were changed; 0 on another kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    changed = [layer for layer in leaves(model) if _is_pointwise(layer)]
    for layer in changed:
        layer.convolution_op = partial(_convolve, layer)
    return len(changed)


def _is_pointwise(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and tuple(layer.kernel_size) == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def _convolve(layer: keras.layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    if not layer.trainable:
        # No kernel gradient is asked for, and XLA makes more of its own convolution.
        return type(layer).convolution_op(layer, inputs, kernel)
    kernel = keras.ops.convert_to_tensor(kernel)
    return pointwise(keras.ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """A 1x1 convolution.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(1, 1, in_channels, out_channels)`, of the same dtype.
        strides: of rows and columns, in pixels.

    Returns:
        `(batch, ceil(height / strides[0]), ceil(width / strides[1]), out_channels)`.
    """
    return lax.conv_general_dilated(inputs, kernel, strides, "VALID", dimension_numbers=_LAYOUT)


def _forward(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> tuple[jax.Array, tuple[Any, Any]]:
    # Without it XLA computes the inputs anew for the kernel gradient, back through every addition of a ResNet stage.
    inputs = lax.optimization_barrier(inputs)
    return pointwise(inputs, kernel, strides), (inputs, kernel)


def _backward(strides: tuple[int, int], kept: tuple[Any, Any], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = kept
    plain = partial(
        lax.conv_general_dilated, window_strides=strides, padding="VALID", dimension_numbers=_LAYOUT, rhs=kernel
    )
    (to_inputs,) = jax.vjp(lambda x: plain(x), inputs)[1](gradient)
    seen = inputs[:, :: strides[0], :: strides[1]]
    # As matrices: a product over three axes would first copy both with their axes turned.
    rows, columns = seen.reshape(-1, seen.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return to_inputs, (rows.T @ columns).reshape(kernel.shape)


pointwise.defvjp(_forward, _backward)
