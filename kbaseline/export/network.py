"""The exported network: a classifier from pixels to probabilities, of stock Keras layers and operations only."""

from typing import Any

import keras
import numpy as np

from kbaseline.data.fit import HALF_BITS, Resize, resize_matrices
from kbaseline.doubt import Doubt
from kbaseline.models.backbones import ImageNetPreprocessing, leaves
from kbaseline.models.classifier import AVERAGE
from kbaseline.transforms import RandomTransforms

INPUT, OUTPUT, UNFAMILIARITY = "images", "probabilities", "unfamiliarity"
"""Names of input and outputs, in formats that have names."""


def compute_in_float32(model: keras.Model) -> bool:
    """Makes every layer compute in float32, as exported files do; returns whether any layer did not."""
    half = [layer for layer in leaves(model) if layer.compute_dtype in ("bfloat16", "float16")]
    for layer in half:
        layer.dtype_policy = keras.DTypePolicy("float32")
    return bool(half)


def stock_network(
    model: keras.Model,
    input_size: tuple[int, int],
    image_size: tuple[int, int],
    resize: Resize,
    doubt: Doubt | None = None,
) -> keras.Model:
    """A classifier in which kbaseline's own layers are replaced by the operations they consist of.

    It shares the variables of `model`, and loads with Keras alone.

    Args:
        model: a run's model, from uint8 images of any size to logits.
        input_size: height and width of the images it will take, in pixels.
        image_size: those that the run fits its images to; where they differ, `data.fit` is part of the network.
        resize: how the run fits them.
        doubt: of the run.

    Returns:
        A functional model from uint8 `(batch, height, width, 3)` to float32 probabilities `(batch, classes)`; with a
        doubt, to a dictionary of calibrated `probabilities` and of `unfamiliarity`, float32 `(batch,)`.
    """
    images = keras.Input((*input_size, 3), dtype="uint8", name=INPUT)
    own, pixels = model.inputs[0], images
    if input_size != image_size:
        rows, columns = resize_matrices(*input_size, *image_size, resize)
        pixels = _resampled(keras.ops.cast(pixels, "float32"), columns, "bhwc,vw->bhvc")
        pixels = _resampled(pixels, rows, "bhwc,vh->bvwc")
    for layer in model.layers:  # in topological order
        if isinstance(layer, RandomTransforms | ImageNetPreprocessing) and layer.input is own:
            # `layer.call`, not `layer(...)`, adds the layer's operations to the graph in place of the layer.
            own, pixels = layer.output, layer.call(pixels)
    softmax = keras.layers.Softmax(dtype="float32", name=OUTPUT)
    if doubt is None:
        return keras.Model(images, softmax(keras.Model(own, model.output, name="network")(pixels)), name="classifier")
    logits, features = keras.Model(own, [model.output, model.get_layer(AVERAGE).output], name="network")(pixels)
    logits = keras.layers.Rescaling(1 / doubt.temperatures["plain"], dtype="float32", name="calibration")(logits)
    outputs = {OUTPUT: softmax(logits), UNFAMILIARITY: _unfamiliarity(features, doubt)}
    return keras.Model(images, outputs, name="classifier")


def _unfamiliarity(features: Any, doubt: Doubt) -> Any:
    """`Doubt.unfamiliarity` of stock layers: constants in their weights, for a graph would spell them out as text."""
    shifted = keras.layers.BatchNormalization(epsilon=0, center=False, scale=False, dtype="float32", name="familiar")
    directions = keras.layers.Dense(doubt.directions.shape[1], use_bias=False, dtype="float32", name="directions")
    classes = keras.layers.Dense(len(doubt.offsets), dtype="float32", name="class_distances")
    x = shifted(keras.layers.UnitNormalization(dtype="float32", name="unit_length")(features))
    around, nearest = directions(x), keras.ops.min(classes(x), axis=1)
    shifted.set_weights([doubt.mean, 1 / np.square(doubt.scale)])
    directions.set_weights([doubt.directions])
    classes.set_weights([doubt.slopes, doubt.offsets])
    squared = keras.ops.sum(keras.ops.square(x), axis=1) - keras.ops.sum(keras.ops.square(around), axis=1) + nearest
    return keras.ops.sqrt(keras.ops.maximum(squared, 0.0))


def _resampled(pixels: Any, halves: tuple[np.ndarray, np.ndarray], along: str) -> Any:
    """One direction of `data.fit.resize_matrices`, on float32 pixels `(batch, height, width, 3)`."""
    high, low = (keras.ops.einsum(along, pixels, half) for half in halves)
    whole = 1 << HALF_BITS
    return keras.ops.clip(keras.ops.floor((high + keras.ops.floor(low / whole) + whole / 2) / whole), 0, 255)
