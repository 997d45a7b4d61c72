"""Runs that an earlier version wrote stay readable.

`written_by_0.1.0/` is `small_run.recipe`, trained before the modules moved into rooms; `answers.npz` holds what it
predicted then; with TTA, what it predicts since the draws of a view are the same for every image.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

import kbaseline

OLD = Path(__file__).parent / "written_by_0.1.0"


@pytest.mark.parametrize("kind", ["plain", "tta"])
def test_an_old_run_predicts_what_it_predicted(kind: str) -> None:
    """Golden: a run folder written before the move loads, and answers as it did."""
    with np.load(OLD / "answers.npz") as then:
        now = kbaseline.load(OLD).predict(then["images"], tta=kind == "tta")
        np.testing.assert_allclose(now, then[kind], atol=1e-5)


def test_an_old_model_loads_with_its_optimizer() -> None:
    """Golden: a `model.keras` written before the move loads with Keras, its schedule and layer groups with it."""
    model = keras.models.load_model(OLD / "model.keras")
    assert model.optimizer.groups
    assert type(model.optimizer).__name__ == "LayerwiseAdamW"
    assert int(model.optimizer.iterations) == 10
    assert all(np.asarray(average.numpy()).any() for average in model.optimizer.velocities)
