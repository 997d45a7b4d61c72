"""fastai's `get_transforms` as one Keras layer: resize, warp, rotation, zoom and flip in ONE resample, then lighting.

Ranges, probabilities and order are fastai v1's (`vision/transform.py`). Composing the geometry into a single homography
and sampling the source pixels once, as fastai does, keeps the sharpness that a chain of resamples loses.

Coordinates are (x, y) with -1 and 1 at the centres of the edge pixels (align-corners). A matrix maps a place in the
output to the place in the source it shows.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kbaseline.errors import InputError

# Columns of the table of uniform random numbers that `RandomTransforms` draws.
_WARP, _ROTATE, _ZOOM, _ZOOM_ROW, _ZOOM_COL, _FLIP = range(6)
_P_WARP, _P_ROTATE, _P_ZOOM, _M0 = range(6, 10)  # _M0 is the first of the warp's four magnitudes
_GEOMETRY_DRAWS = 13
_BRIGHTNESS, _CONTRAST, _P_BRIGHTNESS, _P_CONTRAST = range(4)
_LIGHTING_DRAWS = 4


def identity(count: int) -> Any:
    """`count` homographies that change nothing, float32 `(count, 3, 3)`."""
    return ops.tile(ops.eye(3)[None], (count, 1, 1))


def rotation(degrees: Any) -> Any:
    """Rotations by `degrees` `(batch,)`; float32 `(batch, 3, 3)`, to be made isotropic by `for_aspect`."""
    angle = ops.cast(degrees, "float32") * (math.pi / 180)
    cos, sin = ops.cos(angle), ops.sin(angle)
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], ops.shape(cos)[0])


def for_aspect(affines: Any, height: int, width: int) -> Any:
    """Affine maps that keep angles on images of `height` x `width` pixels, whose coordinates are both -1..1.

    fastai's `_affine_mult`: where a map mixes x and y, it does so in pixels; where it shifts, it is left alone.
    """
    ratio = height / width
    return affines * ops.convert_to_tensor([[1.0, ratio, 1.0], [1 / ratio, 1.0, 1.0], [1.0, 1.0, 1.0]], "float32")


def zoom(scale: Any, row_pct: Any, col_pct: Any) -> Any:
    """Magnifications by `scale` into the place at `row_pct`, `col_pct` (0 top or left, 1 bottom or right).

    All three are `(batch,)`; returns float32 `(batch, 3, 3)`.
    """
    inverse = 1.0 / ops.cast(scale, "float32")
    shift_x = (1 - inverse) * (2 * ops.cast(col_pct, "float32") - 1)
    shift_y = (1 - inverse) * (2 * ops.cast(row_pct, "float32") - 1)
    rows = [[inverse, 0.0, shift_x], [0.0, inverse, shift_y], [0.0, 0.0, 1.0]]
    return _matrix(rows, ops.shape(inverse)[0])


def flip(mirror: Any) -> Any:
    """Left-right mirrors where `mirror` `(batch,)` is true; float32 `(batch, 3, 3)`."""
    sign = ops.where(mirror, -1.0, 1.0)
    return _matrix([[sign, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], ops.shape(sign)[0])


def dihedral(k: Any) -> Any:
    """The eight flips and quarter turns: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps them; `k` `(batch,)`, 0..7."""
    k = ops.cast(k, "int32")
    x, y = ops.where(k % 2 > 0, -1.0, 1.0), ops.where(k // 2 % 2 > 0, -1.0, 1.0)
    swap = ops.cast(k // 4 > 0, "float32")
    rows = [[x * (1 - swap), x * swap, 0.0], [y * swap, y * (1 - swap), 0.0], [0.0, 0.0, 1.0]]
    return _matrix(rows, ops.shape(x)[0])


def symmetric_warp(magnitudes: Any) -> Any:
    """Perspective warps by four `magnitudes` `(batch, 4)` of the corners; float32 `(batch, 3, 3)`.

    Each is the homography that sends the moved corners `targ` back to the image's own corners (fastai's
    `_find_coeffs`), found as the ratio of two maps from the unit square (P. Heckbert, 1989), which needs no solver.
    """
    m0, m1, m2, m3 = (magnitudes[:, i] for i in range(4))
    top_left, bottom_left = (-1 - m3, -1 - m1), (-1 - m2, 1 + m1)
    top_right, bottom_right = (1 + m3, -1 - m0), (1 + m2, 1 + m0)
    return perspective([top_left, bottom_left, top_right, bottom_right])


def perspective(corners: list[tuple[Any, Any]]) -> Any:
    """Homographies sending four corners to those of the image; float32 `(batch, 3, 3)`, lower right element 1.

    Args:
        corners: (x, y), each `(batch,)`, that top left, bottom left, top right and bottom right come from.
    """
    (x0, y0), (x3, y3), (x1, y1), (x2, y2) = corners
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    g, h = (dx3 * dy2 - dx2 * dy3) / det, (dx1 * dy3 - dx3 * dy1) / det
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    # The adjugate inverts the unit-square-to-corners map up to a factor, which a homography does not see.
    unit = [
        [e - f * h, c * h - b, b * f - c * e],
        [f * g - d, a - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    # From the unit square to -1..1: x -> 2x - 1.
    rows = [[2 * p - r for p, r in zip(unit[i], unit[2], strict=True)] for i in (0, 1)] + [unit[2]]
    scale = rows[2][2]
    return ops.stack([ops.stack([value / scale for value in row], axis=-1) for row in rows], axis=-2)


def compose(*matrices: Any) -> Any:
    """Product of `(batch, 3, 3)` matrices, the first one the last to act on a place in the output.

    In full float32, which a GPU's matrix units would not give: a coordinate rounded to bfloat16 is off by pixels.
    """
    product, *rest = matrices
    for matrix in rest:
        product = ops.sum(product[..., :, :, None] * matrix[..., None, :, :], axis=-2)
    return product


def resample(images: Any, matrices: Any, height: int, width: int) -> Any:
    """Samples images bilinearly, once, with reflection about the centres of the edge pixels.

    Args:
        images: uint8 or float `(batch, source_height, source_width, channels)`.
        matrices: float32 `(batch, 3, 3)`, from places in the output to places in the source.
        height, width: of the output, in pixels.

    Returns:
        float32 `(batch, height, width, channels)` in the images' range.
    """
    batch, source_height, source_width, channels = ops.shape(images)
    x, y = np.meshgrid(_centres(width), _centres(height))
    grid = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype("float32")
    at = sum(matrices[:, :, i : i + 1] * grid[i] for i in range(3))
    columns = _reflect(_pixels(at[:, 0] / at[:, 2], source_width), source_width)
    rows = _reflect(_pixels(at[:, 1] / at[:, 2], source_height), source_height)
    left = ops.clip(ops.floor(columns), 0, max(source_width - 2, 0))
    top = ops.clip(ops.floor(rows), 0, max(source_height - 2, 0))
    right_share, bottom_share = (columns - left)[..., None], (rows - top)[..., None]
    left, top = ops.cast(left, "int32"), ops.cast(top, "int32")
    right, bottom = ops.minimum(left + 1, source_width - 1), ops.minimum(top + 1, source_height - 1)
    pixels = ops.reshape(images, (batch, source_height * source_width, channels))

    def pick(row: Any, column: Any) -> Any:
        index = (row * source_width + column)[..., None]
        return ops.cast(ops.take_along_axis(pixels, index, axis=1), "float32")

    upper = pick(top, left) * (1 - right_share) + pick(top, right) * right_share
    lower = pick(bottom, left) * (1 - right_share) + pick(bottom, right) * right_share
    return ops.reshape(upper * (1 - bottom_share) + lower * bottom_share, (batch, height, width, channels))


def shrink(images: Any, height: int, width: int) -> Any:
    """Averages images that are more than twice the target, so that the bilinear resample does not skip pixels.

    Args:
        images: `(batch, source_height, source_width, channels)`.
        height, width: what the images will be resampled to.

    Returns:
        The images untouched, or float32 ones of about twice the target.
    """
    source_height, source_width = images.shape[1:3]
    factor = min(source_height / height, source_width / width) / 2
    if factor <= 1:
        return images
    target = (math.floor(source_height / factor), math.floor(source_width / factor))
    return ops.image.resize(ops.cast(images, "float32"), target, interpolation="bilinear", antialias=True)


def resize(images: Any, height: int, width: int) -> Any:
    """Plain bilinear align-corners resize, what validation images get; float32 `(batch, height, width, channels)`."""
    images = shrink(images, height, width)
    return resample(images, identity(ops.shape(images)[0]), height, width)


def adjust_lighting(images: Any, brightness: Any, contrast: Any) -> Any:
    """Brightness and contrast in logit space: σ((logit(x) + logit(brightness)) · contrast), one sigmoid for both.

    Args:
        images: float32 `(batch, height, width, channels)`, 0-255.
        brightness: `(batch,)` in (0, 1), 0.5 changes nothing.
        contrast: `(batch,)` above 0, 1 changes nothing.

    Returns:
        float32 images of the same shape, 0-255.
    """
    x = ops.clip(images / 255.0, 1e-7, 1 - 1e-7)
    shift = ops.log(brightness / (1 - brightness))[:, None, None, None]
    logits = ops.log(x) - ops.log1p(-x)
    return ops.sigmoid((logits + shift) * contrast[:, None, None, None]) * 255.0


@keras.saving.register_keras_serializable(package="kbaseline")
class RandomTransforms(keras.layers.Layer):  # type: ignore[misc]
    """fastai's random transforms when training, a plain resize otherwise.

    Takes uint8 or float images `(batch, height, width, channels)` of any size, 0-255; gives float32
    `(batch, size, size, channels)`, 0-255. Per image and independently: symmetric warp, then rotation and zoom (each
    with `p_affine`), resize included, in one resample with reflection at the borders; then brightness U(0.5 ±
    max_lighting / 2) and contrast log-uniform up to 1 / (1 - max_lighting) (each with `p_lighting`).

    Args:
        size: of the output in pixels: its side, or (height, width).
        do_flip: mirror left-right with probability a half.
        flip_vert: any of the eight flips and quarter turns instead.
        max_rotate: degrees, either way.
        max_zoom: largest magnification, at least 1.
        max_lighting: strength of brightness and contrast, in [0, 1).
        max_warp: strength of the perspective warp, in [0, 1).
        p_affine: probability of each of warp, rotation and zoom.
        p_lighting: probability of each of brightness and contrast.
        seed: fixes the draws.
        **kwargs: `keras.layers.Layer`'s other arguments.

    Raises:
        InputError: a strength outside its range.
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
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # The output is float32 whatever the policy: bfloat16 has no fractions of a level above 128.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        for name, value, low, high in (
            ("max_zoom", max_zoom, 1, math.inf),
            ("max_rotate", max_rotate, 0, 180),
            ("max_lighting", max_lighting, 0, 0.999),
            ("max_warp", max_warp, 0, 0.999),
            ("p_affine", p_affine, 0, 1),
            ("p_lighting", p_lighting, 0, 1),
        ):
            if not low <= value <= high:
                raise InputError(f"RandomTransforms: {name} must lie in [{low}, {high}]; got {value}.")
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.seed = seed
        self.do_flip, self.flip_vert = do_flip, flip_vert
        self.max_rotate, self.max_zoom = max_rotate, max_zoom
        self.max_lighting, self.max_warp = max_lighting, max_warp
        self.p_affine, self.p_lighting = p_affine, p_lighting
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Transforms (training) or resizes (otherwise) a batch."""
        if not training:
            return resize(images, self.height, self.width)
        images = shrink(images, self.height, self.width)
        batch, height, width, _ = ops.shape(images)
        draws, light = self.draws(batch, self.seed_generator)
        matrices = self.geometry(draws, self.random_zoom(draws), self.random_flip(draws), height, width)
        return self.random_lighting(resample(images, matrices, self.height, self.width), light)

    def draws(self, batch: int, seed: Any) -> tuple[Any, Any]:
        """Uniform random numbers for a batch: float32 `(batch, 13)` for geometry, `(batch, 4)` for lighting."""
        table = keras.random.uniform((batch, _GEOMETRY_DRAWS + _LIGHTING_DRAWS), seed=seed)
        return table[:, :_GEOMETRY_DRAWS], table[:, _GEOMETRY_DRAWS:]

    def geometry(self, draws: Any, zooms: Any, flips: Any, height: int, width: int) -> Any:
        """One homography an image, in fastai's order: quarter turn · rotation · zoom · warp · flip.

        Args:
            draws: uniform float32 `(batch, 13)`.
            zooms, flips: `(batch, 3, 3)`, drawn by the two methods below, or fixed for a test-time view.
            height, width: of the source, in pixels.
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
        """Zooms `(batch, 3, 3)` into random places, from uniform `draws` `(batch, 13)`."""
        scale = ops.where(draws[:, _P_ZOOM] < self.p_affine, 1 + draws[:, _ZOOM] * (self.max_zoom - 1), 1.0)
        return zoom(scale, draws[:, _ZOOM_ROW], draws[:, _ZOOM_COL])

    def random_flip(self, draws: Any) -> Any:
        """Mirrors `(batch, 3, 3)` with probability a half if `do_flip`, from uniform `draws` `(batch, 13)`."""
        if self.do_flip and not self.flip_vert:
            return flip(draws[:, _FLIP] < 0.5)
        return identity(ops.shape(draws)[0])

    def random_lighting(self, images: Any, draws: Any) -> Any:
        """Brightness and contrast from uniform `draws` `(batch, 4)`; images where neither is drawn stay exact."""
        if not self.max_lighting:
            return images
        change = draws[:, _P_BRIGHTNESS] < self.p_lighting, draws[:, _P_CONTRAST] < self.p_lighting
        brightness = ops.where(change[0], 0.5 + (draws[:, _BRIGHTNESS] - 0.5) * self.max_lighting, 0.5)
        span = -math.log(1 - self.max_lighting)
        contrast = ops.where(change[1], ops.exp((2 * draws[:, _CONTRAST] - 1) * span), 1.0)
        either = ops.logical_or(*change)[:, None, None, None]
        return ops.where(either, adjust_lighting(images, brightness, contrast), images)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(batch, height, width, channels)`, those of `size`."""
        return (input_shape[0], self.height, self.width, input_shape[-1])

    def compute_output_spec(self, images: Any, training: bool | None = None) -> keras.KerasTensor:
        """Shape and dtype, without tracing, since the input's size may be unknown."""
        return keras.KerasTensor(self.compute_output_shape(images.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        names = ("do_flip", "flip_vert", "max_rotate", "max_zoom", "max_lighting", "max_warp")
        own = {name: getattr(self, name) for name in (*names, "p_affine", "p_lighting", "seed")}
        return {**super().get_config(), "size": (self.height, self.width), **own}


def _matrix(rows: list[list[Any]], batch: int) -> Any:
    """`(batch, 3, 3)` from elements that are `(batch,)` or plain numbers."""
    ones = ops.ones((batch,))
    return ops.stack([ops.stack([ones * value for value in row], axis=-1) for row in rows], axis=-2)


def _centres(count: int) -> np.ndarray:
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(1)


def _pixels(place: Any, count: int) -> Any:
    """Places in -1..1 in pixels, 0..count-1; float32's noise about a pixel's centre goes, so that no move is exact."""
    position = (place + 1) * ((count - 1) / 2)
    nearest = ops.round(position)
    return ops.where(ops.abs(position - nearest) < 2.5e-7 * count, nearest, position)


def _reflect(position: Any, count: int) -> Any:
    """Folds a position in pixels back into 0..count-1, mirroring at the centres of the edge pixels."""
    if count == 1:
        return ops.zeros_like(position)
    period = 2.0 * (count - 1)
    folded = ops.abs(position) % period
    return ops.minimum(folded, period - folded)
