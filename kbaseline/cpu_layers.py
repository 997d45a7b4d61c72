"""On a CPU, layers computed in the ways it is fastest at: same network, same numbers.

XLA's CPU backend does four things of a ResNet several times slower than the machine can: 1x1 convolutions, the kernel
gradients of others on large feature maps, and the gradients of max pooling and BatchNorm (docs/performance.md).
Weights, configuration and saved file stay those of Keras' own layers; a loaded copy is a stock model.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import layers, ops

from kbaseline.backbones import leaves

_LARGE = 14
"""Side in pixels from which kernel gradients are faster as products, if there are no fewer filters than channels."""

_TAPS = 9
"""The most places a pooling window may have; each is a pass over the image."""


def adapt_to_cpu(model: keras.Model) -> int:
    """Makes a model's layers compute the way a CPU is fastest at, if JAX runs on one. Compile the model afterwards.

    Args:
        model: any built Keras model; plain `Conv2D`, `MaxPooling2D` and `BatchNormalization` layers of it are changed.

    Returns:
        How many layers were changed; 0 on another kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    return sum(_adapt(layer) for layer in leaves(model))


def restore(model: keras.Model) -> None:
    """Gives all layers of a model their own ways back. Compile the model afterwards."""
    for layer in leaves(model):
        for name in ("call", "convolution_op"):
            if isinstance(vars(layer).get(name), partial):
                delattr(layer, name)


def _adapt(layer: keras.layers.Layer) -> bool:
    # Subclasses may compute something else.
    kind, last = type(layer), getattr(layer, "data_format", None) == "channels_last"
    if kind is layers.Conv2D and last and layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1):
        way = _pointwise if tuple(layer.kernel_size) == (1, 1) else _convolve
        layer.convolution_op = partial(way, layer)
    elif kind is layers.MaxPooling2D and last and layer.padding == "valid" and math.prod(layer.pool_size) <= _TAPS:
        layer.call = partial(_max_pool, layer)
    elif kind is layers.BatchNormalization and _is_plain(layer):
        layer.call = partial(_normalize, layer)
    else:
        return False
    return True


def _is_plain(layer: layers.BatchNormalization) -> bool:
    return layer.axis in (-1, 3) and layer.center and layer.scale and not (layer.renorm or layer.synchronized)


