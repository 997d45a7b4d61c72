"""Test-time augmentation: average the probabilities of an image and of zoomed, mirrored views of it.

Views and weights follow fastai v1's `vision/tta.py`: four corners and their mirror images, each with the random warp,
rotation and lighting of training; result = beta · plain + (1 - beta) · mean of the views.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from keras import ops

from kbaseline.data.batches import ImageBatches
from kbaseline.devices.parallel import predict_batches
from kbaseline.errors import InputError
from kbaseline.geometry import flip, identity, resample, shrink, zoom
from kbaseline.transforms import RandomTransforms


class TestTimeViews(keras.layers.Layer):  # type: ignore[misc]
    """Layer that predicts the plain image and its views, from images of any size, 0-255.

    View i zooms by `scale` into the corner at row i & 1, column (i >> 1) & 1. With `flip`, views 4-7, 12-15, ... are
    mirrored. Random draws depend only on the seed and the view.

    Input: `(batch, height, width, channels)`. Output: float32 probabilities `(batch, 2, classes)`, first of the plain
    image, then the mean over its views.

    Args:
        transforms: the layer whose warp, rotation and lighting the views use.
        network: maps that layer's output to logits or probabilities.
        views: numbers of the views.
        scale: magnification, at least 1.
        flip: whether views 4-7 (12-15, ...) are mirrored.
        from_logits: whether the network outputs logits.
        seed: seed of the random draws.
    """

    __test__ = False  # pytest would collect the class because of its name

    def __init__(
        self,
        transforms: RandomTransforms,
        network: keras.Model,
        views: Sequence[int],
        scale: float,
        flip: bool,
        from_logits: bool,
        seed: int,
    ) -> None:
        super().__init__(autocast=False, dtype="float32")
        self.transforms, self.network, self.views = transforms, network, tuple(views)
        self.scale, self.flip, self.from_logits, self.seed = scale, flip, from_logits, seed

    def call(self, images: Any) -> Any:
        """Probabilities `(batch, 2, classes)` of images `(batch, height, width, channels)`."""
        inputs = [self.transforms(images, training=False), *(self.view(images, number) for number in self.views)]
        # One pass over the image and all views: one program to compile, and full batches for the accelerator.
        outputs = ops.cast(self.network(ops.concatenate(inputs), training=False), "float32")
        outputs = ops.softmax(outputs) if self.from_logits else outputs
        outputs = ops.reshape(outputs, (len(inputs), -1, outputs.shape[-1]))
        return ops.stack([outputs[0], ops.mean(outputs[1:], axis=0)], axis=1)

    def view(self, images: Any, number: int) -> Any:
        """View `number` of a batch, float32 `(batch, size, size, channels)`."""
        layer = self.transforms
        images = shrink(images, layer.height, layer.width)
        batch, height, width, _ = ops.shape(images)
        # One draw for the whole batch: a prediction must not depend on the image's place among others.
        geometry, light = (ops.repeat(draw, batch, axis=0) for draw in layer.draws(1, self.seed + number))
        corner = ops.ones((batch,))
        zooms = zoom(corner * self.scale, corner * (number & 1), corner * (number >> 1 & 1))
        mirrored = self.flip and number >> 2 & 1
        flips = flip(corner > 0) if mirrored else identity(batch)
        matrices = layer.geometry(geometry, zooms, flips, height, width)
        return layer.random_lighting(resample(images, matrices, layer.height, layer.width), light)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(batch, 2, classes)`."""
        return (input_shape[0], 2, self.network.output_shape[-1])


