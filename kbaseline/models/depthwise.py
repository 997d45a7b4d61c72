"""Depthwise convolutions as sums of shifted products, forward and backward, for CPUs.

XLA's CPU backend computes a depthwise convolution as a naive loop. A sum of `kernel height * kernel width` shifted
copies of the image, each times its weights, becomes one vectorised loop over the image.
"""

from functools import partial
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from kbaseline.models.materialise import materialised

_CHUNKS = 8
"""Most rows of products that are added in one loop, for the gradient of the kernel."""

Pair = tuple[int, int]


def depthwise(inputs: Any, kernel: Any, strides: Pair, padding: str, dilation: Pair) -> Any:
    """A depthwise convolution, computed as a sum of shifted products; in float32 at least.

    Args:
        inputs: float `(batch, height, width, channels)`.
        kernel: `(kernel height, kernel width, channels, multiplier)`, of the same dtype.
        strides: along rows and columns, in pixels.
        padding: `"same"` or `"valid"`.
        dilation: distance of the kernel's rows and columns, in pixels.

    Returns:
        `(batch, output height, output width, channels * multiplier)`, of the inputs' dtype. Channel `c` gives the
        outputs `c * multiplier` to `(c + 1) * multiplier - 1`.
    """
    rows, columns, _, multiplier = kernel.shape
    if multiplier > 1:
        inputs = jnp.repeat(inputs, multiplier, axis=-1)
    extents = [(size - 1) * step + 1 for size, step in zip((rows, columns), dilation, strict=True)]
    margins = lax.padtype_to_pads(inputs.shape[1:3], extents, strides, padding.upper())
    weights = jnp.reshape(kernel, (rows, columns, -1))
    return _depthwise(inputs, weights, strides, tuple(map(tuple, margins)), dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(inputs: Any, weights: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair) -> Any:
    """A depthwise convolution with weights `(kernel height, kernel width, channels)`."""
    return _shifted_sum(inputs, weights, strides, margins, dilation)


def _shifted_sum(inputs: Any, weights: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair) -> Any:
    exact = jnp.promote_types(inputs.dtype, jnp.float32)
    weights = weights.astype(exact)
    shifted = _shifted(inputs, weights, strides, margins, dilation)
    total = sum(view.astype(exact) * weights[at] for at, view in shifted.items())
    return materialised(total.astype(inputs.dtype), weights)


def _shifted(inputs: Any, weights: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair) -> dict[Pair, Any]:
    """What each weight of the kernel is multiplied with: (row, column) -> `(batch, output height, width, channels)`."""
    padded = jnp.pad(inputs, ((0, 0), *margins, (0, 0)))
    padded = materialised(padded, weights)
    (rows, columns), (height, width) = weights.shape[:2], padded.shape[1:3]
    last_row, last_column = height - (rows - 1) * dilation[0], width - (columns - 1) * dilation[1]
    return {
        (row, column): padded[
            :,
            row * dilation[0] : row * dilation[0] + last_row : strides[0],
            column * dilation[1] : column * dilation[1] + last_column : strides[1],
        ]
        for row in range(rows)
        for column in range(columns)
    }


def _forward(inputs: Any, weights: Any, *geometry: Any) -> tuple[Any, tuple[Any, Any]]:
    return _shifted_sum(inputs, weights, *geometry), (inputs, weights)


def _backward(
    strides: Pair, margins: tuple[Pair, Pair], dilation: Pair, seen: tuple[Any, Any], gradient: Any
) -> tuple[Any, Any]:
    inputs, weights = seen
    gradient = materialised(gradient, weights)
    geometry = strides, margins, dilation
    return (
        _gradient_of_inputs(inputs, weights, gradient, *geometry),
        _gradient_of_weights(inputs, weights, gradient, *geometry),
    )


_depthwise.defvjp(_forward, _backward)


def _gradient_of_inputs(
    inputs: Any, weights: Any, gradient: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair
) -> Any:
    """Every `strides`-th pixel sees the same weights, so that they are arranged by phase: `(tap, phase)` per axis.

    XLA's own transpose adds a padded copy for every weight, and tests at every pixel whether it lies in the padding.
    """
    axes = [
        _Phases(*numbers)
        for numbers in zip(
            weights.shape[:2],
            inputs.shape[1:3],
            gradient.shape[1:3],
            strides,
            [before for before, _ in margins],
            dilation,
            strict=True,
        )
    ]
    exact = jnp.promote_types(inputs.dtype, jnp.float32)
    by_phase = jnp.pad(weights.astype(exact), (*(axis.kernel_margins for axis in axes), (0, 0)))
    by_phase = by_phase.reshape(axes[0].taps, strides[0], axes[1].taps, strides[1], -1)
    zero = jnp.zeros((), gradient.dtype)
    padded = lax.pad(gradient, zero, ((0, 0, 0), *((*axis.margins, 0) for axis in axes), (0, 0, 0)))
    padded = materialised(padded, weights)
    rows, columns = ([axis.view(tap) for tap in range(axis.taps)] for axis in axes)
    blocks = sum(
        padded[:, row, None, column, None].astype(exact) * by_phase[at_row, :, at_column][:, None]
        for at_row, row in enumerate(rows)
        for at_column, column in enumerate(columns)
    )
    whole = blocks.reshape(len(inputs), axes[0].blocks * strides[0], axes[1].blocks * strides[1], -1)
    return materialised(whole[:, : inputs.shape[1], : inputs.shape[2]].astype(inputs.dtype), weights)


class _Phases:
    """One axis of `_gradient_of_inputs`: inputs in blocks of `stride` pixels, the kernel in taps of `stride` weights.

    Dilation and stride do not both exceed 1: Keras refuses that.
    """

    def __init__(self, weights: int, pixels: int, outputs: int, stride: int, before: int, dilation: int) -> None:
        shift = -(-before // stride)
        front = shift * stride - before
        self.blocks = -(-pixels // stride)
        self.taps = -(-(weights + front) // stride)
        self.kernel_margins = front, self.taps * stride - weights - front
        self._dilation = dilation
        self._reach = (self.taps - 1) * dilation
        self.margins = self._reach - shift, self.blocks + shift - outputs

    def view(self, tap: int) -> slice:
        """Where the padded gradient is multiplied with a tap."""
        begin = self._reach - tap * self._dilation
        return slice(begin, begin + self.blocks)


def _gradient_of_weights(
    inputs: Any, weights: Any, gradient: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair
) -> Any:
    exact = jnp.promote_types(inputs.dtype, jnp.float32)
    gradient = gradient.astype(exact)
    # Rows rather than images: a batch may be divided between devices.
    axis = max((1, 2, 0), key=lambda axis: _divisor(gradient.shape[axis]))
    chunks = _divisor(gradient.shape[axis])

    def total(shifted: Any) -> Any:
        pairs = zip(*(jnp.split(factor, chunks, axis) for factor in (shifted.astype(exact), gradient)), strict=True)
        partial_sums = sum(ours * theirs for ours, theirs in pairs)
        # XLA gives a sum with its factors to YNNPACK, which wants every shifted copy in memory.
        return jnp.sum(materialised(partial_sums, weights), (0, 1, 2))

    shifted = _shifted(inputs, weights, strides, margins, dilation)
    totals = jnp.stack([total(view) for view in shifted.values()])
    return jnp.reshape(totals, weights.shape).astype(weights.dtype)


def _divisor(length: int) -> int:
    """The largest divisor up to `_CHUNKS`."""
    return max(number for number in range(1, _CHUNKS + 1) if length % number == 0)
