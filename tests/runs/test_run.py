"""Runs loaded again: what cannot be used is refused. That they predict as they did is tested with the recipe."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from kbaseline.errors import DataError, InputError, ModelError
from kbaseline.runs.inference import predict_plain
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
    with pytest.raises(DataError, match=r"got \(480, 640, 3\)\. Give one image as images\[None\]"):
        saved.predict(np.zeros((480, 640, 3), np.uint8))
    with pytest.raises(DataError, match="all of one size"):
        saved.predict([images[0], images[0, :4]])
    with pytest.raises(InputError, match="batch_size: must be at least 1; got -2"):
        saved.predict(images, batch_size=-2)


def test_a_run_predicts_after_ctrl_c_in_threads_and_unpickled(run, rng):
    """Invariant: an interrupted prediction loses no weight, four threads at once and a pickled run predict the same."""
    image = keras.Input((None, None, 3))
    keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image))).save(run / "model.keras")
    saved, images = load(run), rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = saved.predict(images)

    class Interrupt(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_plain(saved.model, images, saved.config, saved.console, 2, [Interrupt()])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: saved.predict(images), range(12)))
    np.testing.assert_array_equal(found, [expected] * 12)
    again = pickle.loads(pickle.dumps(saved))  # noqa: S301 - its own
    np.testing.assert_array_equal(again.predict(images), expected)
    assert (again.folder, again.class_names, again.config) == (saved.folder, saved.class_names, saved.config)


def test_xla_is_told_before_the_network_is_built(run, monkeypatch):
    """Invariant: `load` tells XLA of its convolutions before anything starts JAX."""
    told = []
    (run / "model.keras").touch()
    monkeypatch.setattr("kbaseline.runs.run.start_jax", lambda: told.append("told"))
    monkeypatch.setattr("kbaseline.runs.run.read_model", lambda *_: told.append("built") or keras.Sequential())
    load(run)
    assert told == ["told", "built"]
