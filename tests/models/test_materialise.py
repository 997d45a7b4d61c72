"""An expression that XLA's CPU backend has to write to memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from kbaseline.models.materialise import materialised


def test_values_and_gradients_pass_unchanged(rng: np.random.Generator) -> None:
    """Reference: as without it, bit for bit; nothing flows to the traced."""
    values, traced = (rng.normal(size=(3, 4)).astype("float32") for _ in range(2))
    np.testing.assert_array_equal(jax.jit(materialised)(values, traced), values)
    to_values, to_traced = jax.grad(lambda v, w: jnp.sum(materialised(v, w) ** 2), (0, 1))(values, traced)
    np.testing.assert_array_equal(to_values, 2 * values)
    assert not to_traced.any()


def test_xla_computes_it_once() -> None:
    """Invariant: two readers each compute their product without it, and one product is computed with it."""

    def squares(written: bool) -> int:
        def compute(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = x * x
            y = materialised(y, x) if written else y
            return y[::-1] + 1, y.T + 2

        text = jax.jit(compute).lower(np.ones((64, 64), "float32")).compile().as_text()
        return len(re.findall(r"f32\[64,64\]\S* multiply\(", text))

    assert (squares(False), squares(True)) == (2, 1)