def tta_predict(
    model: keras.Model,
    images: np.ndarray,
    views: int | Sequence[int] = 8,
    beta: float | None = 0.4,
    scale: float = 1.35,
    flip: bool = True,
    *,
    from_logits: bool | None = None,
    batch_size: int = 256,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Predicts with test-time augmentation: probabilities averaged over the image and zoomed, mirrored views of it.

    If the model begins with `RandomTransforms`, each view is resampled once from the source pixels, with that layer's
    warp, rotation and lighting. For any other image classifier the views are plain zooms and mirror images at the
    size of the images. Views and weights follow fastai v1's `vision/tta.py`.

    >>> from kbaseline import tta_predict
    >>> import keras
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype="uint8")
    >>> layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    >>> model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    >>> probabilities = tta_predict(model, images)
    >>> print(probabilities.shape, np.allclose(probabilities.sum(axis=1), 1))
    (5, 3) True

    Args:
        model: a functional or sequential Keras model from images to logits or probabilities `(batch, classes)`.
        images: uint8 or float `(number, height, width, channels)`, 0-255, all of one size.
        views: the number of views, at least 1, or which ones: view i zooms into the corner at row i & 1, column
            (i >> 1) & 1.
        beta: weight of the plain prediction, in [0, 1]; None returns both parts.
        scale: magnification of a view, at least 1.
        flip: mirror views 4-7 (12-15, ...). Wrong for text and digits.
        from_logits: whether the model outputs logits; None: it does unless its last layer is a softmax.
        batch_size: images per forward pass, where each image counts 1 + views times; at least one image is predicted
            at a time.
        seed: seed of the random draws.
        callbacks: Keras callbacks for `predict`, such as a progress bar.

    Returns:
        Float32 probabilities `(number, classes)`: `beta * plain + (1 - beta) * mean`; with `beta=None` the pair
        (plain, mean over the views).

    Raises:
        InputError: an argument is out of range, there are no images, or the model is neither functional nor
            sequential.
    """
    numbers = tuple(range(views)) if isinstance(views, int) else tuple(views)
    if not numbers or min(numbers) < 0:
        raise InputError(f"views: must be at least 1, or a list of view numbers from 0; got {views!r}.")
    if beta is not None and not 0 <= beta <= 1:
        raise InputError(f"beta: must lie in [0, 1] or be None; got {beta}.")
    if scale < 1:
        raise InputError(f"scale: must be at least 1; got {scale}.")
    if not len(images):
        raise InputError("images: must hold at least one image; got none.")
    if images.dtype == np.float64:
        images = images.astype(np.float32)  # as Keras converts arrays; JAX would warn
    from_logits = not _ends_in_softmax(model) if from_logits is None else from_logits
    predictor = _predictor(model, images.shape[1:], images.dtype.name, numbers, scale, flip, from_logits, seed)
    batches = ImageBatches(images, batch_size=min(len(images), max(1, batch_size // (1 + len(numbers)))), pad=True)
    probabilities = predict_batches(predictor, batches, callbacks)
    plain, mean = probabilities[:, 0], probabilities[:, 1]
    return (plain, mean) if beta is None else beta * plain + (1 - beta) * mean


@lru_cache(maxsize=4)
def _predictor(
    model: keras.Model,
    shape: tuple[int, ...],
    dtype: str,
    numbers: tuple[int, ...],
    scale: float,
    flip: bool,
    from_logits: bool,
    seed: int,
) -> keras.Model:
    """A model from images to the plain prediction and the mean over the views; cached, so the next split reuses it.

    It shares its layers with `model`, so further training changes both.
    """
    transforms, network = _split(model, shape[:2])
    layer = TestTimeViews(transforms, network, numbers, scale, flip, from_logits, seed)
    source = keras.Input(shape, dtype=dtype)
    return keras.Model(source, layer(source))


def _ends_in_softmax(model: keras.Model) -> bool:
    last = model.layers[-1]
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def _split(model: keras.Model, shape: tuple[int, ...]) -> tuple[RandomTransforms, keras.Model]:
    """The transforms at the beginning of a model and the rest of it; identity transforms if it has none."""
    for layer in model.layers:
        if isinstance(layer, RandomTransforms) and layer.input is model.inputs[0]:
            return layer, keras.Model(layer.output, model.outputs[0])
    if not hasattr(model, "output_shape"):
        raise InputError(
            f"model {model.name!r}: must be a functional or sequential model with an input, not a subclass."
        )
    size = (shape[0], shape[1])
    return RandomTransforms(size, max_rotate=0.0, max_zoom=1.0, max_lighting=0.0, max_warp=0.0), model
