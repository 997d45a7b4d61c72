"""Swish whose gradient computes its sigmoid anew, for a CPU where a pass over memory costs more than an exponential."""

from typing import Any

import jax
from jax import lax
from jax import numpy as jnp


@jax.custom_vjp  # type: ignore[untyped-decorator]
def swish(inputs: Any) -> Any:
    """Swish, also called SiLU: x · sigmoid(x) (https://arxiv.org/abs/1710.05941).

    XLA's CPU backend computes an exponential once. Where a gradient needs the sigmoid too, it is written to memory and
    read twice, in a pass of its own. Here the forward pass computes it where it is used, and the gradient from the
    opposite exponential, which XLA cannot take for the same.

    Args:
        inputs: float, any shape.

    Returns:
        The same shape and dtype.
    """
    return inputs * lax.logistic(inputs)


def _forward(inputs: Any) -> tuple[Any, Any]:
    return swish(inputs), inputs


def _backward(inputs: Any, gradient: Any) -> tuple[Any]:
    x = inputs.astype("float32")
    # Of large numbers the exponential is infinite, and the rest 0.
    rest = 1 / (1 + jnp.exp(x))
    return (((1 - rest) * (1 + x * rest) * gradient.astype("float32")).astype(inputs.dtype),)


swish.defvjp(_forward, _backward)
