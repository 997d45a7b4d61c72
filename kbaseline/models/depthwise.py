"""Depthwise convolutions as sums of shifted products, forward and backward, for CPUs.

XLA's CPU backend computes a depthwise convolution as a naive loop. A sum of `kernel height * kernel width` shifted
copies of the image, each times its weights, becomes one vectorised loop over the image.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from kbaseline.models.materialise import materialised

_PARTS = 16
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
    (height, width), sizes = gradient.shape[1:3], inputs.shape[1:3]
    before = [margin for margin, _ in margins]
    axes = [
        _Phases(*axis)
        for axis in zip(weights.shape[:2], sizes, (height, width), strides, before, dilation, strict=True)
    ]
    (top, bottom), (left, right) = ([max(0, margin) for margin in axis.margins] for axis in axes)
    # Padded as it is written, since another pass would cost as much as the gradient of the inputs itself.
    padded = materialised(jnp.pad(gradient, ((0, 0), (top, bottom), (left, right), (0, 0))), weights)
    whole = padded[:, top : top + height, left : left + width]
    return (
        _gradient_of_inputs(inputs, weights, padded, axes),
        _gradient_of_weights(inputs, weights, whole, strides, margins, dilation),
    )


_depthwise.defvjp(_forward, _backward)


def _gradient_of_inputs(inputs: Any, weights: Any, padded: Any, axes: Sequence["_Phases"]) -> Any:
    """The gradient of the inputs, from that of the outputs, padded by the axes' margins where these are positive.

    Every `stride`-th pixel sees the same weights, so that they are arranged by phase: `(tap, phase)` per axis.
    XLA's own transpose adds a padded copy for every weight, and tests at every pixel whether it lies in the padding.
    """
    exact = jnp.promote_types(inputs.dtype, jnp.float32)
    by_phase = jnp.pad(weights.astype(exact), (*(axis.kernel_margins for axis in axes), (0, 0)))
    by_phase = by_phase.reshape(axes[0].taps, axes[0].stride, axes[1].taps, axes[1].stride, -1)
    # What no input has seen: a negative margin of the padded gradient.
    cut = [(min(0, before), min(0, after), 0) for before, after in (axis.margins for axis in axes)]
    padded = lax.pad(padded, jnp.zeros((), padded.dtype), ((0, 0, 0), *cut, (0, 0, 0)))
    rows, columns = ([axis.view(tap) for tap in range(axis.taps)] for axis in axes)
    blocks = sum(
        padded[:, row, None, column, None].astype(exact) * by_phase[at_row, :, at_column][:, None]
        for at_row, row in enumerate(rows)
        for at_column, column in enumerate(columns)
    )
    whole = blocks.reshape(len(inputs), axes[0].blocks * axes[0].stride, axes[1].blocks * axes[1].stride, -1)
    # Not materialised: what reads it, mostly a BatchNorm's and an activation's gradient, becomes a part of its loop.
    return whole[:, : inputs.shape[1], : inputs.shape[2]].astype(inputs.dtype)


class _Phases:
    """One axis of `_gradient_of_inputs`: inputs in blocks of `stride` pixels, the kernel in taps of `stride` weights.

    Dilation and stride do not both exceed 1: Keras refuses that.
    """

    def __init__(self, weights: int, pixels: int, outputs: int, stride: int, before: int, dilation: int) -> None:
        shift = -(-before // stride)
        front = shift * stride - before
        self.stride = stride
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
    """All weights in one loop over the gradient, which adds up products of rows far apart; then the sum of the rest.

    A loop for each weight would read inputs and gradient as often as there are weights.
    """
    exact = jnp.promote_types(inputs.dtype, jnp.float32)
    height, width = gradient.shape[1:3]
    # Of rows rather than images: a batch may be divided between devices.
    rows = -(-height // _PARTS)
    parts = -(-height // rows)
    gradient = jnp.pad(gradient.astype(exact), ((0, 0), (0, parts * rows - height), (0, 0), (0, 0)))
    padded = materialised(jnp.pad(inputs, ((0, 0), *margins, (0, 0))), weights)
    # Where the last part has no row, the gradient is 0, and any input will do.
    seen_rows = np.minimum(_seen(parts * rows, strides[0], weights.shape[0], dilation[0]), padded.shape[1] - 1)
    seen_columns = _seen(width, strides[1], weights.shape[1], dilation[1])

    def products(first: int) -> Any:
        """`(batch, rows, kernel height, width, kernel width, channels)`."""
        row, column = seen_rows[first : first + rows, :, None, None], seen_columns
        views = padded.at[:, row, column].get(mode="promise_in_bounds")
        return views.astype(exact) * gradient[:, first : first + rows, None, :, None]

    total = sum(products(first) for first in range(0, parts * rows, rows))
    # XLA gives a sum with its factors to YNNPACK, which wants every shifted copy in memory.
    return jnp.sum(materialised(total, weights), (0, 1, 3)).astype(weights.dtype)


def _seen(outputs: int, stride: int, weights: int, dilation: int) -> np.ndarray:
    """Which padded input each output sees through each weight, along one axis: `(outputs, weights)`."""
    return np.arange(outputs)[:, None] * stride + np.arange(weights) * dilation
