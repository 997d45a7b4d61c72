"""Lays one small grey image over another and measures how well they agree, to tell copies from other shots."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 48
"""Side of the thumbnails, in pixels: fine enough for edges, coarse enough to be fast."""

_LEVELS = ((4, 12, 0.7), (2, 10, 0.8), (1, 8, -1.0))
"""(reduction, iterations, least correlation), coarse to fine; pairs below it are not looked at further. Of the copies
in CIFAR-10 and among photos of waste, 99 % are above 0.79 and 0.92."""

_CELL = 6
"""Side of the cells in which the fine structure is compared, in pixels of a thumbnail."""

_STRUCTURED = 0.5
"""A cell counts if it has this much of the mean structure of all, in either image; an empty ground agrees by chance."""

_WORST = 0.2
"""Share of the cells that may agree less than the measure says."""

_LEAST_OVERLAP = 0.45
_LEAST_SCALE, _MOST_SCALE, _MOST_STRETCH, _MOST_ANGLE = 0.6, 1.7, 1.35, 12.0


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A grey image of `SIDE` x `SIDE` pixels, each the mean of what it covers; of a smaller image, interpolated.

    Args:
        image: uint8 `(height, width, 3)`.

    Returns:
        float32 `(SIDE, SIDE)`, 0-255.
    """
    # Means of less than a pixel are steps, and the steps of two copies fall on different places.
    how = Image.Resampling.BOX if min(image.shape[:2]) >= SIDE else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).convert("L").resize((SIDE, SIDE), how), np.float32)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far pairs of thumbnails are the same picture, cropped, stretched, mirrored or coloured otherwise.

    The second is laid over the first by the affine map that maximises their correlation, as it is and mirrored (the
    enhanced correlation coefficient: Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113), coarse to fine. The
    measure is the correlation of their fine structure there: without the shading, in which all photos of a thing on one
    background agree. It is taken over the whole and in cells; of both the lower counts, for two bottles share their
    outline and not their label.

    Args:
        first: float32 `(pairs, SIDE, SIDE)`.
        second: the same.

    Returns:
        float64 `(pairs,)`, -1 to 1; copies are above 0.85, mostly above 0.9.
    """
    best = np.full(len(first), -1.0)
    for other in (second, second[:, :, ::-1]):
        best = np.maximum(best, _agreement(first, np.ascontiguousarray(other)))
    return best


def _agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    found = np.full(len(first), -1.0)
    alive = np.arange(len(first))
    maps = _identity(len(first))
    for factor, iterations, least in _LEVELS:
        a, b = _reduced(first[alive], factor), _reduced(second[alive], factor)
        aligned = _align(a, b, maps, iterations)
        maps = np.where(_plausible(aligned)[:, None, None], aligned, _identity(len(aligned)))
        hopeful = _correlation(a, b, maps)[0] >= least
        alive, maps = alive[hopeful], maps[hopeful]
        if not len(alive):
            return found
    a, b = _fine(first[alive]), _fine(second[alive])
    correlation, overlap = _correlation(a, b, maps)
    agreed = np.minimum(correlation, _in_cells(a, b, maps))
    found[alive] = np.where(overlap >= _LEAST_OVERLAP, agreed, -1)
    return found


def _identity(number: int) -> np.ndarray:
    return np.tile(np.eye(2, 3, dtype=np.float32), (number, 1, 1))


def _reduced(images: np.ndarray, factor: int) -> np.ndarray:
    side = images.shape[1] // factor
    means: np.ndarray = images.reshape(len(images), side, factor, side, factor).mean((2, 4))
    return means


def _fine(images: np.ndarray) -> np.ndarray:
    return np.stack([image - gaussian_filter(image, SIDE / 16) for image in images])


def _align(first: np.ndarray, second: np.ndarray, maps: np.ndarray, iterations: int) -> np.ndarray:
    """Improves maps from `first` to `second`, `(pairs, 2, 3)`, by Gauss-Newton on the normalised difference."""
    side = first.shape[-1]
    template = first.reshape(len(first), -1)
    slope_y, slope_x = np.gradient(second, axis=(1, 2))
    for _ in range(iterations):
        x, y, grid = _places(maps, side)
        corners = _corners(x, y, side)
        inside = corners.inside
        a, b, length = _unit(template, inside)[0], *_unit(corners.values(second), inside)
        scale = inside * (side / 2) / length
        slopes = np.stack([corners.values(slope_x) * scale, corners.values(slope_y) * scale], 1)
        # How the values change with each of the six numbers of a map.
        change = (slopes[:, :, None] * grid).reshape(len(maps), 6, -1)
        change -= (change.sum(2) / inside.sum(1, keepdims=True).clip(1))[..., None] * inside[:, None]
        # A change of contrast is free.
        change -= (change @ b[..., None]) * b[:, None]
        correlation = (a * b).sum(1, keepdims=True)
        rest = a / np.maximum(correlation, 0.2) - b
        normal = change @ change.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-6
        step = np.linalg.solve(normal + np.eye(6, dtype=np.float32) * damping, change @ rest[..., None])
        maps = maps + np.clip(step[..., 0], -0.15, 0.15).reshape(-1, 2, 3)
    return maps


def _places(maps: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each pixel of the first lies in the second, in pixels `(pairs, side²)`; and the pixels' own grid."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(line, line)
    grid = np.stack([x.ravel(), y.ravel(), np.ones(side * side, np.float32)])
    there = ((maps @ grid + 1) * side - 1) / 2
    return there[:, 0], there[:, 1], grid


@dataclass(frozen=True, eq=False)
class _Corners:
    """Places in images between whose pixels they lie; arrays are `(pairs, places)`.

    Attributes:
        first: int, the upper left pixel of each, counted through all images.
        right: float32, how far it lies to the right of that pixel.
        down: the same downwards.
        inside: 1 where a place is in the image, else 0.
        side: pixels a side.
    """

    first: np.ndarray
    right: np.ndarray
    down: np.ndarray
    inside: np.ndarray
    side: int

    def values(self, images: np.ndarray) -> np.ndarray:
        """Bilinear values of images `(pairs, side, side)`."""
        # Without checks, which cost more than the values: `first` is in range.
        at = [images.ravel().take(self.first + offset, mode="clip") for offset in (0, 1, self.side, self.side + 1)]
        upper = at[0] + (at[1] - at[0]) * self.right
        lower = at[2] + (at[3] - at[2]) * self.right
        found: np.ndarray = upper + (lower - upper) * self.down
        return found


def _corners(x: np.ndarray, y: np.ndarray, side: int) -> _Corners:
    inside = (x >= 0) & (x <= side - 1) & (y >= 0) & (y <= side - 1)
    left, top = (np.clip(np.floor(place), 0, side - 2) for place in (x, y))
    first = (top * side + left).astype(np.int64) + np.arange(len(x))[:, None] * side**2
    return _Corners(first, np.clip(x - left, 0, 1), np.clip(y - top, 0, 1), inside.astype(np.float32), side)


def _unit(values: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values inside with mean 0 and length 1, and the length they had; rows are pairs."""
    mean = (values * inside).sum(1, keepdims=True) / inside.sum(1, keepdims=True).clip(1)
    centred = (values - mean) * inside
    # Of a blank image: below a grey value or two nothing is to be seen.
    length = np.sqrt((centred**2).sum(1, keepdims=True)).clip(1e-3)
    return centred / length, length


