"""fastai's `get_transforms` as a Keras layer: resize, warp, rotation, zoom and flip in one resample, then lighting.

Ranges, probabilities and order are fastai v1's (`vision/transform.py`).
"""

import math
import operator
from typing import Any

import keras
import numpy as np
from keras import ops

from kbaseline.errors import InputError
from kbaseline.geometry import (
    compose,
    dihedral,
    flip,
    for_aspect,
    identity,
    resample,
    resize,
    rotation,
    shrink,
    symmetric_warp,
    zoom,
)

# Columns of the table of uniform random numbers that `RandomTransforms` draws.
_WARP, _ROTATE, _ZOOM, _ZOOM_ROW, _ZOOM_COL, _FLIP = range(6)
_P_WARP, _P_ROTATE, _P_ZOOM, _M0 = range(6, 10)  # _M0 is the first of four warp magnitudes
_GEOMETRY_DRAWS = 13
_BRIGHTNESS, _CONTRAST, _P_BRIGHTNESS, _P_CONTRAST = range(4)
_LIGHTING_DRAWS = 4


def adjust_lighting(images: Any, brightness: Any, contrast: Any) -> Any:
    """Brightness and contrast in logit space: σ((logit(x) + logit(brightness)) · contrast).

    Args:
        images: float32 `(batch, height, width, channels)`, 0-255.
        brightness: `(batch,)` in (0, 1); 0.5 means no change.
        contrast: `(batch,)` above 0; 1 means no change.

    Returns:
        float32 images of the same shape, 0-255.
    """
    x = ops.clip(images / 255.0, 1e-7, 1 - 1e-7)
    shift = ops.log(brightness / (1 - brightness))[:, None, None, None]
    logits = ops.log(x) - ops.log1p(-x)
    return ops.sigmoid((logits + shift) * contrast[:, None, None, None]) * 255.0


def _height_width(size: Any) -> tuple[int, int]:
    try:
        pair = (size, size) if np.ndim(size) == 0 else tuple(size)
        height, width = (operator.index(side) for side in pair)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"RandomTransforms: size must be a number of pixels or a pair of them, from 1; got {size!r}.")
    return height, width


