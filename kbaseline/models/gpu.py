"""Faster layers on a GPU, off until they are measured on one: same weights, same saved file, equal up to rounding.

By the count of the compiled program (docs/gpu.md), a training step with them has fewer kernels and moves fewer bytes.
BatchNorm's gradient is in closed form and its variance from one pass; a bias that BatchNorm subtracts again is not
added; max pooling keeps where each maximum was, so that its gradient is no scatter, which would add in any order.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import layers, ops

from kbaseline.errors import InputError
from kbaseline.models.backbones import leaves

SWITCH = "KBASELINE_GPU_LAYERS"
"""Environment variable: 1 turns these layers on, 0 leaves them off, as without it."""

_MOST_PLACES = 16
"""Places in a pooling window above which Keras' own pooling stays: each is one more operand of a kernel."""


def is_switched_on() -> bool:
    """Whether the environment asks for these layers.

    Raises:
        InputError: its variable is neither 0 nor 1.
    """
    value = os.environ.get(SWITCH) or "0"
    if value not in ("0", "1"):
        raise InputError(f"{SWITCH}: must be 0 or 1; got {value!r}. Unset it for 0.")
    return value == "1"


def adapt_to_gpu(model: keras.Model) -> int:
    """Computes training BatchNorm and max pooling faster on a GPU, if switched on. Compile the model afterwards.

    Weights, configuration and the saved file do not change; a model loaded from the file is a plain Keras model.
    `kbaseline.models.cpu.restore` undoes it.

    Args:
        model: any built Keras model; subclasses of the layers are not changed.

    Returns:
        The number of layers changed; 0 on any other kind of device, or if `SWITCH` is not 1.

    Raises:
        InputError: `SWITCH` is neither 0 nor 1.
    """
    return replace_layers(model) if is_switched_on() and jax.default_backend() == "gpu" else 0


def replace_layers(model: keras.Model) -> int:
    """What `adapt_to_gpu` does where it does anything, on any device."""
    changed = set()
    for layer in leaves(model):
        if _is_plain_batchnorm(layer):
            biased = _Biased.before(layer)
            layer.call = partial(_normalize, layer, biased)
            changed.add(layer)
            if biased:
                biased.layer.call = biased
                changed.add(biased.layer)
        elif _is_small_pool(layer):
            layer.call = partial(_pool, layer)
            changed.add(layer)
    return len(changed)


def _is_plain_batchnorm(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is layers.BatchNormalization  # subclasses may compute something else
        and layer.built
        and layer.axis in (-1, layer.input_spec.ndim - 1)
        and layer.center
        and layer.scale
        and not (layer.renorm or layer.synchronized)
    )


def _is_small_pool(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is layers.MaxPooling2D
        and layer.data_format == "channels_last"
        and math.prod(layer.pool_size) <= _MOST_PLACES
    )


@dataclass
class _Biased:
    """A convolution with a bias before a BatchNorm: its last outputs, and the same without the bias.

    What nobody reads of both is never computed.
    """

    layer: layers.Conv2D
    last: tuple[Any, Any] | None = None

    @classmethod
    def before(cls, layer: layers.BatchNormalization) -> "_Biased | None":
        """The convolution that a layer normalises, if it is one."""
        operation: Any = getattr(getattr(layer, "input", None), "_keras_history", (None,))[0]
        if type(operation) is not layers.Conv2D or operation.data_format != "channels_last":
            return None
        return cls(operation) if operation.use_bias and operation.activation is keras.activations.linear else None

    def __call__(self, inputs: Any) -> Any:
        unbiased = self.layer.convolution_op(inputs, self.layer.kernel)
        outputs = ops.add(unbiased, ops.convert_to_tensor(self.layer.bias))
        self.last = outputs, unbiased
        return outputs

    def take(self, outputs: Any) -> Any:
        """The outputs without the bias, once; None if these are not the layer's last."""
        last, self.last = self.last, None
        return last[1] if last and last[0] is outputs else None


