"""The network that is exported: a classifier as stock Keras layers and operations, from pixels to probabilities."""

import keras

from kbaseline.models.backbones import ImageNetPreprocessing, leaves
from kbaseline.transforms import RandomTransforms

INPUT, OUTPUT = "images", "probabilities"
"""Names of what goes in and what comes out, in every format that has names."""


def compute_in_float32(model: keras.Model) -> bool:
    """Makes a model compute in float32 throughout, as exported files do; true if some of it did not."""
    half = [layer for layer in leaves(model) if layer.compute_dtype in ("bfloat16", "float16")]
    for layer in half:
        layer.dtype_policy = keras.DTypePolicy("float32")
    return bool(half)


def stock_network(model: keras.Model, height: int, width: int) -> keras.Model:
    """A classifier without kbaseline's own layers, which are written out as the operations they consist of.

    It shares the classifier's variables, and loads wherever Keras does.

    Args:
        model: uint8 images of any size in, logits out; a run's.
        height, width: of the images it will take, in pixels.

    Returns:
        A functional model from uint8 `(batch, height, width, 3)` to float32 probabilities `(batch, classes)`.
    """
    images = keras.Input((height, width, 3), dtype="uint8", name=INPUT)
    own, pixels = model.inputs[0], images
    for layer in model.layers:  # in topological order
        if isinstance(layer, RandomTransforms | ImageNetPreprocessing) and layer.input is own:
            # Called itself, and not through Keras, a layer leaves its operations in the graph and not its name.
            own, pixels = layer.output, layer.call(pixels)
    logits = keras.Model(own, model.output, name="network")(pixels)
    probabilities = keras.layers.Softmax(dtype="float32", name=OUTPUT)(logits)
    return keras.Model(images, probabilities, name="classifier")
