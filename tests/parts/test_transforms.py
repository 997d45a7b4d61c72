"""The geometry and the lighting against fastai's vectors and a slow, independent numpy reference."""

import math

import keras
import numpy as np
import pytest
from slow_geometry import align_corners, for_aspect, rotate_matrix, slow_resample, warp_matrix, zoom_matrix

from kbaseline import geometry as G
from kbaseline import transforms as T
from kbaseline.errors import InputError


def as_numpy(tensor: object) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(tensor))


def one(value: float) -> np.ndarray:
    return np.array([value], "float32")


# --- single moves on 5x5 images ---------------------------------------------------------------------------------------


def moved(row: int, column: int, matrix: object, size: int = 5) -> tuple[int, int]:
    """Where the one bright pixel of a 5x5 image is brightest afterwards, (row, column)."""
    image = np.zeros((1, 5, 5, 1), "float32")
    image[0, row, column] = 255
    out = as_numpy(G.resample(image, matrix, size, size))[0, :, :, 0]
    assert out.max() == pytest.approx(255, abs=1e-2)
    return tuple(int(n) for n in np.unravel_index(out.argmax(), out.shape))  # type: ignore[return-value]


def test_rotation_golden() -> None:
    """Golden: fastai's pixel (3, 3) goes to (1, 3) under rotate 90 and to (3, 1) under -90."""
    assert moved(3, 3, G.rotation(one(90))) == (1, 3)
    assert moved(3, 3, G.rotation(one(-90))) == (3, 1)


def test_flip_golden() -> None:
    """Golden: fastai's pixel (3, 3) is mirrored to (3, 1), and stays where nothing is mirrored."""
    assert moved(3, 3, G.flip(np.array([True]))) == (3, 1)
    assert moved(3, 3, G.flip(np.array([False]))) == (3, 3)


def test_zoom_golden() -> None:
    """Golden: fastai's pixel (3, 3) goes to (4, 4) under a centred zoom by 2."""
    assert moved(3, 3, G.zoom(one(2), one(0.5), one(0.5))) == (4, 4)


@pytest.mark.parametrize(
    ("k", "place"),
    list(enumerate([(0, 1), (4, 1), (0, 3), (4, 3), (1, 0), (1, 4), (3, 0), (3, 4)])),
)
def test_dihedral_golden(k: int, place: tuple[int, int]) -> None:
    """Golden: fastai's eight dihedral places of the pixel (x, y) = (0, 1), as (x, y)."""
    row, column = moved(1, 0, G.dihedral(np.array([k])))
    assert (column, row) == place


def test_dihedral_is_eight_exact_moves(rng: np.random.Generator) -> None:
    """Reference: the eight moves are numpy's flips and transposes, bit for bit, and all differ."""
    image = rng.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    seen = set()
    for k in range(8):
        expected = image[0].astype("float32")
        # The output's pixel is looked up: first swapped, then mirrored.
        expected = expected[:, ::-1] if k & 1 else expected
        expected = expected[::-1] if k & 2 else expected
        expected = expected.transpose(1, 0, 2) if k & 4 else expected
        out = as_numpy(G.resample(image, G.dihedral(np.array([k])), 4, 4))[0]
        np.testing.assert_allclose(out, expected, atol=1e-3)
        seen.add(out.round().tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("scale", "row", "column"), [(2.0, 0.0, 0.0), (2.0, 0.0, 1.0), (2.0, 1.0, 0.0), (2.0, 1.0, 1.0), (2.0, 0.5, 0.5)]
)
def test_zoom_into_a_corner_is_the_crop(scale: float, row: float, column: float) -> None:
    """Reference: a zoom by 2 of a 9x9 image shows exactly the resized 5x5 crop at that place."""
    image = np.arange(81, dtype="float32").reshape(1, 9, 9, 1)
    top, left = int(row * 4), int(column * 4)
    crop = image[0, top : top + 5, left : left + 5, :]
    out = as_numpy(G.resample(image, G.zoom(one(scale), one(row), one(column)), 5, 5))[0]
    np.testing.assert_allclose(out, crop, atol=1e-3)