@keras.saving.register_keras_serializable(package="kbaseline")
class RandomTransforms(keras.layers.Layer):  # type: ignore[misc]
    """fastai's random transforms when training, a plain resize otherwise.

    The first layer of a model. It takes uint8 or float images `(batch, height, width, channels)` of any size, 0-255,
    and returns float32 `(batch, size, size, channels)`, 0-255, smaller in training if `train_size` says so. Each image
    gets its own draws: symmetric warp, rotation and zoom (each with probability `p_affine`), applied together with the
    resize in one resample with reflection at the borders; then brightness U(0.5 ± max_lighting / 2) and contrast
    log-uniform up to 1 / (1 - max_lighting) (each with probability `p_lighting`). Ranges, probabilities and order are
    those of `get_transforms` in fastai v1's `vision/transform.py`.

    >>> import numpy as np
    >>> from kbaseline import RandomTransforms
    >>> photos = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype="uint8")
    >>> transforms = RandomTransforms(size=32, do_flip=True, seed=0)
    >>> transforms(photos, training=True).shape
    (4, 32, 32, 3)

    Args:
        size: output size in pixels: the side of a square, or (height, width).
        do_flip: mirror left-right with probability 0.5.
        flip_vert: apply one of the eight flips and quarter turns instead, all equally likely.
        max_rotate: largest rotation in either direction, in degrees, 0 to 180.
        max_zoom: largest magnification factor, at least 1.
        max_lighting: strength of brightness and contrast, in [0, 1).
        max_warp: strength of the perspective warp, in [0, 1).
        p_affine: probability of each of warp, rotation and zoom, 0 to 1.
        p_lighting: probability of each of brightness and contrast, 0 to 1.
        train_size: the longer side of the output in training, in pixels, if that of `size` is larger; None for `size`.
            Training is cheaper, and as a zoom in training enlarges things, a larger size without it shows them as large
            (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
        seed: fixes the random draws; None for a random seed.
        **kwargs: `keras.layers.Layer`'s other arguments.

    Raises:
        InputError: an argument is outside its range, or the images are not one batch of four axes.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        do_flip: bool = False,
        flip_vert: bool = False,
        max_rotate: float = 10.0,
        max_zoom: float = 1.1,
        max_lighting: float = 0.2,
        max_warp: float = 0.2,
        p_affine: float = 0.75,
        p_lighting: float = 0.75,
        train_size: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Always float32, under any policy: bfloat16 has no fractions of a level above 128.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        for name, value, low, high in (
            ("max_zoom", max_zoom, 1, math.inf),
            ("max_rotate", max_rotate, 0, 180),
            ("max_lighting", max_lighting, 0, 0.999),
            ("max_warp", max_warp, 0, 0.999),
            ("p_affine", p_affine, 0, 1),
            ("p_lighting", p_lighting, 0, 1),
        ):
            if not low <= value <= high or math.isinf(value):
                raise InputError(f"RandomTransforms: {name} must lie in [{low}, {high}]; got {value}.")
        self.height, self.width = _height_width(size)
        if train_size is not None and (type(train_size) is not int or train_size < 1):
            raise InputError(
                f"RandomTransforms: train_size must be a number of pixels from 1, or None; got {train_size!r}."
            )
        self.train_size = train_size
        self.seed = seed
        self.do_flip, self.flip_vert = do_flip, flip_vert
        self.max_rotate, self.max_zoom = max_rotate, max_zoom
        self.max_lighting, self.max_warp = max_lighting, max_warp
        self.p_affine, self.p_lighting = p_affine, p_lighting
        self.seed_generator = keras.random.SeedGenerator(seed)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' call, for one batch of images."""
        # Here and not in `call`, where Keras would wrap the message in a report of several lines.
        shape = getattr(images, "shape", None)
        if shape is None or len(shape) != 4:
            got = type(images).__name__ if shape is None else tuple(shape)
            raise InputError(
                f"RandomTransforms: images must be (batch, height, width, channels); got {got}. Give one image as "
                "images[None]."
            )
        return super().__call__(images, *args, **kwargs)

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Transforms a batch when training, otherwise only resizes it."""
        if not training:
            return resize(images, self.height, self.width)
        size = self.training_size
        images = shrink(images, *size)
        batch, height, width, _ = ops.shape(images)
        draws, light = self.draws(batch, self.seed_generator)
        matrices = self.geometry(draws, self.random_zoom(draws), self.random_flip(draws), height, width)
        return self.random_lighting(resample(images, matrices, *size), light)

    @property
    def training_size(self) -> tuple[int, int]:
        """Height and width of the output in training, in pixels."""
        longer = max(self.height, self.width)
        if self.train_size is None or longer <= self.train_size:
            return self.height, self.width
        height, width = (max(1, round(side * self.train_size / longer)) for side in (self.height, self.width))
        return height, width

    def draws(self, batch: int, seed: Any) -> tuple[Any, Any]:
        """Uniform random numbers for a batch: float32 `(batch, 13)` for geometry, `(batch, 4)` for lighting."""
        table = keras.random.uniform((batch, _GEOMETRY_DRAWS + _LIGHTING_DRAWS), seed=seed)
        return table[:, :_GEOMETRY_DRAWS], table[:, _GEOMETRY_DRAWS:]

    def geometry(self, draws: Any, zooms: Any, flips: Any, height: int, width: int) -> Any:
        """One homography per image, in fastai's order: quarter turn · rotation · zoom · warp · flip.

        Args:
            draws: uniform float32 `(batch, 13)`.
            zooms, flips: `(batch, 3, 3)`, from `random_zoom` and `random_flip`, or fixed for a test-time view.
            height, width: size of the input images, in pixels.
        """
        unmoved = identity(ops.shape(draws)[0])
        warps = symmetric_warp((2 * draws[:, _M0 : _M0 + 4] - 1) * self.max_warp)
        warps = ops.where((draws[:, _P_WARP] < self.p_affine)[:, None, None], warps, unmoved)
        turns = rotation((2 * draws[:, _ROTATE] - 1) * self.max_rotate)
        turns = ops.where((draws[:, _P_ROTATE] < self.p_affine)[:, None, None], turns, unmoved)
        if self.flip_vert:
            turns = compose(dihedral(ops.floor(draws[:, _FLIP] * 8)), turns)
        return compose(for_aspect(compose(turns, zooms), height, width), warps, flips)

    def random_zoom(self, draws: Any) -> Any:
        """Random zooms `(batch, 3, 3)` around random centres, from uniform `draws` `(batch, 13)`."""
        scale = ops.where(draws[:, _P_ZOOM] < self.p_affine, 1 + draws[:, _ZOOM] * (self.max_zoom - 1), 1.0)
        return zoom(scale, draws[:, _ZOOM_ROW], draws[:, _ZOOM_COL])

    def random_flip(self, draws: Any) -> Any:
        """Random mirrors `(batch, 3, 3)`, with probability 0.5 if `do_flip`, from uniform `draws` `(batch, 13)`."""
        if self.do_flip and not self.flip_vert:
            return flip(draws[:, _FLIP] < 0.5)
        return identity(ops.shape(draws)[0])

    def random_lighting(self, images: Any, draws: Any) -> Any:
        """Random brightness and contrast from uniform `draws` `(batch, 4)`; images with neither stay unchanged."""
        if not self.max_lighting:
            return images
        change = draws[:, _P_BRIGHTNESS] < self.p_lighting, draws[:, _P_CONTRAST] < self.p_lighting
        brightness = ops.where(change[0], 0.5 + (draws[:, _BRIGHTNESS] - 0.5) * self.max_lighting, 0.5)
        span = -math.log(1 - self.max_lighting)
        contrast = ops.where(change[1], ops.exp((2 * draws[:, _CONTRAST] - 1) * span), 1.0)
        either = ops.logical_or(*change)[:, None, None, None]
        return ops.where(either, adjust_lighting(images, brightness, contrast), images)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(batch, height, width, channels)`, with the height and width of `size`, or None where training's differ."""
        size = self.height, self.width
        sides = size if size == self.training_size else (None, None)
        return (input_shape[0], *sides, input_shape[-1])

    def compute_output_spec(self, images: Any, training: bool | None = None) -> keras.KerasTensor:
        """Shape and dtype of the output, without tracing, because the input size may be unknown."""
        return keras.KerasTensor(self.compute_output_shape(images.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        names = ("do_flip", "flip_vert", "max_rotate", "max_zoom", "max_lighting", "max_warp")
        own = {name: getattr(self, name) for name in (*names, "p_affine", "p_lighting", "train_size", "seed")}
        return {**super().get_config(), "size": (self.height, self.width), **own}