def _normalize(
    layer: layers.BatchNormalization, biased: _Biased | None, inputs: Any, training: Any = None, mask: Any = None
) -> Any:
    unbiased = biased.take(inputs) if biased else None
    if mask is not None or not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    gamma, beta, moving_mean, moving_variance = (
        ops.cast(variable, dtype) for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    bias = jnp.zeros_like(gamma)
    if biased and unbiased is not None:
        inputs, bias = unbiased, ops.cast(biased.layer.bias, dtype)
    outputs, mean, variance = batch_normalize(inputs, gamma, beta, moving_mean - bias, layer.epsilon)
    for moving, now, statistic in (
        (layer.moving_mean, moving_mean, mean + bias),
        (layer.moving_variance, moving_variance, variance),
    ):
        moving.assign(now * layer.momentum + jax.lax.stop_gradient(statistic) * (1.0 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_normalize(inputs: Any, gamma: Any, beta: Any, about: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """BatchNorm of a batch, its gradient in closed form (https://arxiv.org/abs/1502.03167).

    The variance is a mean of squares less a squared mean, in one pass, at least 0. It is exact where the mean is near
    `about`; far from it, it loses digits as (mean - about)² grows beside it.

    Args:
        inputs: float `(..., channels)`.
        gamma, beta: scale and offset, float32 `(channels,)`.
        about: what the mean is expected to be, float32 `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised batch in the inputs' dtype; its mean and variance, float32 `(channels,)`, through which no
        gradient flows.
    """
    return _forward(inputs, gamma, beta, about, epsilon)[0]


def _forward(inputs: Any, gamma: Any, beta: Any, about: Any, epsilon: float) -> tuple[tuple[Any, Any, Any], Any]:
    axes, count = tuple(range(inputs.ndim - 1)), inputs.size // inputs.shape[-1]
    x = inputs.astype(gamma.dtype)
    shifted = x - about
    offset = jnp.sum(shifted, axes) / count
    mean = about + offset
    variance = jnp.maximum(jnp.sum(shifted * shifted, axes) / count - offset * offset, 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    outputs = (x * (inverse * gamma) + (beta - mean * inverse * gamma)).astype(inputs.dtype)
    return (outputs, mean, variance), (inputs, gamma, mean, inverse)


def _backward(_: float, kept: Any, gradients: Any) -> tuple[Any, Any, Any, Any]:
    inputs, gamma, mean, inverse = kept
    axes, count = tuple(range(inputs.ndim - 1)), inputs.size // inputs.shape[-1]
    gradient, centered = gradients[0].astype(gamma.dtype), inputs.astype(gamma.dtype) - mean
    to_beta = jnp.sum(gradient, axes)
    to_gamma = jnp.sum(gradient * centered, axes) * inverse
    to_inputs = gamma * inverse * (gradient - to_beta / count - centered * (inverse * to_gamma / count))
    return to_inputs.astype(inputs.dtype), to_gamma, to_beta, jnp.zeros_like(mean)


batch_normalize.defvjp(_forward, _backward)


def _pool(layer: layers.MaxPooling2D, inputs: Any) -> Any:
    sizes, steps = tuple(layer.pool_size), tuple(layer.strides)
    if layer.padding == "same":
        outside = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(inputs.shape[1:3], sizes, steps, strict=True)
        ]
        low = jnp.array(-jnp.inf, inputs.dtype)
        inputs = jax.lax.pad(inputs, low, ((0, 0, 0), *((n // 2, n - n // 2, 0) for n in outside), (0, 0, 0)))
    return max_pool(inputs, sizes, steps)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(inputs: Any, sizes: tuple[int, int], steps: tuple[int, int]) -> Any:
    """Max pooling without padding; the gradient goes to the first maximum of each window.

    Args:
        inputs: float `(batch, height, width, channels)`.
        sizes, steps: rows and columns of a window, and between windows, in pixels.

    Returns:
        `(batch, rows, columns, channels)`, of the inputs' dtype.
    """
    return _highest(inputs, sizes, steps)[0]


def _highest(inputs: Any, sizes: tuple[int, int], steps: tuple[int, int]) -> tuple[Any, Any]:
    """The maxima, and the number of the place in its window where each was, uint8."""
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(inputs.shape[1:3], sizes, steps, strict=True))
    best: Any = None
    place: Any = None
    for number in range(math.prod(sizes)):
        row, column = divmod(number, sizes[1])
        value = inputs[
            :,
            row : row + steps[0] * (rows - 1) + 1 : steps[0],
            column : column + steps[1] * (columns - 1) + 1 : steps[1],
        ]
        if best is None:
            best, place = value, jnp.zeros(value.shape, jnp.uint8)
            continue
        higher = (value > best) | (value != value)  # what is not a number stays so, as in XLA's pooling
        best, place = jnp.where(higher, value, best), jnp.where(higher, jnp.uint8(number), place)
    return best, place


def _pool_forward(inputs: Any, sizes: tuple[int, int], steps: tuple[int, int]) -> tuple[Any, Any]:
    best, place = _highest(inputs, sizes, steps)
    # Its shape alone is needed: an array of no bytes carries it.
    return best, (place, jnp.zeros((0, *inputs.shape[1:3])))


def _pool_backward(sizes: tuple[int, int], steps: tuple[int, int], kept: Any, gradient: Any) -> tuple[Any]:
    place, inputs = kept
    zero = jnp.zeros((), gradient.dtype)
    total: Any = None
    for number in range(math.prod(sizes)):
        first = divmod(number, sizes[1])
        spread = [
            (start, side - start - (step * (windows - 1) + 1), step - 1)
            for start, side, step, windows in zip(first, inputs.shape[1:], steps, gradient.shape[1:3], strict=True)
        ]
        part = jnp.where(place == number, gradient, zero)
        part = jax.lax.pad(part, zero, ((0, 0, 0), *spread, (0, 0, 0)))
        total = part if total is None else total + part
    return (total,)


max_pool.defvjp(_pool_forward, _pool_backward)
