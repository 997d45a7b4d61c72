"""Swish whose gradient computes its sigmoid anew."""

import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from kbaseline.models.cpu import adapt_to_cpu
from kbaseline.models.swish import swish


def test_values_and_gradients_are_the_formulas() -> None:
    """Reference: NumPy in double precision, over all sizes of numbers; none overflows."""
    x = np.concatenate([np.linspace(-100, 100, 4001), [-1e38, -1e4, 1e4, 1e38]])
    sigmoid = np.exp(-np.logaddexp(0, -x))
    slope = sigmoid * (1 + x * np.exp(-np.logaddexp(0, x)))
    found, pull = jax.vjp(swish, jnp.asarray(x, "float32"))
    np.testing.assert_allclose(found, x * sigmoid, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(pull(jnp.ones(len(x)))[0], slope, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_dtype(dtype: str) -> None:
    """Invariant: outputs and gradients have the dtype of the inputs."""
    found, pull = jax.vjp(swish, jnp.linspace(-9, 9, 19, dtype=dtype))
    assert found.dtype == pull(found)[0].dtype == dtype


def test_layers_use_it_and_keep_no_sigmoid() -> None:
    """Invariant: outputs as before; for both directions XLA computes one exponential of the stock layer, two here."""
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Activation("swish")(image))
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")

    def exponentials() -> int:
        compiled = jax.jit(jax.grad(lambda x: jnp.sum(model(x) ** 2))).lower(images).compile()
        return len(re.findall(r"exponential\(", compiled.as_text()))

    stock, before = np.asarray(model(images)), exponentials()
    assert adapt_to_cpu(model) == 1
    np.testing.assert_allclose(model(images), stock, rtol=1e-6)
    assert (before, exponentials()) == (1, 2)
