"""Predicts batches of images with a model, on all devices that share a batch, and says how many to take at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from kbaseline.data.batches import ImageBatches
from kbaseline.devices.programs import kept, values
from kbaseline.errors import InputError

CPU_PIXELS = 2**18
"""Pixels of a network's input that a CPU predicts at once: sixteen images of 128 x 128, or five of 224 x 224."""


def prediction_batch_size(most: int, pixels: int, given: int | None = None) -> int:
    """How many images to predict at once: `most`, and fewer large ones on a CPU, where more only need more memory.

    XLA allocates the activations anew at each pass, and a network that needs hundreds of MB for them waits for memory;
    measured in docs/performance.md.

    Args:
        most: images that an accelerator takes.
        pixels: height times width of the network's input.
        given: what the caller asked for, which is then the answer.

    Raises:
        InputError: `given` is below 1.
    """
    if given is not None:
        if given < 1:
            raise InputError(f"batch_size: must be at least 1, or None for one that suits; got {given}.")
        return given
    if jax.default_backend() != "cpu":
        return most
    spread = keras.distribution.distribution()
    devices = 1 if spread is None else spread.num_model_replicas
    return min(most, devices * max(1, CPU_PIXELS // pixels))


def predict_batches(
    model: keras.Model,
    batches: ImageBatches,
    callbacks: Sequence[keras.callbacks.Callback] | keras.callbacks.CallbackList = (),
) -> np.ndarray:
    """What `model.predict` returns, on all devices of the active `keras.distribution`.

    Keras' own `predict` takes the values out of the variables while it runs, so that Ctrl-C can lose them and a second
    thread meets a model without weights. Here they are only read. The program is kept as long as the model.

    Args:
        model: a model with one input and one output.
        batches: batches made with `pad=True`.
        callbacks: Keras callbacks, for instance a progress bar.

    Returns:
        One row per image; every process gets all rows.
    """
    if keras.backend.backend() != "jax":
        return batches.unpadded(model.predict(batches, verbose=0, callbacks=list(callbacks)))
    spread = keras.distribution.distribution()
    program = kept(model, "predict", spread, lambda: _prediction(model, spread))
    state = values(model, model.variables)
    watching = (
        callbacks
        if isinstance(callbacks, keras.callbacks.CallbackList)
        else keras.callbacks.CallbackList(list(callbacks), model=model, verbose=0, epochs=1, steps=len(batches))
    )
    rows: list[Any] = []
    watching.on_predict_begin()
    for number in range(len(batches)):
        watching.on_predict_batch_begin(number)
        rows.append(program(state, _placed(batches[number][0], spread)))
        if number:
            # Reading one batch late keeps the device busy, but no more than two batches in its memory.
            rows[-2] = np.asarray(rows[-2])
        watching.on_predict_batch_end(number, {"outputs": rows[-1]})
    watching.on_predict_end()
    return batches.unpadded(np.concatenate([np.asarray(part) for part in rows]))


def _prediction(model: keras.Model, spread: keras.distribution.DataParallel | None) -> Callable[..., Any]:
    """The compiled program (values of `model.variables`, images) -> outputs, which every process can read."""

    def predict_step(state: list[Any], images: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.variables, state, strict=True))):
            outputs = model(images, training=False)
        if spread is None:
            return outputs
        everywhere = keras.distribution.TensorLayout([None] * len(outputs.shape), spread.device_mesh)
        return keras.distribution.distribute_tensor(outputs, everywhere)

    program: Callable[..., Any] = jax.jit(predict_step)
    return program


def _placed(images: np.ndarray, spread: keras.distribution.DataParallel | None) -> Any:
    if spread is None:
        return images
    return jax.make_array_from_process_local_data(spread.get_data_layout(images.shape).backend_layout, images)
