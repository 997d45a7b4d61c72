"""Perspective transforms (homographies), and bilinear resampling of images by them.

As in fastai v1 (`vision/image.py`), all geometry is composed into one matrix and the source pixels are sampled once.
A chain of resamples would blur the image.

Coordinates are (x, y), with -1 and 1 at the centres of the edge pixels (align-corners). A matrix maps a point of the
output to the point of the source that it shows.
"""

import math
from typing import Any

import numpy as np
from keras import ops


def identity(count: int) -> Any:
    """`count` identity homographies, float32 `(count, 3, 3)`."""
    return ops.tile(ops.eye(3)[None], (count, 1, 1))


def rotation(degrees: Any) -> Any:
    """Rotations by `degrees` `(batch,)`; float32 `(batch, 3, 3)`, for square images. See `for_aspect`."""
    angle = ops.cast(degrees, "float32") * (math.pi / 180)
    cos, sin = ops.cos(angle), ops.sin(angle)
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], ops.shape(cos)[0])


def for_aspect(affines: Any, height: int, width: int) -> Any:
    """Corrects affine maps for images of `height` x `width` pixels, so that rotations preserve angles.

    As fastai's `_affine_mult`: the terms that mix x and y are scaled by the aspect ratio, translations are unchanged.
    """
    ratio = height / width
    return affines * ops.convert_to_tensor([[1.0, ratio, 1.0], [1 / ratio, 1.0, 1.0], [1.0, 1.0, 1.0]], "float32")


def zoom(scale: Any, row_pct: Any, col_pct: Any) -> Any:
    """Zooms by `scale` towards the point at `row_pct`, `col_pct` (0 top or left, 1 bottom or right).

    All three are `(batch,)`; returns float32 `(batch, 3, 3)`.
    """
    inverse = 1.0 / ops.cast(scale, "float32")
    shift_x = (1 - inverse) * (2 * ops.cast(col_pct, "float32") - 1)
    shift_y = (1 - inverse) * (2 * ops.cast(row_pct, "float32") - 1)
    rows = [[inverse, 0.0, shift_x], [0.0, inverse, shift_y], [0.0, 0.0, 1.0]]
    return _matrix(rows, ops.shape(inverse)[0])


def flip(mirror: Any) -> Any:
    """Left-right flips where `mirror` `(batch,)` is true; float32 `(batch, 3, 3)`."""
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
    """Perspective warps by the displacements `magnitudes` `(batch, 4)` of the corners; float32 `(batch, 3, 3)`.

    Each is the homography that maps the moved corners back to the corners of the image (fastai's `_find_coeffs`). It
    is composed of two closed-form maps from the unit square (P. Heckbert, 1989), so no linear solver is needed.
    """
    m0, m1, m2, m3 = (magnitudes[:, i] for i in range(4))
    top_left, bottom_left = (-1 - m3, -1 - m1), (-1 - m2, 1 + m1)
    top_right, bottom_right = (1 + m3, -1 - m0), (1 + m2, 1 + m0)
    return perspective([top_left, bottom_left, top_right, bottom_right])


def perspective(corners: list[tuple[Any, Any]]) -> Any:
    """Homographies that map four points to the corners of the image; float32 `(batch, 3, 3)`, lower right element 1.

    Args:
        corners: the points (x, y), each `(batch,)`, for top left, bottom left, top right and bottom right.
    """
    (x0, y0), (x3, y3), (x1, y1), (x2, y2) = corners
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    g, h = (dx3 * dy2 - dx2 * dy3) / det, (dx1 * dy3 - dx3 * dy1) / det
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    # The adjugate inverts the unit-square-to-corners map up to a factor, which does not matter to a homography.
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
    """Product of `(batch, 3, 3)` matrices; the last one is applied first to a point of the output.

    Computed in full float32, without a GPU's matrix units: a coordinate rounded to bfloat16 is off by pixels.
    """
    product, *rest = matrices
    for matrix in rest:
        product = ops.sum(product[..., :, :, None] * matrix[..., None, :, :], axis=-2)
    return product


def resample(images: Any, matrices: Any, height: int, width: int) -> Any:
    """Samples images bilinearly, with reflection at the centres of the edge pixels.

    Args:
        images: uint8 or float `(batch, source_height, source_width, channels)`.
        matrices: float32 `(batch, 3, 3)`, from points of the output to points of the source.
        height, width: size of the output, in pixels.

    Returns:
        Float32 `(batch, height, width, channels)` in the range of the images.
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
    """Downscales images larger than twice the target with antialiasing, so that bilinear sampling skips no pixels.

    Args:
        images: `(batch, source_height, source_width, channels)`.
        height, width: the size the images will be resampled to.

    Returns:
        The images unchanged, or float32 images of about twice the target size.
    """
    source_height, source_width = images.shape[1:3]
    factor = min(source_height / height, source_width / width) / 2
    if factor <= 1:
        return images
    target = (math.floor(source_height / factor), math.floor(source_width / factor))
    return ops.image.resize(ops.cast(images, "float32"), target, interpolation="bilinear", antialias=True)


def resize(images: Any, height: int, width: int) -> Any:
    """Bilinear align-corners resize, as used in validation; float32 `(batch, height, width, channels)`.

    Uses stock Keras operations at constant positions, so it also works on symbolic images of known size.
    """
    images = ops.cast(shrink(images, height, width), "float32")
    return _stretch(_stretch(images, 2, width), 1, height)


def _stretch(images: Any, axis: int, target: int) -> Any:
    """Interpolates `target` pixels along one axis."""
    source = images.shape[axis]
    if source == target:
        return images
    position = _pixels(_centres(target).astype("float32"), source, np)
    left = np.clip(np.floor(position), 0, max(source - 2, 0)).astype("int32")
    right = np.minimum(left + 1, source - 1)
    share = (position - left.astype("float32")).reshape((-1,) + (1,) * (3 - axis))
    return ops.take(images, left, axis=axis) * (1 - share) + ops.take(images, right, axis=axis) * share


def _matrix(rows: list[list[Any]], batch: int) -> Any:
    """`(batch, 3, 3)` from elements that are `(batch,)` or plain numbers."""
    ones = ops.ones((batch,))
    return ops.stack([ops.stack([ones * value for value in row], axis=-1) for row in rows], axis=-2)


def _centres(count: int) -> np.ndarray:
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(1)


def _pixels(place: Any, count: int, numbers: Any = ops) -> Any:
    """Converts positions in -1..1 to pixels, 0..count-1, snapped to pixel centres so that an identity map is exact.

    `numbers` is the library to compute with, Keras' `ops` or NumPy; both give the same bits.
    """
    position = (place + 1) * ((count - 1) / 2)
    nearest = numbers.round(position)
    return numbers.where(numbers.abs(position - nearest) < 2.5e-7 * count, nearest, position)


def _reflect(position: Any, count: int) -> Any:
    """Folds a position in pixels back into 0..count-1, mirroring at the centres of the edge pixels."""
    if count == 1:
        return ops.zeros_like(position)
    period = 2.0 * (count - 1)
    folded = ops.abs(position) % period
    return ops.minimum(folded, period - folded)
