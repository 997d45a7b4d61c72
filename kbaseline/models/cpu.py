"""Computes 1x1 convolutions as matrix products on a CPU: same weights, same saved file, outputs equal up to rounding.

XLA's CPU backend computes the kernel gradient of a 1x1 convolution many times slower than that of a matrix product if
it uses YNNPACK (`devices.xla.start_jax`). Larger kernels gain nothing.
"""

from functools import partial
from typing import Any

import jax
import keras
from keras import layers, ops

from kbaseline.models.backbones import leaves


def adapt_to_cpu(model: keras.Model) -> int:
    """Computes a model's 1x1 convolutions as matrix products if JAX runs on a CPU. Compile the model afterwards.

    Weights, configuration and the saved file do not change; a model loaded from the file is a plain Keras model. The
    outputs of every layer are equal up to rounding.

    Args:
        model: any built Keras model; its `Conv2D` layers are changed, subclasses of `Conv2D` are not.

    Returns:
        The number of layers changed; 0 on any other kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    pointwise_layers = [layer for layer in leaves(model) if _is_pointwise(layer)]
    for layer in pointwise_layers:
        layer.convolution_op = partial(_convolve, layer)
    return len(pointwise_layers)


def restore(model: keras.Model) -> None:
    """Restores Keras' own convolution in all layers. Compile the model afterwards."""
    for layer in leaves(model):
        vars(layer).pop("convolution_op", None)


def _is_pointwise(layer: keras.layers.Layer) -> bool:
    # Subclasses may compute something else.
    return (
        type(layer) is layers.Conv2D
        and tuple(layer.kernel_size) == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def _convolve(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """Replaces `layer.convolution_op`."""
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def pointwise(inputs: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """A 1x1 convolution, computed as a matrix product.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(1, 1, in_channels, out_channels)`, of the same dtype.
        strides: along rows and columns, in pixels.

    Returns:
        `(batch, ceil(height / strides[0]), ceil(width / strides[1]), out_channels)`.
    """
    # Without the barrier XLA recomputes the inputs for the kernel gradient, through all additions of a ResNet stage.
    inputs = jax.lax.optimization_barrier(inputs)
    seen = inputs[:, :: strides[0], :: strides[1]]
    # Reshaped to matrices: with three axes, the kernel gradient would first copy both factors transposed.
    outputs = ops.matmul(ops.reshape(seen, (-1, seen.shape[-1])), kernel[0, 0])
    return ops.reshape(outputs, (-1, *seen.shape[1:-1], outputs.shape[-1]))
