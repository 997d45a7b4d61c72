"""Calibration: against counts by hand, a search over a grid, and predictions whose temperature is known."""

import math

import numpy as np
import pytest

from kbaseline.calibration import at_temperature, calibrate, expected_calibration_error, fit_temperature


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def too_sure(rng):
    """5,000 images of 4 classes whose labels are drawn from softmax(z), predicted as softmax(2.5 z)."""
    logits = rng.normal(scale=1.5, size=(5000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    return softmax(2.5 * logits), labels


def test_error_by_hand():
    """Golden: two bins; 0.9, 0.7 with one right, 0.5 right: (|1 - 1.6| + |1 - 0.5|) / 3."""
    p = np.array([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    assert expected_calibration_error(p, np.array([0, 1, 0]), bins=2) == pytest.approx((0.6 + 0.5) / 3)


def test_error_against_a_loop(too_sure):
    """Reference: the paper's equation 3, bin by bin with right-closed edges."""
    p, labels = too_sure
    total = 0.0
    for m in range(15):
        inside = (p.max(axis=1) > m / 15) & (p.max(axis=1) <= (m + 1) / 15)
        if inside.any():
            accuracy = (p.argmax(axis=1) == labels)[inside].mean()
            total += inside.mean() * abs(accuracy - p.max(axis=1)[inside].mean())
    assert expected_calibration_error(p, labels) == pytest.approx(total, rel=1e-9)
    assert total > 0.1


def test_certain_and_right_is_no_error():
    """Golden: certain predictions that are all right are calibrated; all wrong, they are off by 1."""
    p = np.eye(3)
    assert expected_calibration_error(p, np.arange(3)) == 0
    assert expected_calibration_error(p, np.array([1, 2, 0])) == 1


def test_temperature_is_found(too_sure):
    """Reference: the temperature the predictions were made with, and the best of a fine grid."""
    p, labels = too_sure
    found = fit_temperature(p, labels)
    assert found == pytest.approx(2.5, rel=0.05)
    grid = np.linspace(2.0, 3.0, 1001)
    loss = [-np.log(at_temperature(p, t)[np.arange(len(labels)), labels]).mean() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(loss))], abs=2e-3)


def test_temperature_divides_logits(rng):
    """Reference: softmax of the logits over T, from probabilities alone; the most probable class stays."""
    logits = rng.normal(size=(50, 6)) * 5
    np.testing.assert_allclose(at_temperature(softmax(logits), 1.7), softmax(logits / 1.7), rtol=1e-10)
    np.testing.assert_allclose(at_temperature(softmax(logits), 1.0), softmax(logits), rtol=1e-10)


def test_a_temperature_from_elsewhere_is_used_as_it_is(too_sure):
    """Invariant: with a temperature given, nothing is fitted on these predictions, and it calibrates them."""
    p, labels = too_sure
    found = calibrate(p, labels, 2.5)
    assert (found.temperature, found.cross_fitted) == (2.5, False)
    assert found.error == expected_calibration_error(p, labels)
    assert found.error_at_temperature == expected_calibration_error(at_temperature(p, 2.5), labels)
    assert found.error_at_temperature < 0.03 < 0.1 < found.error


def test_without_one_each_half_takes_the_others(rng):
    """Invariant: the error after scaling is computed on images not used for the fit, so noise is not rewarded.

    Labels of pure noise over 8 images: fitted on all of them a temperature lowers the loss by construction, crosswise
    it need not.
    """
    p = softmax(rng.normal(size=(8, 3)))
    gains = []
    for _ in range(200):
        labels = rng.integers(0, 3, size=8)
        own = -np.log(at_temperature(p, fit_temperature(p, labels))[np.arange(8), labels]).mean()
        crosswise = calibrate(p, labels)
        assert crosswise.cross_fitted
        assert crosswise.temperature == fit_temperature(p, labels)
        gains.append(crosswise.loss_at_temperature - own)
    assert np.mean(gains) > 0.05


def test_extremes_stay_finite():
    """No mistake, probabilities of exactly 0, a single image: metrics are finite, the temperature in its range."""
    for p, labels in ((np.eye(3), [0, 1, 2]), (np.eye(3), [1, 2, 0]), (np.array([[1.0, 0.0]]), [0])):
        found = calibrate(p, np.array(labels))
        assert 0.1 <= found.temperature <= 10
        assert all(math.isfinite(v) for v in (found.error, found.error_at_temperature, found.loss_at_temperature))


def test_it_is_the_same_every_time(too_sure):
    """Determinism: the halves are drawn with a seed of their own."""
    assert calibrate(*too_sure) == calibrate(*too_sure)
