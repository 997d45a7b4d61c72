"""A product of two matrices whose gradients are arranged as XLA's CPU backend computes them fastest."""

from typing import Any

import jax
from jax import lax


@jax.custom_vjp  # type: ignore[untyped-decorator]
def product(inputs: Any, kernel: Any) -> Any:
    """The matrix product of many rows and a kernel.

    The gradient of the kernel is a product over all rows. With few rows of its own and many columns it takes as long as
    the product itself, with many rows and few columns up to four times as long: then its transpose is computed.

    Args:
        inputs: float `(rows, in_channels)`.
        kernel: `(in_channels, out_channels)`, of the same dtype.

    Returns:
        `(rows, out_channels)`.
    """
    return inputs @ kernel


def _forward(inputs: Any, kernel: Any) -> tuple[Any, Any]:
    return inputs @ kernel, (inputs, kernel)


def _backward(kept: Any, gradient: Any) -> tuple[Any, Any]:
    inputs, kernel = kept
    return gradient @ kernel.T, _over_rows(inputs, gradient)


def _over_rows(first: Any, second: Any) -> Any:
    if first.shape[1] <= second.shape[1]:
        return lax.dot_general(first, second, (((0,), (0,)), ((), ())))
    # Without the barrier XLA turns the product round again.
    return lax.optimization_barrier(_over_rows(second, first)).T


product.defvjp(_forward, _backward)
