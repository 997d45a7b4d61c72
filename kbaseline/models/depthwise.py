"""Depthwise convolutions as sums of shifted products, forward and backward, for CPUs.

XLA's CPU backend computes a depthwise convolution as a naive loop. A sum of `kernel height * kernel width` shifted
copies of the image, each times its weights, becomes one vectorised loop over the image.
"""

from functools import partial
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

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
    shifted = _shifted(inputs, weights.shape[:2], strides, margins, dilation)
    return sum(view.astype(exact) * weights[at] for at, view in shifted.items()).astype(inputs.dtype)


def _shifted(
    inputs: Any, kernel_size: Pair, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair
) -> dict[Pair, Any]:
    """What each weight of the kernel is multiplied with: (row, column) -> `(batch, output height, width, channels)`."""
    padded = jnp.pad(inputs, ((0, 0), *margins, (0, 0)))
    # Without the barrier XLA recomputes the inputs for each of the shifts.
    padded = lax.optimization_barrier(padded)
    (rows, columns), (height, width) = kernel_size, padded.shape[1:3]
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
    geometry = strides, margins, dilation
    return (
        _gradient_of_inputs(inputs, weights, gradient, *geometry),
        _gradient_of_weights(inputs, weights, gradient, *geometry),
    )


_depthwise.defvjp(_forward, _backward)


def _gradient_of_inputs(
    inputs: Any, weights: Any, gradient: Any, strides: Pair, margins: tuple[Pair, Pair], dilation: Pair
) -> Any:
    if strides != (1, 1):
        # Most products with a gradient spread by the strides would be zero.
        to_inputs = jax.linear_transpose(lambda x: _shifted_sum(x, weights, strides, margins, dilation), inputs)
        return to_inputs(gradient)[0]
    # XLA's own transpose adds a padded copy for every weight, and tests at every pixel whether it lies in the padding.
    outer = tuple(
        ((size - 1) * step - before, (size - 1) * step - after)
        for size, step, (before, after) in zip(weights.shape[:2], dilation, margins, strict=True)
    )
    return _shifted_sum(gradient, weights[::-1, ::-1], strides, outer, dilation)


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
        # A product with ones: XLA gives a sum with its factors to YNNPACK, which wants every shifted copy in memory.
        table = jnp.reshape(partial_sums, (-1, partial_sums.shape[-1]))
        return jnp.ones((1, len(table)), exact) @ table

    shifted = _shifted(inputs, weights.shape[:2], strides, margins, dilation)
    totals = jnp.concatenate([total(view) for view in shifted.values()])
    return jnp.reshape(totals, weights.shape).astype(weights.dtype)


def _divisor(length: int) -> int:
    """The largest divisor up to `_CHUNKS`."""
    return max(number for number in range(1, _CHUNKS + 1) if length % number == 0)
