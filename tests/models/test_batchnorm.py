"""BatchNorm with its gradient in closed form; test_gpu.py holds it against the stock layer."""

import numpy as np
import pytest

from kbaseline.models.batchnorm import batch_normalize


@pytest.mark.parametrize("one_pass", [True, False])
def test_the_variance_is_exact_up_to_rounding(one_pass: bool, rng: np.random.Generator) -> None:
    """Property: one pass errs by some roundings of the mean of squares, two passes by some of the variance."""
    gamma, beta = np.ones(99, "float32"), np.zeros(99, "float32")
    constants = np.tile(rng.normal(0, 1000, 99).astype("float32"), (63, 1))
    outputs, _, variance = batch_normalize(constants, gamma, beta, 1e-3, one_pass)
    assert (np.asarray(variance) >= 0).all()
    assert np.isfinite(outputs).all()
    for mean in (0, 10, 100):
        values = rng.normal(mean, 1, (4096, 99)).astype("float32")
        exact = np.var(values.astype("float64"), axis=0)
        found = batch_normalize(values, gamma, beta, 1e-3, one_pass)[2]
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * (mean**2 + 1 if one_pass else 5))
