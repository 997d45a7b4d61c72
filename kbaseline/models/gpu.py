"""Faster layers on a GPU, off until they are measured on one: same weights, same saved file, equal up to rounding.

By the count of the compiled program (docs/gpu.md) a training step has fewer kernels and moves fewer bytes. BatchNorm's
gradient is in closed form and its variance from one pass; a bias that BatchNorm subtracts again is not added; max
pooling keeps where each maximum was, so that its gradient is no scatter, which adds in any order.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import layers, ops

from kbaseline.errors import InputError
from kbaseline.models.backbones import leaves
from kbaseline.models.batchnorm import is_plain, normalize, uses_the_batch

SWITCH = "KBASELINE_GPU_LAYERS"
"""Environment variable; 1 turns these layers on."""
_MOST_PLACES = 16
"""Places of a pooling window above which Keras' own pooling stays: each is one more operand of a kernel."""


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

    Weights, configuration and the saved file do not change; `kbaseline.models.cpu.restore` undoes it.

    Args:
        model: any built Keras model; subclasses of the layers are not changed.

    Returns:
        The number of layers changed; 0 on any other kind of device.

    Raises:
        InputError: see `is_switched_on`.
    """
    return replace_layers(model) if is_switched_on() and jax.default_backend() == "gpu" else 0


def replace_layers(model: keras.Model) -> int:
    """What `adapt_to_gpu` does on a GPU, on any device."""
    changed = 0
    for layer in leaves(model):
        if is_plain(layer):
            biased = _Biased.before(layer)
            layer.call = partial(_normalize, layer, biased)
            if biased:
                biased.layer.call = biased
            changed += 2 if biased else 1
        elif _is_small_pool(layer):
            layer.call = partial(_pool, layer)
            changed += 1
    return changed


def _is_small_pool(layer: keras.layers.Layer) -> bool:
    plain = type(layer) is layers.MaxPooling2D and layer.data_format == "channels_last"
    return plain and math.prod(layer.pool_size) <= _MOST_PLACES


@dataclass
class _Biased:
    """A convolution with a bias before a BatchNorm: its last outputs, and those without. XLA drops what is unread."""

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
    unbiased, bias = biased.take(inputs) if biased else None, 0.0
    if not uses_the_batch(layer, training, mask):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    if biased and unbiased is not None:
        inputs, bias = unbiased, ops.cast(biased.layer.bias, "float32")
    return normalize(layer, inputs, bias, one_pass=True)


def _pool(layer: layers.MaxPooling2D, inputs: Any) -> Any:
    sizes, steps = tuple(layer.pool_size), tuple(layer.strides)
    if layer.padding == "same":
        sides = zip(inputs.shape[1:3], sizes, steps, strict=True)
        outside = [max((-(-side // step) - 1) * step + size - side, 0) for side, size, step in sides]
        around = [(0, 0, 0), *((number // 2, number - number // 2, 0) for number in outside), (0, 0, 0)]
        inputs = jax.lax.pad(inputs, jnp.array(-jnp.inf, inputs.dtype), around)
    return max_pool(inputs, sizes, steps)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(inputs: Any, sizes: tuple[int, int], steps: tuple[int, int]) -> Any:
    """Max pooling without padding; the gradient goes to the first maximum of each window.

    Args:
        inputs: float `(batch, height, width, channels)`.
        sizes, steps: rows and columns of a window, and from one window to the next, in pixels.

    Returns:
        `(batch, rows, columns, channels)`, of the inputs' dtype.
    """
    return _pool_forward(inputs, sizes, steps)[0]


def _pool_forward(inputs: Any, sizes: tuple[int, int], steps: tuple[int, int]) -> tuple[Any, Any]:
    """The maxima; and the place of each in its window, uint8, with an array of no bytes for the inputs' shape."""
    best: Any = None
    for number, start in enumerate(np.ndindex(sizes)):
        sides = zip(start, inputs.shape[1:3], sizes, steps, strict=True)
        value = inputs[:, *(slice(at, at + side - size + 1, step) for at, side, size, step in sides)]
        if best is None:
            best, place = value, jnp.zeros(value.shape, jnp.uint8)
        higher = (value > best) | (value != value)  # what is not a number stays so, as in XLA's own
        best, place = jnp.where(higher, value, best), jnp.where(higher, jnp.uint8(number), place)
    return best, (place, jnp.zeros((0, *inputs.shape[1:3])))


def _pool_backward(sizes: tuple[int, int], steps: tuple[int, int], kept: Any, gradient: Any) -> tuple[Any]:
    place, inputs = kept
    zero, total = jnp.zeros((), gradient.dtype), 0
    for number, start in enumerate(np.ndindex(sizes)):
        sides = zip(start, inputs.shape[1:], gradient.shape[1:3], steps, strict=True)
        spread = [(at, side - at - (windows - 1) * step - 1, step - 1) for at, side, windows, step in sides]
        total += jax.lax.pad(jnp.where(place == number, gradient, zero), zero, [(0, 0, 0), *spread, (0, 0, 0)])
    return (total,)


max_pool.defvjp(_pool_forward, _pool_backward)
