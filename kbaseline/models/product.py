"""A product of two matrices whose gradients are arranged as XLA's CPU backend computes them fastest."""

from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

_BFLOAT16 = ("bfloat16", "BF16_BF16_F32")
"""The values of `jax_default_matmul_precision` that ask for factors in bfloat16 and a sum in float32."""


@jax.custom_vjp  # type: ignore[untyped-decorator]
def product(inputs: Any, kernel: Any) -> Any:
    """The matrix product of many rows and a kernel.

    The gradient of the kernel is a product over all rows. With few rows of its own and many columns it takes as long as
    the product itself, with many rows and few columns up to four times as long: then its transpose is computed.

    XLA's CPU backend ignores JAX's setting `jax_default_matmul_precision`. Here `"bfloat16"` is obeyed: the factors of
    the product and of its gradients are rounded to bfloat16, and added up in float32. Processors with AMX do that
    faster (docs/performance.md).

    Args:
        inputs: float `(rows, in_channels)`.
        kernel: `(in_channels, out_channels)`, of the same dtype.

    Returns:
        `(rows, out_channels)`, of the same dtype.
    """
    return _contracted(inputs, kernel, 1, 0)


def _forward(inputs: Any, kernel: Any) -> tuple[Any, Any]:
    return _contracted(inputs, kernel, 1, 0), (inputs, kernel)


def _backward(kept: Any, gradient: Any) -> tuple[Any, Any]:
    inputs, kernel = kept
    return _contracted(gradient, kernel.T, 1, 0), _over_rows(inputs, gradient)


def _over_rows(first: Any, second: Any) -> Any:
    if first.shape[1] <= second.shape[1]:
        return _contracted(first, second, 0, 0)
    # Without the barrier XLA turns the product round again.
    return lax.optimization_barrier(_over_rows(second, first)).T


def _contracted(first: Any, second: Any, axis: int, other_axis: int) -> Any:
    """The sum over an axis of the first matrix and one of the second."""
    dimensions = ((axis,), (other_axis,)), ((), ())
    if first.dtype != jnp.float32 or jax.config.jax_default_matmul_precision not in _BFLOAT16:
        return lax.dot_general(first, second, dimensions)
    first, second = first.astype(jnp.bfloat16), second.astype(jnp.bfloat16)
    return lax.dot_general(first, second, dimensions, preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)