def test_reflection_golden() -> None:
    """Golden: beyond the edge the image is mirrored about the edge pixel's centre, which is not repeated."""
    line = np.array([0, 10, 20, 30, 40], "float32").reshape(1, 1, 5, 1)
    # Three times the field of view: output columns are 0.5 * 4 source pixels apart, from -4 to 8.
    wide = np.diag([3.0, 1.0, 1.0])[None].astype("float32")
    out = as_numpy(G.resample(line, wide, 1, 13))[0, 0, :, 0]
    np.testing.assert_allclose(out, [40, 30, 20, 10, 0, 10, 20, 30, 40, 30, 20, 10, 0], atol=1e-4)
    wider = np.diag([5.0, 1.0, 1.0])[None].astype("float32")
    out = as_numpy(G.resample(line, wider, 1, 21))[0, 0, :, 0]
    np.testing.assert_allclose(out[:9], [0, 10, 20, 30, 40, 30, 20, 10, 0], atol=1e-4)


def padded(row: int, column: int) -> list[tuple[int, int]]:
    """Where the bright pixel of a 5x5 image shows once one pixel is padded on every side, (row, column)."""
    image = np.zeros((1, 5, 5, 1), "float32")
    image[0, row, column] = 255
    out = as_numpy(G.resample(image, np.diag([1.5, 1.5, 1.0])[None].astype("float32"), 7, 7))[0, :, :, 0]
    np.testing.assert_allclose(out, np.pad(image[0, :, :, 0], 1, mode="reflect"), atol=1e-3)
    return [(int(i), int(j)) for i, j in np.argwhere(out > 200)]


def test_one_pixel_of_padding_golden() -> None:
    """Golden: fastai's pixel (3, 4), reflection-padded by one, shows at (4, 5) and (6, 5), as in np.pad.

    With zeros (6, 5) would be dark, and with the border repeated (4, 6) bright.
    """
    assert padded(3, 4) == [(4, 5), (6, 5)]
    assert padded(3, 3) == [(4, 4), (4, 6), (6, 4), (6, 6)]


@pytest.mark.parametrize(
    ("row_pct", "col_pct", "place"),
    [(0, 0, (3, 3)), (0, 0.99, (3, 2)), (0.5, 0.5, (2, 2)), (0.99, 0, (2, 3)), (0.99, 0.99, (2, 2))],
)
def test_crop_golden(row_pct: float, col_pct: float, place: tuple[int, int]) -> None:
    """Golden: fastai's pixel (3, 3) in the five crops of 4x4, which a zoom by 4/3 into that place shows."""
    # A crop begins at int((5 - 4 + 1) * pct), a whole pixel: 0 or 1, the first place or the last.
    zoom = G.zoom(one(4 / 3), one(int(2 * row_pct)), one(int(2 * col_pct)))
    assert moved(3, 3, zoom, 4) == place


@pytest.mark.parametrize(("across", "down", "place"), [(0.5, 1.0, (3, 4)), (1.0, 0.5, (4, 3))])
def test_squish_golden(across: float, down: float, place: tuple[int, int]) -> None:
    """Golden: fastai's pixel (3, 3) goes to (3, 4) under squish 0.5 and to (4, 3) under squish 2."""
    assert moved(3, 3, np.diag([across, down, 1.0])[None].astype("float32")) == place


def only(image: np.ndarray) -> list[list[int]]:
    """The places (row, column) of a 5x5 image that are lit; every other must be dark."""
    assert ((image < 1e-3) | (image > 255 - 1e-3)).all(), image
    return np.argwhere(image > 200).tolist()


def lit(places: list[list[int]]) -> np.ndarray:
    image = np.zeros((1, 5, 5, 1), "float32")
    for row, column in places:
        image[0, row, column] = 255
    return image


CORNERS = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]

PERSPECTIVE = [
    (0, 0, 0.5, [0, 0], [0, 1]),
    (0, 1, 0.5, [0, 0], [1, 0]),
    (1, 0, 0.5, [4, 0], [4, 1]),
    (1, 1, -0.5, [4, 0], [3, 0]),
    (2, 0, -0.5, [0, 4], [0, 3]),
    (2, 1, 0.5, [0, 4], [1, 4]),
    (3, 0, -0.5, [4, 4], [4, 3]),
    (3, 1, -0.5, [4, 4], [3, 4]),
]
"""fastai's `test_all_warps`: corner, its coordinate (x or y) that moves, by how much; a pixel, where it goes."""


