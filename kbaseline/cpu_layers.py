"""On a CPU, layers computed in the ways it is fastest at: same network, same numbers.

Keras asks XLA for what it wants, and XLA's CPU backend does four things of a ResNet several times slower than the
machine can: 1x1 convolutions, the kernel gradients of 3x3 ones on large feature maps, the gradient of max pooling, and
that of BatchNorm (benchmarks/cpu.py measures; docs/performance.md tells what was tried). Weights, configuration and the
saved file stay those of Keras' own layers; a loaded copy is a stock model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import layers, ops

from kbaseline.backbones import leaves

_LARGE = 14
"""Side in pixels from which the kernel gradient of a 3x3 convolution is faster as a product."""

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


def _adapt(layer: keras.layers.Layer) -> bool:
    # Subclasses may compute something else.
    if type(layer) is layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last":
        if tuple(layer.kernel_size) == (1, 1):
            layer.convolution_op = partial(_pointwise, layer)
            return True
        if tuple(layer.kernel_size) == (3, 3) and (*layer.strides, *layer.dilation_rate) == (1, 1, 1, 1):
            layer.convolution_op = partial(_convolve_3x3, layer)
            return True
    elif type(layer) is layers.MaxPooling2D and layer.data_format == "channels_last":
        if layer.padding == "valid" and layer.pool_size[0] * layer.pool_size[1] <= _TAPS:
            layer.call = partial(_max_pool, layer)
            return True
    elif type(layer) is layers.BatchNormalization and layer.axis in (-1, 3):
        if layer.center and layer.scale and not layer.renorm and not layer.synchronized:
            layer.call = partial(_normalize, layer)
            return True
    return False


def _pointwise(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """`Conv2D.convolution_op`."""
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def _convolve_3x3(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """`Conv2D.convolution_op`."""
    kernel = ops.convert_to_tensor(kernel)
    inputs = ops.cast(inputs, kernel.dtype)
    _, _, channels, filters = kernel.shape
    if min(inputs.shape[1:3]) < _LARGE or filters < channels:
        return _convolution(inputs, kernel, layer.padding)
    return convolve(inputs, kernel, layer.padding)


def _max_pool(layer: layers.MaxPooling2D, inputs: Any) -> Any:
    """`MaxPooling2D.call`."""
    return max_pool(ops.convert_to_tensor(inputs), tuple(layer.pool_size), tuple(layer.strides))


def _normalize(layer: layers.BatchNormalization, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    """`BatchNormalization.call`."""
    if not (training and layer.trainable) or mask is not None:
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


def _convolution(inputs: Any, kernel: Any, padding: str) -> Any:
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(inputs: Any, kernel: Any, padding: str) -> Any:
    """A convolution with strides of 1 whose kernel gradient is one matrix product.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(rows, columns, in_channels, out_channels)`, of the same dtype.
        padding: `"same"` or `"valid"`.

    Returns:
        `(batch, out_height, out_width, out_channels)`.
    """
    return _convolution(inputs, kernel, padding)


def _convolve_forward(inputs: Any, kernel: Any, padding: str) -> tuple[Any, tuple[Any, Any]]:
    return _convolution(inputs, kernel, padding), (inputs, kernel)


def _convolve_backward(padding: str, kept: tuple[Any, Any], gradient: Any) -> tuple[Any, Any]:
    inputs, kernel = kept
    rows, columns, channels, filters = kernel.shape
    (to_inputs,) = jax.vjp(lambda x: _convolution(x, kernel, padding), inputs)[1](gradient)
    if padding == "same":
        borders = [((size - 1) // 2, size // 2) for size in (rows, columns)]
        inputs = jnp.pad(inputs, ((0, 0), *borders, (0, 0)))
    width = gradient.shape[2]
    # Moving the inputs along rows and the gradient along columns, each image of them becomes a few, not nine.
    across = jnp.concatenate([inputs[:, :, i : i + width] for i in range(columns)], axis=-1)
    down = jnp.concatenate(
        [jnp.pad(gradient, ((0, 0), (i, rows - 1 - i), (0, 0), (0, 0))) for i in range(rows)], axis=-1
    )
    product = across.reshape(-1, across.shape[-1]).T @ down.reshape(-1, down.shape[-1])
    return to_inputs, product.reshape(columns, channels, rows, filters).transpose(2, 0, 1, 3)


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
    ends = [(side - window) // stride * stride + 1 for side, window, stride in zip(inputs.shape[1:3], size, strides)]
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
