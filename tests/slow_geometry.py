"""fastai v1's geometry in plain numpy, float64, pixel by pixel: what the tests hold ours against.

Nothing here comes from kbaseline. Places are (x, y), -1 and 1 at the centres of the edge pixels.
"""

import math

import numpy as np


def reflect(position: float, count: int) -> float:
    """Mirrors about the centres of the edge pixels until inside, one bounce at a time."""
    if count == 1:
        return 0.0
    while not 0 <= position <= count - 1:
        position = -position if position < 0 else 2 * (count - 1) - position
    return position


def centre(index: int, count: int) -> float:
    """-1 and 1 at the centres of the first and last pixel."""
    return 2 * index / (count - 1) - 1 if count > 1 else 0.0


def slow_resample(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, align-corners, reflecting, for one image `(height, width, channels)`."""
    image = image.astype(np.float64)
    rows, columns, channels = image.shape
    out = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            v = matrix @ np.array([centre(j, width), centre(i, height), 1.0])
            x = reflect((v[0] / v[2] + 1) / 2 * (columns - 1), columns)
            y = reflect((v[1] / v[2] + 1) / 2 * (rows - 1), rows)
            x0, y0 = min(int(x), max(columns - 2, 0)), min(int(y), max(rows - 2, 0))
            for row, share_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for column, share_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    out[i, j] += share_y * share_x * image[min(row, rows - 1), min(column, columns - 1)]
    return out


def rotate_matrix(degrees: float) -> np.ndarray:
    """fastai's `rotate`."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def for_aspect(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """fastai's `_affine_mult`: the off-diagonal of the whole affine matrix, its shift left alone."""
    matrix = matrix.copy()
    matrix[0, 1] *= height / width
    matrix[1, 0] *= width / height
    return matrix


def zoom_matrix(scale: float, row: float, column: float) -> np.ndarray:
    """fastai's `zoom`."""
    z = 1 / scale
    return np.array([[z, 0, (1 - z) * (2 * column - 1)], [0, z, (1 - z) * (2 * row - 1)], [0, 0, 1]])


def solved_homography(targets: list[tuple[float, float]]) -> np.ndarray:
    """The homography that sends `targets` to the image's corners, by fastai's eight equations."""
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    left, right = [], []
    for (tx, ty), (ox, oy) in zip(targets, corners, strict=True):
        left += [[tx, ty, 1, 0, 0, 0, -ox * tx, -ox * ty], [0, 0, 0, tx, ty, 1, -oy * tx, -oy * ty]]
        right += [ox, oy]
    return np.append(np.linalg.solve(np.array(left, float), np.array(right, float)), 1).reshape(3, 3)


def warp_matrix(m: np.ndarray) -> np.ndarray:
    """fastai's `_symmetric_warp`."""
    return solved_homography(
        [(-1 - m[3], -1 - m[1]), (-1 - m[2], 1 + m[1]), (1 + m[3], -1 - m[0]), (1 + m[2], 1 + m[0])]
    )


def align_corners(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Separable bilinear interpolation with `np.interp`, float64."""
    rows, columns = image.shape[:2]
    y, x = np.linspace(0, rows - 1, height), np.linspace(0, columns - 1, width)
    tall = np.apply_along_axis(lambda line: np.interp(y, np.arange(rows), line), 0, image.astype(np.float64))
    return np.apply_along_axis(lambda line: np.interp(x, np.arange(columns), line), 1, tall)


def corner(images: np.ndarray, number: int, scale: float, height: int, width: int) -> np.ndarray:
    """View `number` in float64: a corner's crop of 1/scale of the image, resized align-corners, then mirrored."""
    rows, columns = images.shape[1:3]
    top, left = (rows - 1) * (1 - 1 / scale) * (number & 1), (columns - 1) * (1 - 1 / scale) * (number >> 1 & 1)
    y, x = np.linspace(top, top + (rows - 1) / scale, height), np.linspace(left, left + (columns - 1) / scale, width)
    tall = np.apply_along_axis(lambda line: np.interp(y, np.arange(rows), line), 1, images.astype(np.float64))
    shown = np.apply_along_axis(lambda line: np.interp(x, np.arange(columns), line), 2, tall)
    return shown[:, :, ::-1] if number >> 2 & 1 else shown
