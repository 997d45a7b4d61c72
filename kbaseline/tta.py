"""Test-time augmentation: average the probabilities of an image and of zoomed, mirrored views of it.

Views and weights follow fastai v1's `vision/tta.py`: four corners and their mirror images, each with the random warp,
rotation and lighting of training; result = beta · plain + (1 - beta) · mean of the views.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, cast, overload

import keras
import numpy as np
from keras import ops

from kbaseline.data.batches import ImageBatches
from kbaseline.devices.predict import predict_batches, prediction_batch_size
from kbaseline.devices.programs import kept, values
from kbaseline.errors import InputError
from kbaseline.geometry import flip, identity, resample, shrink, zoom
from kbaseline.models.graph import Call, output_kind, read_graph, takes_bytes
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
        from_logits: whether the network outputs logits: of several classes for a softmax, of one for a sigmoid.
        seed: seed of the random draws.
    """

    __test__ = False  # pytest would collect the class because of its name

    def __init__(
        self,
        transforms: RandomTransforms,
        network: keras.layers.Layer,
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
        if self.from_logits:
            outputs = ops.softmax(outputs) if outputs.shape[-1] > 1 else ops.sigmoid(outputs)
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
        layer = self.transforms
        return (
            input_shape[0],
            2,
            self.network.compute_output_shape((None, layer.height, layer.width, input_shape[-1]))[-1],
        )


@overload
def tta_predict(
    model: keras.Model,
    images: np.ndarray,
    views: int | Sequence[int] = 8,
    beta: float = 0.4,
    scale: float = 1.35,
    flip: bool = True,
    *,
    from_logits: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> np.ndarray: ...


@overload
def tta_predict(
    model: keras.Model,
    images: np.ndarray,
    views: int | Sequence[int] = 8,
    *,
    beta: None,
    scale: float = 1.35,
    flip: bool = True,
    from_logits: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def tta_predict(
    model: keras.Model,
    images: np.ndarray,
    views: int | Sequence[int],
    beta: None,
    scale: float = 1.35,
    flip: bool = True,
    *,
    from_logits: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[np.ndarray, np.ndarray]: ...


def tta_predict(
    model: keras.Model,
    images: np.ndarray,
    views: int | Sequence[int] = 8,
    beta: float | None = 0.4,
    scale: float = 1.35,
    flip: bool = True,
    *,
    from_logits: bool | None = None,
    batch_size: int | None = None,
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
        model: a functional or sequential Keras model from images to logits or probabilities `(batch, classes)`. What
            is compiled is kept as long as the model.
        images: uint8 or float `(number, height, width, channels)`, all of one size, 0-255; of a model without
            `RandomTransforms` and without `Rescaling` the range that it takes.
        views: the number of views, at least 1, or which ones: view i zooms into the corner at row i & 1, column
            (i >> 1) & 1.
        beta: weight of the plain prediction, in [0, 1]; None returns both parts.
        scale: magnification of a view, at least 1.
        flip: mirror views 4-7 (12-15, ...). Wrong for text and digits.
        from_logits: whether the model outputs logits, which get a softmax, or a sigmoid if there is one; None: it does
            unless it ends in a softmax or sigmoid, also inside a nested model, or in an average of such.
        batch_size: images per forward pass, where each image counts 1 + views times; at least one image is predicted
            at a time. Default: 256, fewer large ones on a CPU.
        seed: seed of the random draws.
        callbacks: Keras callbacks for `predict`, such as a progress bar.

    Returns:
        Float32 probabilities `(number, classes)`: `beta * plain + (1 - beta) * mean`; with `beta=None` the pair
        (plain, mean over the views).

    Raises:
        InputError: an argument is out of range; there are no images, or of a wrong shape, dtype or range; the model
            is neither functional nor sequential, or has several inputs or outputs; or `from_logits` is None and the
            end of the model shows neither.
    """
    numbers = _view_numbers(views)
    if beta is not None and not 0 <= beta <= 1:
        raise InputError(f"beta: must lie in [0, 1] or be None; got {beta}.")
    if not 1 <= scale < math.inf:
        raise InputError(f"scale: must be a finite number of at least 1; got {scale}.")
    outputs = tuple(getattr(model, "outputs", None) or ())
    # The tensors stand in the value too, so that their ids stay theirs.
    parts = kept(model, "parts", tuple(map(id, outputs)), lambda: (_Parts(model), outputs))[0]
    images = _checked(images, parts)
    from_logits = parts.gives_logits() if from_logits is None else from_logits
    shape, dtype = images.shape[1:], images.dtype.name
    key = (parts, shape, dtype, numbers, float(scale), bool(flip), bool(from_logits), int(seed))
    predictor = kept(model, "views", key, lambda: parts.predictor(*key[1:]))
    values(model, ())  # within a fit, brings back what the predictor shares with the model
    seen = (parts.transforms.height, parts.transforms.width) if parts.transforms else shape[:2]
    at_once = prediction_batch_size(256, math.prod(seen), batch_size) // (1 + len(numbers))
    batches = ImageBatches(images, batch_size=min(len(images), max(1, at_once)), pad=True)
    probabilities = predict_batches(predictor, batches, callbacks)
    plain, mean = probabilities[:, 0], probabilities[:, 1]
    return (plain, mean) if beta is None else beta * plain + (1 - beta) * mean


def _view_numbers(views: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(range(operator.index(views))) if np.ndim(views) == 0 else tuple(map(operator.index, views))
    except TypeError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise InputError(f"views: must be at least 1, or a list of view numbers from 0; got {views!r}.")
    return numbers


class _Parts:
    """A model taken apart: the transforms at its beginning, the rest of it, and how it ends."""

    def __init__(self, model: keras.Model) -> None:
        self.graph = read_graph(model)
        first = next((call for call in self.graph.calls if self._is_first(call)), None)
        self.transforms: RandomTransforms | None = None if first is None else first.operation
        self.network = model if first is None else self._rest(first)

    def _is_first(self, call: Call) -> bool:
        return isinstance(call.operation, RandomTransforms) and self._is_source(call.inputs[0])

    def _is_source(self, tensor: Any) -> bool:
        """Whether the tensor is the model's input, or that of a nested model at the beginning."""
        call = self.graph.maker(tensor)
        return call is None or (call.is_door and self._is_source(call.inputs[0]))

    def _rest(self, first: Call) -> keras.layers.Layer:
        try:
            return self.graph.part(first.outputs[0], self.graph.output)
        except ValueError:
            raise InputError(
                f"layer {first.path!r}: the output must depend on the image only through these transforms."
            ) from None

    def gives_logits(self) -> bool:
        kind = output_kind(self.graph)
        if kind is None:
            last = next(call for call in reversed(self.graph.calls) if not call.is_door)
            raise InputError(
                f"from_logits: the model ends in {last.path!r} ({type(last.operation).__name__}), which does not show "
                "whether it gives logits; set from_logits to True or False."
            )
        return kind == "logits"

    def predictor(
        self,
        shape: tuple[int, int, int],
        dtype: str,
        numbers: tuple[int, ...],
        scale: float,
        flip: bool,
        from_logits: bool,
        seed: int,
    ) -> keras.Model:
        """A model from images to the plain prediction and the mean over the views; its layers are the model's own."""
        transforms = self.transforms or RandomTransforms(
            shape[:2], max_rotate=0.0, max_zoom=1.0, max_lighting=0.0, max_warp=0.0
        )
        source = keras.Input(shape, dtype=dtype)
        return keras.Model(
            source, TestTimeViews(transforms, self.network, numbers, scale, flip, from_logits, seed)(source)
        )


def _checked(images: Any, parts: _Parts) -> np.ndarray:
    """The images as an array, uint8 or float32; or an `InputError`."""
    if not hasattr(images, "dtype"):
        try:
            images = np.asarray(images)
        except ValueError:
            raise InputError("images: must be one array, all of one size; got images of several sizes.") from None
    if not len(images.shape) or not images.shape[0]:
        raise InputError("images: must hold at least one image; got none.")
    if len(images.shape) != 4:
        raise InputError(
            f"images: must be (number, height, width, channels); got {tuple(images.shape)}. Give one image as "
            "images[None]."
        )
    wanted = parts.graph.input.shape
    sizes = zip(wanted[1:], images.shape[1:], strict=False)
    if len(wanted) != 4 or any(size not in (None, given) for size, given in sizes):
        raise InputError(f"images: must be {tuple(wanted)}, the model's input; got {tuple(images.shape)}.")
    if images.dtype == np.uint8:
        return cast(np.ndarray, images)
    if not (np.issubdtype(images.dtype, np.floating) or np.issubdtype(images.dtype, np.integer)):
        raise InputError(f"images: must be uint8 or float; got {images.dtype}.")
    pixels: np.ndarray = np.asarray(images, np.float32)
    low, high = pixels.min(), pixels.max()
    if parts.transforms is not None and not (low >= 0 and high <= 255):
        raise InputError(f"images: values must lie in 0-255; got {low:g} to {high:g}.")
    if 0 < high <= 1 and (parts.transforms is not None or takes_bytes(parts.graph)):
        raise InputError(
            f"images: values must lie in 0-255, for the model rescales them; got 0-1 ({high:g} at most). Multiply by "
            "255."
        )
    return pixels
