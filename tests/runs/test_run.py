"""Runs loaded again: what cannot be used is refused. That they predict as they did is tested with the recipe."""

import keras
import numpy as np
import pytest

from kbaseline.errors import DataError, InputError, ModelError
from kbaseline.runs.run import load


@pytest.fixture
def run(finished_run):
    """A finished run without test-time augmentation, and without a model."""
    return finished_run("run", tta=False)


@pytest.mark.parametrize("text", [None, "no model"])
def test_a_run_without_a_model_is_refused(text, run):
    """A model that is not there or is damaged is one line that names the run and the file."""
    if text:
        (run / "model.keras").write_text(text)
    with pytest.raises(ModelError, match=r"model\.keras") as caught:
        load(run)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_predicted_is_refused(run):
    """A run whose configuration leaves TTA out does not invent its settings; images follow the rules of data."""
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)))
    model.save(run / "model.keras")
    saved = load(run)
    images = np.zeros((5, 8, 8, 3), np.uint8)
    assert saved.predict(images, batch_size=2).shape == (5, 3)
    with pytest.raises(InputError, match="turns test-time augmentation off"):
        saved.predict(images, tta=True)
    with pytest.raises(DataError, match="must lie in 0-255"):
        saved.predict(images - 1.0)


def test_xla_is_told_before_the_network_is_built(run, monkeypatch):
    """Invariant: `load` tells XLA of its convolutions before anything starts JAX."""
    told = []
    (run / "model.keras").touch()
    monkeypatch.setattr("kbaseline.runs.run.start_jax", lambda: told.append("told"))
    monkeypatch.setattr("kbaseline.runs.run.read_model", lambda *_: told.append("built") or keras.Sequential())
    load(run)
    assert told == ["told", "built"]
