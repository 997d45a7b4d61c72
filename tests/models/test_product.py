"""A matrix product whose kernel gradient is arranged by its shape."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kbaseline.models.product import product


@pytest.mark.parametrize(("in_channels", "out_channels"), [(12, 3), (3, 12), (5, 5)])
def test_gradients_are_numpys(in_channels: int, out_channels: int, rng: np.random.Generator) -> None:
    """Reference: NumPy; the compiled kernel gradient has no more rows than columns."""
    inputs, kernel, upstream = (
        rng.normal(size=shape).astype("float32")
        for shape in ((64, in_channels), (in_channels, out_channels), (64, out_channels))
    )
    outputs, pull = jax.vjp(product, inputs, kernel)
    np.testing.assert_allclose(outputs, inputs @ kernel, rtol=1e-4, atol=1e-5)
    to_inputs, to_kernel = pull(jnp.asarray(upstream))
    np.testing.assert_allclose(to_inputs, upstream @ kernel.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_kernel, inputs.T @ upstream, rtol=1e-4, atol=1e-5)

    # Not as constants, from which XLA would compute the gradient itself.
    gradient = jax.jit(jax.grad(lambda w, x, to: jnp.sum(product(x, w) * to)))
    text = gradient.lower(kernel, inputs, upstream).compile().as_text()
    shapes = re.findall(r"f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert [sorted(map(int, shape)) for shape in shapes] == [sorted((in_channels, out_channels))]
    assert int(shapes[0][0]) <= int(shapes[0][1])


@pytest.mark.parametrize("asked", ["bfloat16", "BF16_BF16_F32", "default", "float32"])
def test_bfloat16_where_jax_is_told_so(asked: str, rng: np.random.Generator) -> None:
    """Reference: NumPy's products of rounded factors, forward and backward, under JAX's setting; else of whole ones."""
    whole = [rng.normal(size=shape).astype("float32") for shape in ((64, 12), (12, 3), (64, 3))]
    rounds = asked in ("bfloat16", "BF16_BF16_F32")
    inputs, kernel, upstream = (np.asarray(jnp.asarray(x, "bfloat16"), "float32") if rounds else x for x in whole)
    expected = inputs @ kernel, upstream @ kernel.T, inputs.T @ upstream
    with jax.default_matmul_precision(asked):
        outputs, pull = jax.vjp(product, *whole[:2])
        found = outputs, *pull(jnp.asarray(whole[2]))
    for one, reference in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, reference, rtol=1e-5, atol=1e-5)