def _pointwise(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """`Conv2D.convolution_op`."""
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def _convolve(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """`Conv2D.convolution_op`."""
    kernel, strides = ops.convert_to_tensor(kernel), tuple(layer.strides)
    inputs = ops.cast(inputs, kernel.dtype)
    channels, filters = kernel.shape[2:]
    compute = convolve if channels <= filters and min(inputs.shape[1:3]) >= _LARGE else _convolution
    return compute(inputs, kernel, strides, layer.padding)


def _max_pool(layer: layers.MaxPooling2D, inputs: Any) -> Any:
    """`MaxPooling2D.call`."""
    return max_pool(ops.convert_to_tensor(inputs), tuple(layer.pool_size), tuple(layer.strides))


def _normalize(layer: layers.BatchNormalization, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    """`BatchNormalization.call`."""
    if not (training and layer.trainable) or mask is not None or len(inputs.shape) != 4:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    # In half precision sums over a batch would be far off.
    inputs = ops.cast(inputs, "float32")
    outputs, *statistics = batch_normalize(inputs, layer.gamma.value, layer.beta.value, layer.epsilon)
    for moving, seen in zip((layer.moving_mean, layer.moving_variance), statistics, strict=True):
        moving.assign(moving * layer.momentum + jax.lax.stop_gradient(seen) * (1 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


def pointwise(inputs: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """A 1x1 convolution, as the matrix product it is, forward and backward.

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


def _convolution(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    """A convolution whose kernel gradient is one matrix product.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(rows, columns, in_channels, out_channels)`, of the same dtype.
        strides: of rows and columns, in pixels.
        padding: `"same"` or `"valid"`.

    Returns:
        `(batch, out_height, out_width, out_channels)`.
    """
    return _convolution(inputs, kernel, strides, padding)


def _convolve_forward(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> tuple[Any, tuple[Any, Any]]:
    return _convolution(inputs, kernel, strides, padding), (inputs, kernel)


def _convolve_backward(strides: tuple[int, int], padding: str, kept: tuple[Any, Any], gradient: Any) -> tuple[Any, Any]:
    inputs, kernel = kept
    (to_inputs,) = jax.linear_transpose(lambda x: _convolution(x, kernel, strides, padding), inputs)(gradient)
    rows, columns, channels, filters = kernel.shape
    # Blocks of pixels that a stride passes over become channels: what is left is a convolution with strides of 1.
    down, across = -(-rows // strides[0]), -(-columns // strides[1])
    height, width = gradient.shape[1] + down - 1, gradient.shape[2] + across - 1
    borders = jax.lax.padtype_to_pads(inputs.shape[1:3], (rows, columns), strides, padding.upper())
    ends = (
        (low, blocks * stride - side - low, 0)
        for (low, _), blocks, stride, side in zip(borders, (height, width), strides, inputs.shape[1:3], strict=True)
    )
    inputs = jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    inputs = inputs.reshape(-1, height, strides[0], width, strides[1], channels).transpose(0, 1, 3, 2, 4, 5)
    inputs = inputs.reshape(-1, height, width, strides[0] * strides[1] * channels)
    # Inputs are moved along rows and gradients along columns: of each image a few copies, not one for each weight.
    moved = jnp.concatenate([inputs[:, :, i : i + gradient.shape[2]] for i in range(across)], axis=-1)
    borders = [((0, 0), (i, down - 1 - i), (0, 0), (0, 0)) for i in range(down)]
    against = jnp.concatenate([jnp.pad(gradient, border) for border in borders], axis=-1)
    product = moved.reshape(-1, moved.shape[-1]).T @ against.reshape(-1, against.shape[-1])
    product = product.reshape(across, *strides, channels, down, filters).transpose(4, 1, 0, 2, 3, 5)
    return to_inputs, product.reshape(down * strides[0], across * strides[1], channels, filters)[:rows, :columns]


convolve.defvjp(_convolve_forward, _convolve_backward)


def max_pool(inputs: Any, size: tuple[int, int], strides: tuple[int, int]) -> Any:
    """Maxima of windows that lie within the image; of equal ones the first gets the gradient, as XLA has it.

    Args:
        inputs: float `(batch, height, width, channels)`.
        size: of a window, in rows and columns.
        strides: from window to window.

    Returns:
        `(batch, out_height, out_width, channels)`.
    """
    ends = [(inputs.shape[1 + i] - size[i]) // strides[i] * strides[i] + 1 for i in range(2)]
    largest: Any = None
    for row in range(size[0]):
        for column in range(size[1]):
            seen = inputs[:, row : row + ends[0] : strides[0], column : column + ends[1] : strides[1]]
            # What is not a number must go on as such: training stops at it.
            larger = True if largest is None else (seen > largest) | jnp.isnan(seen)
            largest = seen if largest is None else jnp.where(larger, seen, largest)
    return largest


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalize(inputs: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """BatchNorm of a batch (https://arxiv.org/abs/1502.03167), its gradient in as few passes as there can be.

    Args:
        inputs: float32 `(batch, height, width, channels)`.
        scale, offset: gamma and beta, `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised batch; mean and variance, `(channels,)`, through which no gradient flows.
    """
    return _normalize_forward(inputs, scale, offset, epsilon)[0]


def _normalize_forward(inputs: Any, scale: Any, offset: Any, epsilon: float) -> tuple[tuple[Any, Any, Any], Any]:
    mean, variance = jnp.mean(inputs, (0, 1, 2)), jnp.var(inputs, (0, 1, 2))
    inverse = jax.lax.rsqrt(variance + epsilon)
    outputs = inputs * (inverse * scale) + (offset - mean * inverse * scale)
    return (outputs, mean, variance), (inputs, scale, mean, inverse)


def _normalize_backward(_: float, kept: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    inputs, scale, mean, inverse = kept
    gradient, centered = gradients[0], inputs - mean
    to_offset = jnp.sum(gradient, (0, 1, 2))
    to_scale = jnp.sum(gradient * centered, (0, 1, 2)) * inverse
    number = inputs.size // inputs.shape[-1]
    to_inputs = scale * inverse * (gradient - to_offset / number - centered * (inverse * to_scale / number))
    return to_inputs, to_scale, to_offset


batch_normalize.defvjp(_normalize_forward, _normalize_backward)
