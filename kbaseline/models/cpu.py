"""Faster layers on a CPU: same weights, same saved file, outputs equal up to rounding.

1x1 convolutions become matrix products: XLA's CPU backend computes the kernel gradient of a convolution many times
slower than that of a product. Larger kernels gain nothing. Dense layers on images become products of two matrices,
depthwise convolutions sums of shifted products, other grouped ones a convolution for each group. BatchNorm in training
has its gradient in closed form, and that of a swish computes its sigmoid anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import keras
from keras import layers, ops

from kbaseline.models.backbones import leaves
from kbaseline.models.batchnorm import is_plain, normalize, uses_the_batch
from kbaseline.models.depthwise import depthwise
from kbaseline.models.materialise import materialised
from kbaseline.models.product import product
from kbaseline.models.swish import swish

_IMAGE_CHANNELS = 4
"""Most channels of an image."""

_REPLACED = ("convolution_op", "call")
"""The methods of layers that are replaced, on the object."""


def adapt_to_cpu(model: keras.Model) -> int:
    """Computes convolutions, dense layers and BatchNorm faster on a CPU. Compile the model afterwards.

    Weights, configuration and the saved file do not change; a model loaded from the file is a plain Keras model. The
    outputs of every layer are equal up to rounding.

    Args:
        model: any built Keras model; its `Conv2D`, `DepthwiseConv2D`, `SeparableConv2D`, `Dense`, `BatchNormalization`
            and `Activation("swish")` layers are changed, subclasses of them are not.

    Returns:
        The number of layers changed; 0 on any other kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    found = [(layer, replacement) for layer in leaves(model) if (replacement := _replacement(layer))]
    for layer, (method, compute) in found:
        setattr(layer, method, partial(compute, layer))
    return len(found)


def restore(model: keras.Model) -> None:
    """Restores Keras' own computation in all layers. Compile the model afterwards."""
    for layer in leaves(model):
        for method in _REPLACED:
            vars(layer).pop(method, None)


def is_adapted(layer: keras.layers.Layer) -> bool:
    """Whether `adapt_to_cpu` changed a layer."""
    return any(method in vars(layer) for method in _REPLACED)


def _replacement(layer: keras.layers.Layer) -> tuple[str, Callable[..., Any]] | None:
    """The method to replace, and what computes it instead; None for a layer that stays as it is."""
    # By type: subclasses may compute something else.
    if is_plain(layer):
        return "call", _batchnorm_layer
    if type(layer) is layers.Activation and layer.activation is keras.activations.silu:
        return "call", _swish_layer
    if type(layer) is layers.Dense:
        return "call", _dense_layer
    if getattr(layer, "data_format", None) != "channels_last":
        return None
    if type(layer) is layers.DepthwiseConv2D:
        return "call", _depthwise_layer
    if type(layer) is layers.SeparableConv2D:
        return "call", _separable_layer
    if type(layer) is not layers.Conv2D:
        return None
    if layer.groups > 1:
        return "convolution_op", _grouped_convolution
    if tuple(layer.kernel_size) == (1, 1):
        return "convolution_op", _pointwise_convolution
    return ("convolution_op", _first_convolution) if layer.kernel.shape[2] <= _IMAGE_CHANNELS else None


def _pointwise_convolution(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def _first_convolution(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """A convolution of images, which XLA would draw and resize anew for the gradient of the kernel."""
    kernel = ops.convert_to_tensor(kernel)
    images = materialised(ops.cast(inputs, kernel.dtype), kernel)
    return type(layer).convolution_op(layer, images, kernel)


def _grouped_convolution(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """One convolution for each group: XLA's own gradient of a grouped one takes a hundred times as long."""
    rows, columns, channels, filters = kernel.shape
    if channels == 1:
        return _depthwise(layer, inputs, ops.reshape(kernel, (rows, columns, layer.groups, filters // layer.groups)))
    convolve = _pointwise_convolution if (rows, columns) == (1, 1) else type(layer).convolution_op
    parts = zip(*(ops.split(whole, layer.groups, axis=-1) for whole in (inputs, kernel)), strict=True)
    return ops.concatenate([convolve(layer, part, weights) for part, weights in parts], axis=-1)


def _depthwise_layer(layer: layers.DepthwiseConv2D, inputs: Any) -> Any:
    return _finished(layer, _depthwise(layer, inputs, layer.kernel))


def _separable_layer(layer: layers.SeparableConv2D, inputs: Any) -> Any:
    between = _depthwise(layer, inputs, layer.depthwise_kernel)
    return _finished(layer, pointwise(between, ops.convert_to_tensor(layer.pointwise_kernel), (1, 1)))


def _depthwise(layer: Any, inputs: Any, kernel: Any) -> Any:
    kernel = ops.convert_to_tensor(kernel)
    return depthwise(
        ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides), layer.padding, tuple(layer.dilation_rate)
    )


def _batchnorm_layer(
    layer: layers.BatchNormalization, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    if not uses_the_batch(layer, training, mask):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    return normalize(layer, inputs, one_pass=False)


def _swish_layer(layer: layers.Activation, inputs: Any) -> Any:
    return swish(inputs)


def _dense_layer(layer: layers.Dense, inputs: Any, training: bool | None = None) -> Any:
    """Reshaped to matrices for the same reason as `pointwise`."""
    outputs = product(ops.reshape(inputs, (-1, inputs.shape[-1])), ops.convert_to_tensor(layer.kernel))
    return _finished(layer, ops.reshape(outputs, (-1, *inputs.shape[1:-1], outputs.shape[-1])))


def _finished(layer: Any, outputs: Any) -> Any:
    """Adds the bias and applies the activation."""
    if layer.use_bias:
        outputs = ops.add(outputs, ops.convert_to_tensor(layer.bias))
    return outputs if layer.activation is None else layer.activation(outputs)


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
    outputs = product(ops.reshape(seen, (-1, seen.shape[-1])), kernel[0, 0])
    return ops.reshape(outputs, (-1, *seen.shape[1:-1], outputs.shape[-1]))
