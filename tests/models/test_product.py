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
