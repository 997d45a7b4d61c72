"""Keras' and JAX's settings for the whole process that a run depends on: checked, and never changed for a caller."""

import jax
import keras

from kbaseline.errors import InputError

_NEEDED = {
    "image_data_format": ("channels_last", "keras.config.set_image_data_format('channels_last')"),
    "floatx": ("float32", "keras.config.set_floatx('float32'), and runtime.precision for another precision"),
    "max_epochs": (None, "keras.config.set_max_epochs(None), or unset KERAS_MAX_EPOCHS"),
    "max_steps_per_epoch": (None, "keras.config.set_max_steps_per_epoch(None), or unset KERAS_MAX_STEPS_PER_EPOCH"),
}
"""Names in `keras.config`, what they must be, and how to get there."""


def check_settings() -> None:
    """Checks that Keras and JAX are set as a run needs them.

    Raises:
        InputError: they are not; the message names the setting.
    """
    if (backend := keras.config.backend()) != "jax":
        raise InputError(
            f"Keras was imported with the backend {backend!r}: kbaseline runs on 'jax'; restart this process (in a "
            "notebook, the kernel) and import kbaseline before Keras, with KERAS_BACKEND unset or set to jax."
        )
    for name, (needed, remedy) in _NEEDED.items():
        if (value := getattr(keras.config, name)()) != needed:
            raise InputError(
                f"Keras' {name} is {value!r} (keras.json, or set by this program): a run needs {needed!r}; {remedy}."
            )
    if jax.config.jax_enable_x64:
        raise InputError(
            "JAX_ENABLE_X64 is on: a run needs JAX's default types; unset it, or call "
            "jax.config.update('jax_enable_x64', False)."
        )
