"""The exported network: a classifier from pixels to probabilities, of stock Keras layers and operations only."""

import keras

from kbaseline.models.backbones import ImageNetPreprocessing, leaves
from kbaseline.transforms import RandomTransforms

INPUT, OUTPUT = "images", "probabilities"
"""Names of input and output, in formats that have names."""


def compute_in_float32(model: keras.Model) -> bool:
    """Makes every layer compute in float32, as exported files do; returns whether any layer did not."""
    half = [layer for layer in leaves(model) if layer.compute_dtype in ("bfloat16", "float16")]
    for layer in half:
        layer.dtype_policy = keras.DTypePolicy("float32")
    return bool(half)


def stock_network(model: keras.Model, height: int, width: int) -> keras.Model:
    """A classifier in which kbaseline's own layers are replaced by the operations they consist of.

    It shares the variables of `model`, and loads with Keras alone.

    Args:
        model: a run's model, from uint8 images of any size to logits.
        height, width: size of its input images, in pixels.

    Returns:
        A functional model from uint8 `(batch, height, width, 3)` to float32 probabilities `(batch, classes)`.
    """
    images = keras.Input((height, width, 3), dtype="uint8", name=INPUT)
    own, pixels = model.inputs[0], images
    for layer in model.layers:  # in topological order
        if isinstance(layer, RandomTransforms | ImageNetPreprocessing) and layer.input is own:
            # `layer.call`, not `layer(...)`, adds the layer's operations to the graph in place of the layer.
            own, pixels = layer.output, layer.call(pixels)
    logits = keras.Model(own, model.output, name="network")(pixels)
    probabilities = keras.layers.Softmax(dtype="float32", name=OUTPUT)(logits)
    return keras.Model(images, probabilities, name="classifier")
