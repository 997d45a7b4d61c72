"""Fits images to the one size that a run was trained on: the same photo gives the same pixels everywhere.

Training decides the size once and records it in the run folder (`result.json`, `data.image_size`). Prediction,
evaluation, serving, exports and the model card's code all fit a photo by `fit` or by its exact restatement
`resize_matrices`.
"""

from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["crop", "squish"]

HALF_BITS = 11
"""Pillow's filter weights are multiples of 2**-22 for 8-bit images (`Resample.c`); a matrix holds 11 of these bits."""


def fit(image: Image.Image, height: int, width: int, resize: Resize) -> Image.Image:
    """Resizes an upright RGB image, bilinear with antialiasing; one that has the size already is returned unchanged.

    Args:
        image: RGB.
        height, width: wanted size, in pixels.
        resize: `"crop"` keeps the aspect ratio and crops the centre; `"squish"` changes the aspect ratio.
    """
    left, top, right, bottom = _box(image.height, image.width, height, width, resize)
    if (right - left, bottom - top) == (width, height):
        return image.crop((left, top, left + width, top + height))
    # One direction after the other: which Pillow takes first, and so how it rounds, differs between its releases.
    wide = image.resize((width, image.height), Image.Resampling.BILINEAR, box=(left, 0, right, image.height))
    return wide.resize((width, height), Image.Resampling.BILINEAR, box=(0, top, width, bottom))


def fit_batch(images: np.ndarray, height: int, width: int, resize: Resize) -> np.ndarray:
    """`fit` for every image of a uint8 batch `(number, height, width, 3)`; a batch of the wanted size is not copied."""
    if images.shape[1:3] == (height, width):
        return images
    return np.stack([np.asarray(fit(Image.fromarray(np.asarray(image)), height, width, resize)) for image in images])


def resize_matrices(
    source_height: int, source_width: int, height: int, width: int, resize: Resize
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`fit` as matrix products, bit by bit, for programs that have no Pillow.

    Columns first, then rows: with the pair `(high, low)` of a direction and pixels `x` along it, the new pixels are
    `floor((high @ x + floor(low @ x / 2**11) + 2**10) / 2**11)`, clipped to 0-255. Every intermediate number is a
    whole one that float32 holds exactly.

    Returns:
        The pair for the rows, float32 `(height, source_height)`, and that for the columns, `(width, source_width)`.
    """
    left, top, right, bottom = _box(source_height, source_width, height, width, resize)
    return _weights(source_height, height, top, bottom), _weights(source_width, width, left, right)


def _box(
    source_height: int, source_width: int, height: int, width: int, resize: Resize
) -> tuple[int, int, float, float]:
    """Left, top, right and bottom edge of the part of the source that is kept, in pixels."""
    box_width, box_height = float(source_width), float(source_height)
    if resize == "crop":
        scale = min(source_width / width, source_height / height)
        box_width, box_height = min(scale * width, box_width), min(scale * height, box_height)
    # Whole pixels, so that a crop that needs no resize copies them as they are.
    left, top = int((source_width - box_width) / 2), int((source_height - box_height) / 2)
    return left, top, left + box_width, top + box_height


def _weights(source: int, target: int, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """High and low bits of the weight of every source pixel in every target pixel, by Pillow's triangle filter."""
    # Pillow takes the edges of the box as float32; in float64 a weight could round otherwise.
    first_edge, last_edge = np.float32(start), np.float32(end)
    scale = float(last_edge - first_edge) / target
    support = max(scale, 1.0)
    matrix = np.zeros((target, source), np.int64)
    for row in range(target):
        center = float(first_edge) + (row + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), source)
        weights = np.maximum(1 - np.abs((np.arange(first, last) - center + 0.5) / support), 0)
        weights /= weights.sum()
        matrix[row, first:last] = np.floor(weights * (1 << 2 * HALF_BITS) + 0.5)
    high, low = np.divmod(matrix, 1 << HALF_BITS)
    return high.astype(np.float32), low.astype(np.float32)
