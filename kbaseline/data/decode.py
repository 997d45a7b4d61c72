"""Turns one image file into right-side-up RGB pixels of a wanted size."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from kbaseline.data.fit import Resize, fit
from kbaseline.errors import one_line

VERSION = 3
"""Raise it whenever the same file would give other pixels: decoded copies of older versions are then ignored."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})
"""Endings of the names of images, in lower case."""

UNREADABLE_SUFFIXES = frozenset({".heic", ".heif"})
"""Endings of images that Pillow cannot read, a telephone's for instance."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
"""What a file may hold, whatever its name says. Pillow reads others too, some by starting another program."""

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(Exception):
    """An image cannot be read; the message is the reason, without the file's name."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings about odd files while a pool of threads decodes.

    Pillow warns of a decompression bomb from 89 million pixels and refuses from twice that; a phone's
    108-megapixel photo is no bomb, so the warning is dropped and the refusal stays.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Header(NamedTuple):
    """What an image says of itself: its size in pixels once it is right side up, and its format as Pillow calls it."""

    height: int
    width: int
    format: str


def probe(file: Path | BinaryIO) -> Header:
    """Reads an image's header alone.

    Raises:
        BadImageError: the header cannot be read.
    """
    with _reasons(file), Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        # Pillow turns TIFFs itself, and reads a whole PNG in search of a tag behind the pixels.
        asks = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if asks and _orientation(image) in _SIDEWAYS:
            height, width = width, height
        return Header(height, width, image.format or "unknown")


def decode(file: Path | BinaryIO, height: int, width: int, resize: Resize) -> np.ndarray:
    """Reads an image and fits it to a wanted size.

    JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, PPM and JPEG 2000 are read. Every Pillow mode becomes RGB: palettes are
    looked up, CMYK is converted, alpha is composited on white, 16 bits are scaled to 8. Of an animation the first
    frame counts. EXIF orientation is applied.

    Args:
        file: a path or an open binary file.
        height: wanted height, in pixels.
        width: wanted width, in pixels.
        resize: `"crop"` keeps the aspect and cuts the centre out; `"squish"` changes the aspect.

    Returns:
        uint8 0-255, `(height, width, 3)`.

    Raises:
        BadImageError: the file is empty, truncated, no image, or above Pillow's limit of pixels.
    """
    with _reasons(file), Image.open(file, formats=FORMATS) as image:
        # The JPEG decoder halves almost for free; twice the wanted size leaves the rest to the filter.
        image.draft(None, (2 * max(height, width), 2 * max(height, width)))
        rgb = _to_rgb(image)
        # Asked after the pixels are read: by then Pillow has turned a TIFF and dropped its tag.
        turn = _TURNS.get(_orientation(image))
        upright = rgb if turn is None else rgb.transpose(turn)
        return np.asarray(fit(upright, height, width, resize), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 (upright) where the tags are missing or spoilt."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, before any resize: Pillow cannot interpolate palettes and numeric modes."""
    if image.mode.startswith(("I", "F")):
        return _grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """16-bit (or float 0-255) grey as RGB; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float32)
    top = 255 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"grey values must lie in 0-{top}; got {values.min():g} to {values.max():g}")
    if image.mode == "F" and 0 < values.max() <= 1:
        raise ValueError("grey values must lie in 0-255; got 0-1, which would be all but black")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8)).convert("RGB")


@contextmanager
def _reasons(file: Path | BinaryIO) -> Iterator[None]:
    """Pillow's plugins raise whatever they trip over; all of it means that this image cannot be read."""
    try:
        yield
    except UnidentifiedImageError:
        empty = isinstance(file, Path) and file.stat().st_size == 0
        raise BadImageError("the file is empty" if empty else "not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadImageError(f"more than {limit:,} pixels, Pillow's limit against decompression bombs") from None
    except FileNotFoundError:
        raise BadImageError("no such file (a broken link?)") from None
    except Exception as error:
        raise BadImageError(one_line(error)) from None