@pytest.mark.parametrize(("corner", "axis", "by", "lamp", "place"), PERSPECTIVE)
def test_perspective_golden(corner: int, axis: int, by: float, lamp: list[int], place: list[int]) -> None:
    """Golden: fastai's eight perspective warps, its skews too: each moves the one pixel, and no other is lit."""
    targets = [list(point) for point in CORNERS]
    targets[corner][axis] += by
    matrix = G.perspective([(one(x), one(y)) for x, y in targets])
    assert only(as_numpy(G.resample(lit([lamp]), matrix, 5, 5))[0, :, :, 0]) == [place]


TILTS = [
    ([[0, 4], [4, 4]], [[1, 4], [3, 4]]),
    ([[0, 0], [4, 0]], [[1, 0], [3, 0]]),
    ([[4, 0], [4, 4]], [[4, 1], [4, 3]]),
    ([[0, 0], [0, 4]], [[0, 1], [0, 3]]),
]
"""fastai's `test_all_warps`: the pixels that tilt k, magnitude -0.5, moves, and where they go."""


@pytest.mark.parametrize("k", range(4))
def test_symmetric_warp_golden(k: int) -> None:
    """Golden: magnitude k of the symmetric warp alone is fastai's tilt k, two corner pixels and no other lit."""
    before, after = TILTS[k]
    magnitudes = np.zeros((1, 4), "float32")
    magnitudes[0, k] = -0.5
    assert only(as_numpy(G.resample(lit(before), G.symmetric_warp(magnitudes), 5, 5))[0, :, :, 0]) == after


WARPS = [tuple(0.5 * sign if i == place else 0 for i in range(4)) for place in range(4) for sign in (1, -1)]