def _correlation(first: np.ndarray, second: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of the pairs where they overlap, and the share of the first that does."""
    x, y, _ = _places(maps, first.shape[-1])
    corners = _corners(x, y, first.shape[-1])
    values, inside = corners.values(second), corners.inside
    a, b = _unit(first.reshape(len(first), -1), inside)[0], _unit(values, inside)[0]
    return (a * b).sum(1), inside.mean(1)


def _in_cells(first: np.ndarray, second: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The correlation that all but the worst of the structured cells reach; -1 where too few have structure."""
    x, y, _ = _places(maps, SIDE)
    corners = _corners(x, y, SIDE)
    values, inside = corners.values(second), corners.inside
    (a, length_a), (b, length_b) = (
        _unit(_cells(part).reshape(-1, _CELL**2), _cells(inside).reshape(-1, _CELL**2)) for part in (first, values)
    )
    shape = (len(first), -1)
    correlation = (a * b).sum(1).reshape(shape)
    structured = _cells(inside).mean(-1) > 0.8
    energies = [length.reshape(shape) ** 2 for length in (length_a, length_b)]
    structured &= np.any([energy > _STRUCTURED * energy.mean(1, keepdims=True) for energy in energies], axis=0)
    return np.array(
        [
            np.quantile(row[used], _WORST) if used.sum() >= 3 else -1.0
            for row, used in zip(correlation, structured, strict=True)
        ]
    )


def _cells(images: np.ndarray) -> np.ndarray:
    """Cuts images into cells, `(pairs, cells, pixels)`."""
    number = SIDE // _CELL
    cut = images.reshape(len(images), number, _CELL, number, _CELL).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(images), number**2, _CELL**2)


def _plausible(maps: np.ndarray) -> np.ndarray:
    """Whether a map is a crop, a stretch and a small turn, and no other distortion."""
    linear = maps[:, :, :2]
    scales = np.linalg.svd(linear, compute_uv=False)
    angle = np.degrees(np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]))
    scaled = (scales[:, 0] < _MOST_SCALE) & (scales[:, 1] > _LEAST_SCALE)
    even = scales[:, 0] < _MOST_STRETCH * scales[:, 1]
    likely: np.ndarray = scaled & even & (np.abs(angle) < _MOST_ANGLE) & (np.linalg.det(linear) > 0)
    return likely
