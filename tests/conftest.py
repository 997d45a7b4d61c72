"""What every test stands on: a backend, no display, a cache of its own, explicit seeds."""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"
os.environ["KBASELINE_CACHE"] = tempfile.mkdtemp(prefix="kbaseline-test-cache-")

import shutil
from collections.abc import Iterator

import keras
import numpy as np
import pytest

# `jax_numpy_rank_promotion="raise"` is left out: Keras' own Dense layer adds a bias (units,) to (batch, units).


@pytest.fixture(scope="session", autouse=True)
def _cache() -> Iterator[None]:
    """The session's cache folder goes with the session."""
    yield
    shutil.rmtree(os.environ["KBASELINE_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test begins with the same global seeds and Keras' own settings."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20200401)
