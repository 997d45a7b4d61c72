"""On a CPU, 1x1 convolutions as matrix products: same network, same numbers, same saved file.

XLA's CPU backend computes the gradient of their kernels, as convolutions, many times slower where YNNPACK does it
(`devices.xla.prefer_eigen_convolutions`). Larger kernels gain nothing as products.
"""

from functools import partial
from typing import Any

import jax
import keras
from keras import layers, ops

from kbaseline.models.backbones import leaves


def adapt_to_cpu(model: keras.Model) -> int:
    """Has a model's 1x1 convolutions computed as matrix products, if JAX runs on a CPU. Compile the model afterwards.

    Weights, configuration and the saved file stay those of Keras' own layers; a loaded copy is a stock model. Every
    layer's outputs stay the same too, up to rounding.

    Args:
        model: any built Keras model; `Conv2D` layers of it are changed, subclasses are not.

    Returns:
        How many layers were changed; 0 on another kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    pointwise_layers = [layer for layer in leaves(model) if _is_pointwise(layer)]
    for layer in pointwise_layers:
        layer.convolution_op = partial(_convolve, layer)
    return len(pointwise_layers)


def restore(model: keras.Model) -> None:
    """Has the layers computed in Keras' own way again. Compile the model afterwards."""
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
    """What the layer's own method of that name computes."""
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def pointwise(inputs: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """A 1x1 convolution.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(1, 1, in_channels, out_channels)`, of the same dtype.
        strides: of rows and columns, in pixels.

    Returns:
        `(batch, ceil(height / strides[0]), ceil(width / strides[1]), out_channels)`.
    """
    # Without it XLA computes the inputs anew for the kernel gradient, back through every addition of a ResNet stage.
    inputs = jax.lax.optimization_barrier(inputs)
    seen = inputs[:, :: strides[0], :: strides[1]]
    # As matrices: the kernel gradient, a product over three axes, would first copy both with their axes turned.
    outputs = ops.matmul(ops.reshape(seen, (-1, seen.shape[-1])), kernel[0, 0])
    return ops.reshape(outputs, (-1, *seen.shape[1:-1], outputs.shape[-1]))