@pytest.mark.parametrize("m", [*WARPS, (0.2, -0.1, 0.05, -0.2), (0.0, 0.0, 0.0, 0.0)])
def test_perspective_warps(m: tuple[float, ...]) -> None:
    """Reference: each of the eight single warps, and a mixed one, moves its corners as computed by a linear solver."""
    found = as_numpy(G.symmetric_warp(np.array([m], "float32")))[0]
    np.testing.assert_allclose(found, warp_matrix(np.array(m)), atol=2e-6)
    targets = [(-1 - m[3], -1 - m[1]), (-1 - m[2], 1 + m[1]), (1 + m[3], -1 - m[0]), (1 + m[2], 1 + m[0])]
    for target, corner in zip(targets, [(-1, -1), (-1, 1), (1, -1), (1, 1)], strict=True):
        image = found @ np.array([*target, 1.0])
        np.testing.assert_allclose(image[:2] / image[2], corner, atol=2e-6)


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((32, 32), (128, 128)),
        ((8, 8), (9, 17)),
        ((20, 30), (13, 16)),
        ((7, 5), (7, 5)),
        ((1, 4), (3, 4)),
    ],
)
def test_resize_is_bilinear_align_corners(
    rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    """Reference: at inference the layer's resize equals `np.interp` along rows and columns, to 1e-5 of the range."""
    images = rng.integers(0, 256, (2, *source, 3), dtype=np.uint8)
    expected = np.stack([align_corners(image, *target) for image in images])
    out = as_numpy(T.RandomTransforms(target, seed=0)(images, training=False))
    assert out.shape == (2, *target, 3)
    np.testing.assert_allclose(out / 255, expected / 255, atol=1e-5)


@pytest.mark.parametrize("side", [17, 128])
def test_resize_to_its_own_size_changes_no_bit(rng: np.random.Generator, side: int) -> None:
    """Invariant: an image already at size passes exactly, and its mirror image is exact too."""
    images = rng.integers(0, 256, (2, side, 23, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_numpy(G.resize(images, side, 23)), images.astype("float32"))
    mirrored = as_numpy(G.resample(images, G.flip(np.array([True, True])), side, 23))
    np.testing.assert_array_equal(mirrored, images[:, :, ::-1].astype("float32"))


def test_shrinking_averages() -> None:
    """Invariant: four times smaller, a fine checkerboard becomes grey; at twice smaller nothing is averaged first."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255.0
    images = board[None, :, :, None].astype("float32")
    np.testing.assert_allclose(as_numpy(G.resize(images, 16, 16))[0, 2:-2, 2:-2], 127.5, atol=3)
    assert G.shrink(images, 32, 32) is images
    assert as_numpy(G.shrink(images, 16, 16)).shape == (1, 32, 32, 1)


@pytest.mark.parametrize(("source", "target"), [((9, 9), (12, 12)), ((8, 12), (10, 10)), ((12, 7), (9, 13))])
def test_one_resample_is_the_composed_homography(
    rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    """Reference: turn · zoom · warp · flip in one resample equals the composed matrix, pixel by pixel in float64."""
    images = rng.integers(0, 256, (3, *source, 3), dtype=np.uint8)
    degrees, scale = np.array([8.0, -75.0, 0.0]), np.array([1.1, 1.3, 1.0])
    row, column = np.array([0.2, 1.0, 0.5]), np.array([0.9, 0.0, 0.5])
    m = np.array([[0.2, -0.1, 0.05, -0.2], [-0.15, 0.2, 0.1, 0.1], [0.3, 0.3, -0.3, 0.0]])
    mirror = np.array([True, False, True])
    ours = G.compose(
        G.for_aspect(
            G.compose(
                G.rotation(degrees.astype("float32")),
                G.zoom(scale.astype("float32"), row.astype("float32"), column.astype("float32")),
            ),
            *source,
        ),
        G.symmetric_warp(m.astype("float32")),
        G.flip(mirror),
    )
    out = as_numpy(G.resample(images, ours, *target))
    for i in range(3):
        affine = for_aspect(rotate_matrix(degrees[i]) @ zoom_matrix(scale[i], row[i], column[i]), *source)
        matrix = affine @ warp_matrix(m[i]) @ np.diag([-1.0 if mirror[i] else 1.0, 1, 1])
        np.testing.assert_allclose(out[i], slow_resample(images[i], matrix, *target), atol=0.02)


def test_one_resample_is_sharper_than_two(rng: np.random.Generator) -> None:
    """Invariant: composing and resampling once is not the same as resampling twice."""
    images = rng.integers(0, 256, (1, 16, 16, 1), dtype=np.uint8)
    turn, back = G.rotation(one(20)), G.rotation(one(-20))
    once = as_numpy(G.resample(images, G.compose(turn, back), 16, 16))
    twice = as_numpy(G.resample(G.resample(images, turn, 16, 16), back, 16, 16))
    np.testing.assert_allclose(once, images, atol=0.01)
    assert np.abs(twice - images).mean() > 10


def test_a_turned_photo_keeps_its_angles() -> None:
    """Reference: on a 2:1 image a quarter turn about the centre moves a pixel by the same distance in pixels."""
    image = np.zeros((1, 9, 17, 1), "float32")
    image[0, 4, 11] = 255  # three to the right of the centre
    out = as_numpy(G.resample(image, G.for_aspect(G.rotation(one(90)), 9, 17), 9, 17))[0, :, :, 0]
    assert np.unravel_index(out.argmax(), out.shape) == (1, 8)


# --- lighting ---------------------------------------------------------------------------------------------------------


def test_lighting_reference(rng: np.random.Generator) -> None:
    """Reference: sigma((logit x + logit b) * c), x clamped to [1e-7, 1 - 1e-7], in float64."""
    images = rng.uniform(0, 255, (4, 6, 5, 3)).astype("float32")
    images[0, 0, 0] = 0
    images[0, 0, 1] = 255
    b, c = np.array([0.4, 0.5, 0.6, 0.55]), np.array([0.8, 1.0, 1.25, 1.1])
    x = np.clip(images.astype(np.float64) / 255, 1e-7, 1 - 1e-7)
    light = np.log(b / (1 - b))[:, None, None, None]
    expected = 255 / (1 + np.exp(-(np.log(x / (1 - x)) + light) * c[:, None, None, None]))
    out = as_numpy(T.adjust_lighting(images, b.astype("float32"), c.astype("float32")))
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_lighting_golden() -> None:
    """Golden: mid-grey at brightness 0.6 is 0.6 of white, and contrast leaves mid-grey alone."""
    grey = np.full((1, 1, 1, 1), 127.5, "float32")
    assert as_numpy(T.adjust_lighting(grey, one(0.6), one(1.0))).item() == pytest.approx(153.0, abs=1e-3)
    assert as_numpy(T.adjust_lighting(grey, one(0.5), one(1.25))).item() == pytest.approx(127.5, abs=1e-3)


# --- the draws --------------------------------------------------------------------------------------------------------

MANY = 4000


def drawn(**options: object) -> tuple[T.RandomTransforms, object, object]:
    layer = T.RandomTransforms(8, seed=3, **options)  # type: ignore[arg-type]
    return layer, *layer.draws(MANY, 11)


def share(values: np.ndarray) -> float:
    return float(np.mean(values))


def test_rotation_draws() -> None:
    """Golden: three quarters are turned, uniformly within 10 degrees either way."""
    layer, geometry, _ = drawn(max_zoom=1.0, max_warp=0.0)
    unmoved = G.identity(MANY)
    matrices = as_numpy(layer.geometry(geometry, unmoved, unmoved, 8, 8))
    degrees = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    turned = degrees[np.abs(degrees) > 1e-6]
    assert share(np.abs(degrees) > 1e-6) == pytest.approx(0.75, abs=0.03)
    assert 9.9 < np.abs(turned).max() <= 10.0 + 1e-4
    assert turned.mean() == pytest.approx(0, abs=0.4)
    assert turned.std() == pytest.approx(20 / math.sqrt(12), rel=0.03)


def test_zoom_draws() -> None:
    """Golden: three quarters are magnified, uniformly up to 1.1, into places uniform over the image."""
    layer, geometry, _ = drawn()
    matrices = as_numpy(layer.random_zoom(geometry))
    scale = 1 / matrices[:, 0, 0]
    zoomed = scale > 1 + 1e-6
    assert share(zoomed) == pytest.approx(0.75, abs=0.03)
    assert 1.099 < scale.max() <= 1.1 + 1e-5
    assert scale[zoomed].mean() == pytest.approx(1.05, abs=0.003)
    strong = scale > 1.02
    for place in (matrices[strong, 0, 2], matrices[strong, 1, 2]):
        pct = (place / (1 - 1 / scale[strong]) + 1) / 2
        assert -1e-3 < pct.min() < 0.02
        assert 0.98 < pct.max() < 1.001
        assert pct.mean() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(matrices[strong, 0, 2], matrices[strong, 1, 2])[0, 1]) < 0.06


def test_warp_draws() -> None:
    """Golden: three quarters are warped, by four independent magnitudes uniform within 0.2."""
    layer, geometry, _ = drawn(max_rotate=0.0)
    unmoved = G.identity(MANY)
    matrices = as_numpy(layer.geometry(geometry, unmoved, unmoved, 8, 8))
    # The corners' origins are read back through the inverse homography: x, y of the top right and bottom left corner.
    inverse = np.linalg.inv(matrices.astype(np.float64))
    right, left = inverse @ np.array([1, -1, 1.0]), inverse @ np.array([-1, 1, 1.0])
    m3, m0 = right[:, 0] / right[:, 2] - 1, -1 - right[:, 1] / right[:, 2]
    m2, m1 = -1 - left[:, 0] / left[:, 2], left[:, 1] / left[:, 2] - 1
    m = np.stack([m0, m1, m2, m3])
    warped = np.abs(m).max(axis=0) > 1e-5
    assert share(warped) == pytest.approx(0.75, abs=0.03)
    assert (np.abs(m).max(axis=1) > 0.195).all()
    assert np.abs(m).max() <= 0.2 + 1e-4
    np.testing.assert_allclose(m[:, warped].mean(axis=1), 0, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(m[:, warped]), np.eye(4), atol=0.06)


def test_geometry_draws_are_independent() -> None:
    """Invariant: rotation, zoom and mirroring of an image are drawn independently."""
    layer, geometry, _ = drawn(do_flip=True, max_warp=0.0)
    unmoved = G.identity(MANY)
    turned = np.abs(as_numpy(layer.geometry(geometry, unmoved, unmoved, 8, 8))[:, 0, 1]) > 1e-7
    zoomed = as_numpy(layer.random_zoom(geometry))[:, 0, 0] < 1 - 1e-6
    mirrored = as_numpy(layer.random_flip(geometry))[:, 0, 0] < 0
    assert share(mirrored) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(np.corrcoef(np.stack([turned, zoomed, mirrored]).astype(float)), np.eye(3), atol=0.06)


def test_vertical_flip_draws_all_eight() -> None:
    """Golden: `flip_vert` draws the eight moves equally often, and no mirror besides."""
    layer, geometry, _ = drawn(flip_vert=True, do_flip=True, max_rotate=0.0, max_warp=0.0)
    unmoved = G.identity(MANY)
    flips = layer.random_flip(geometry)
    np.testing.assert_array_equal(as_numpy(flips), as_numpy(unmoved))
    moves = as_numpy(layer.geometry(geometry, unmoved, flips, 8, 8))[:, :2, :2].round().astype(int)
    _, counts = np.unique(moves.reshape(MANY, 4), axis=0, return_counts=True)
    assert len(counts) == 8
    np.testing.assert_allclose(counts / MANY, 1 / 8, atol=0.02)


def logits(values: np.ndarray) -> np.ndarray:
    x = values.astype(np.float64) / 255
    return np.log(x / (1 - x))


def test_lighting_draws() -> None:
    """Golden: three quarters each; brightness uniform in (0.4, 0.6), contrast log-uniform in (0.8, 1.25)."""
    layer, _, light = drawn()
    pair = np.tile(np.array([80.0, 127.5], "float32").reshape(1, 1, 2, 1), (MANY, 1, 1, 1))
    out = logits(as_numpy(layer.random_lighting(pair, light))[:, 0, :, 0])
    before = logits(np.array([80.0, 127.5]))
    contrast = (out[:, 1] - out[:, 0]) / (before[1] - before[0])
    brightness = 1 / (1 + np.exp(-out[:, 1] / contrast))
    bright, contrasted = np.abs(brightness - 0.5) > 1e-4, np.abs(np.log(contrast)) > 1e-3
    assert share(bright) == pytest.approx(0.75, abs=0.03)
    assert share(contrasted) == pytest.approx(0.75, abs=0.03)
    assert abs(np.corrcoef(bright, contrasted)[0, 1]) < 0.06
    assert 0.4 - 1e-3 < brightness.min() < 0.401
    assert 0.599 < brightness.max() < 0.6 + 1e-3
    assert brightness[bright].mean() == pytest.approx(0.5, abs=0.005)
    assert 0.8 - 1e-3 < contrast.min() < 0.803
    assert 1.245 < contrast.max() < 1.25 + 1e-3
    spread = np.log(contrast[contrasted])
    assert spread.mean() == pytest.approx(0, abs=0.01)
    assert spread.std() == pytest.approx(2 * math.log(1.25) / math.sqrt(12), rel=0.03)


def test_images_that_draw_no_lighting_stay_exact(rng: np.random.Generator) -> None:
    """Invariant: about one image in sixteen draws neither; its pixels, black and white too, are untouched."""
    layer, _, light = drawn()
    images = rng.choice(np.array([0.0, 3.25, 100.1, 255.0], "float32"), (MANY, 2, 2, 1))
    untouched = (as_numpy(layer.random_lighting(images, light)) == images).all(axis=(1, 2, 3))
    assert share(untouched) == pytest.approx(1 / 16, abs=0.015)
    still = T.RandomTransforms(8, p_lighting=0.0)
    np.testing.assert_array_equal(as_numpy(still.random_lighting(images, light)), images)


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


def test_inactive_at_inference(photos: np.ndarray) -> None:
    """Invariant: without training every call gives the plain resize, and no random state moves."""
    layer = T.RandomTransforms(16, seed=1)
    state = as_numpy(layer.seed_generator.state)
    plain = as_numpy(layer(photos, training=False))
    np.testing.assert_array_equal(plain, as_numpy(layer(photos)))
    np.testing.assert_array_equal(as_numpy(layer.seed_generator.state), state)
    np.testing.assert_allclose(plain[0], align_corners(photos[0], 16, 16), atol=2e-3)
    assert np.abs(as_numpy(layer(photos, training=True)) - plain).mean() > 3


def test_training_is_seeded(photos: np.ndarray) -> None:
    """Determinism: a seed fixes the whole row of batches, whose members differ; another seed gives another row."""
    rows = [[as_numpy(layer(photos, training=True)) for _ in range(2)] for layer in map(seeded, (5, 5, 6))]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[0][0] - rows[2][0]).mean() > 1
    assert np.abs(rows[0][0] - rows[0][1]).mean() > 1


def seeded(seed: int) -> T.RandomTransforms:
    return T.RandomTransforms(16, seed=seed)


def drawn_matrices(row: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """From an image's row of uniform numbers: rotation and zoom, warp, mirror, as fastai v1 composes them."""
    _, turn, zoom, y, x, flip, p_warp, p_turn, p_zoom, *m = row
    affine = rotate_matrix((2 * turn - 1) * 10) if p_turn < 0.75 else np.eye(3)
    affine = affine @ (zoom_matrix(1 + 0.1 * zoom, y, x) if p_zoom < 0.75 else np.eye(3))
    warp = warp_matrix(0.2 * (2 * np.array(m) - 1)) if p_warp < 0.75 else np.eye(3)
    return [for_aspect(affine, height, width), warp, np.diag([-1.0, 1, 1]) if flip < 0.5 else np.eye(3)]


def test_training_is_one_resample_of_the_drawn_matrices(photos: np.ndarray) -> None:
    """Reference: a training call equals the slow numpy resample of the source pixels by the layer's own draws.

    Once: resized, then warped, then turned and zoomed, resample after resample, the same pixels come out blurred.
    """
    layer = T.RandomTransforms(16, do_flip=True, max_lighting=0.0, seed=2)
    geometry, _ = layer.draws(6, keras.random.SeedGenerator(2))
    draws = as_numpy(geometry).astype(np.float64)
    out = as_numpy(layer(photos, training=True))
    for image, row, shown in zip(photos, draws, out, strict=True):
        affine, warp, mirror = drawn_matrices(row, 10, 12)
        once = slow_resample(image, affine @ warp @ mirror, 16, 16)
        np.testing.assert_allclose(shown, once, atol=0.02)
        sequence = slow_resample(slow_resample(align_corners(image, 16, 16), affine, 16, 16), warp @ mirror, 16, 16)
        if not (affine == np.eye(3)).all():
            assert np.abs(shown - sequence).mean() > 1


def test_quarter_turns_keep_the_aspect() -> None:
    """Reference: on a 2:1 image `flip_vert`'s eight moves keep distances in pixels, as fastai's aspect rule has it."""
    layer = T.RandomTransforms((9, 17), flip_vert=True, p_affine=0.0, p_lighting=0.0)
    image = np.zeros((8, 9, 17, 1), "float32")
    image[:, 4, 11] = 255  # three to the right of the centre, (4, 8)
    draws = np.full((8, 13), 0.9, "float32")
    draws[:, 5] = (np.arange(8) + 0.5) / 8
    unmoved = G.identity(8)
    out = as_numpy(G.resample(image, layer.geometry(draws, unmoved, unmoved, 9, 17), 9, 17))[..., 0]
    places = [tuple(int(n) for n in np.unravel_index(seen.argmax(), seen.shape)) for seen in out]
    assert places == [(4, 11), (4, 5), (4, 11), (4, 5), (7, 8), (1, 8), (7, 8), (1, 8)]


def test_no_strength_is_no_change(photos: np.ndarray) -> None:
    """Invariant: with all strengths, or all probabilities, at zero a training call is the plain resize, bit by bit."""
    layer = T.RandomTransforms(16, max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0, seed=0)
    off = T.RandomTransforms(16, p_affine=0, p_lighting=0, seed=0)
    plain = as_numpy(G.resize(photos, 16, 16))
    np.testing.assert_array_equal(as_numpy(layer(photos, training=True)), plain)
    np.testing.assert_array_equal(as_numpy(off(photos, training=True)), plain)


def test_training_at_a_smaller_size(photos: np.ndarray) -> None:
    """Reference: `train_size` draws as a layer of that size does; everything else is as without it."""
    layer = T.RandomTransforms((32, 16), train_size=24, seed=5)
    np.testing.assert_array_equal(as_numpy(layer(photos)), as_numpy(T.RandomTransforms((32, 16))(photos)))
    trained = as_numpy(layer(photos, training=True))
    assert trained.shape == (6, 24, 12, 3)
    np.testing.assert_array_equal(trained, as_numpy(T.RandomTransforms((24, 12), seed=5)(photos, training=True)))
    assert layer.compute_output_shape((None, None, None, 3)) == (None, None, None, 3)


def test_a_training_size_enlarges_nothing(photos: np.ndarray) -> None:
    """Invariant: where `size` is not larger, `train_size` changes nothing."""
    for train_size in (16, 24):
        layer = T.RandomTransforms(16, train_size=train_size, seed=5)
        plain = T.RandomTransforms(16, seed=5)
        np.testing.assert_array_equal(as_numpy(layer(photos, training=True)), as_numpy(plain(photos, training=True)))
        assert layer.compute_output_shape((None, None, None, 3)) == (None, 16, 16, 3)


@pytest.mark.parametrize("size", [0, -3, 1.5, True])
def test_a_training_size_is_a_number_of_pixels(size: object) -> None:
    """Golden: the message gives the rule and the value."""
    with pytest.raises(InputError, match=rf"train_size must be a number of pixels from 1, or None; got {size}"):
        T.RandomTransforms(16, train_size=size)  # type: ignore[arg-type]


def test_output_is_float32_under_bfloat16(photos: np.ndarray) -> None:
    """Invariant: under mixed_bfloat16 the layer's pixels are those of float32."""
    plain = as_numpy(T.RandomTransforms(16, seed=4)(photos, training=True))
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = T.RandomTransforms(16, seed=4)(photos, training=True)
    assert keras.backend.standardize_dtype(mixed.dtype) == "float32"
    np.testing.assert_array_equal(as_numpy(mixed), plain)


def test_uint8_and_float_images_agree(photos: np.ndarray) -> None:
    """Invariant: the images' dtype does not matter."""
    layer = T.RandomTransforms((9, 21), seed=4)
    np.testing.assert_array_equal(as_numpy(layer(photos)), as_numpy(layer(photos.astype("float32"))))
    assert layer.compute_output_shape((None, None, None, 3)) == (None, 9, 21, 3)


def test_the_layer_serialises(photos: np.ndarray) -> None:
    """Invariant: a layer read back from its configuration draws the same transforms."""
    options = {"do_flip": True, "flip_vert": True, "max_rotate": 20.0, "max_zoom": 1.3, "max_lighting": 0.1}
    layer = T.RandomTransforms((12, 13), **options, max_warp=0.1, p_affine=0.9, p_lighting=0.8, train_size=10, seed=7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(as_numpy(again(photos, training=True)), as_numpy(layer(photos, training=True)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_zoom", 0.9),
        ("max_rotate", -1),
        ("max_rotate", 181),
        ("max_lighting", 1.0),
        ("max_warp", -0.1),
        ("p_affine", 1.1),
        ("p_lighting", -0.1),
    ],
)
def test_strengths_outside_their_range_are_errors(name: str, value: float) -> None:
    """Golden: the message names the strength, its range and the value."""
    with pytest.raises(InputError, match=f"{name} must lie in .*got {value}"):
        T.RandomTransforms(8, **{name: value})


@pytest.mark.parametrize("size", [0, -1, (4, 0), (4,), (4, 4, 4), 4.5, "4", math.nan, None])
def test_sizes_that_are_none_are_errors(size: object) -> None:
    """Golden: a size is one or two whole numbers from 1; the message shows what was given."""
    with pytest.raises(InputError, match="size must be a number of pixels or a pair of them"):
        T.RandomTransforms(size)  # type: ignore[arg-type]


def test_numpys_sizes_are_numbers_that_can_be_saved() -> None:
    """Invariant: NumPy's integers are taken and come out of the configuration as Python's."""
    for size in (np.int64(5), (np.int64(5), np.uint8(5)), np.array([5, 5]), [5, 5]):
        config = T.RandomTransforms(size).get_config()  # type: ignore[arg-type]
        assert [type(side) for side in config["size"]] == [int, int]
        assert config["size"] == (5, 5)


@pytest.mark.parametrize("images", [np.zeros((8, 8, 3)), [np.zeros((8, 8, 3))], keras.Input((8, 3))])
def test_one_image_is_no_batch(images: object) -> None:
    """Golden: images without a batch axis are one line that says so, symbolic ones too."""
    with pytest.raises(InputError, match=r"^RandomTransforms: images must be \(batch, height, width, channels\); got"):
        T.RandomTransforms(4)(images)
