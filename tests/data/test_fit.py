"""Fitting: Pillow's numbers, and their restatement as matrices bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kbaseline.data.fit import HALF_BITS, fit, fit_batch, resize_matrices

SIDES = st.integers(1, 90)


def product(pixels: np.ndarray, halves: tuple[np.ndarray, np.ndarray], along: str) -> np.ndarray:
    """The formula of `resize_matrices`, in float32."""
    high, low = (np.einsum(along, pixels, half) for half in halves)
    whole = np.float32(1 << HALF_BITS)
    return np.clip(np.floor((high + np.floor(low / whole) + whole / 2) / whole), 0, 255).astype(np.float32)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["crop", "squish"]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_matrices_are_pillow_bit_by_bit(
    source_height: int, source_width: int, height: int, width: int, resize: str, black_and_white: bool, seed: int
) -> None:
    """Property: for all sizes, the two matrix products give the pixels that Pillow gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (source_height, source_width, 3), dtype=np.uint8)
    pixels = np.where(pixels > 127, 255, 0).astype(np.uint8) if black_and_white else pixels
    rows, columns = resize_matrices(source_height, source_width, height, width, resize)
    found = product(product(pixels.astype(np.float32), columns, "hwc,vw->hvc"), rows, "hvc,uh->uvc")
    np.testing.assert_array_equal(found, np.asarray(fit(Image.fromarray(pixels), height, width, resize)))


@pytest.mark.parametrize("resize", ["crop", "squish"])
def test_the_wanted_size_is_left_alone(resize: str, rng: np.random.Generator) -> None:
    """Invariant: pixels of the wanted size stay what they are, without a copy."""
    images = rng.integers(0, 256, (2, 7, 5, 3), dtype=np.uint8)
    assert fit_batch(images, 7, 5, resize) is images


def test_crop_keeps_the_aspect_and_squish_does_not(rng: np.random.Generator) -> None:
    """Golden: of a photo twice as wide as high, crop shows the middle half, squish all of it."""
    halves = np.zeros((1, 20, 40, 3), np.uint8)
    halves[:, :, 10:30] = 200
    assert fit_batch(halves, 10, 10, "crop")[:, :, 1:-1].min() == 200  # at its edges Pillow looks across them
    squished = fit_batch(halves, 10, 10, "squish")[0, 0, :, 0]
    np.testing.assert_array_equal(squished[[0, 1, 4, 5, 8, 9]], [0, 0, 200, 200, 0, 0])
    assert (squished == squished[::-1]).all()


def test_shrinking_is_antialiased() -> None:
    """Golden: fine stripes become grey, not black or white by chance."""
    stripes = np.zeros((1, 30, 30, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = fit_batch(stripes, 10, 10, "squish")
    assert 100 < small.min() <= small.max() < 155
