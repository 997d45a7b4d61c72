"""Turns one image file into right-side-up RGB pixels of a wanted size."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Raise it whenever the same file would give other pixels: decoded copies of older versions are then ignored."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""File names that are taken for images, in lower case."""

Resize = Literal["crop", "squish"]
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


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


def probe(file: Path | BinaryIO) -> tuple[int, int]:
    """Height and width of an image once it is right side up, from its header alone.

    Raises:
        BadImageError: the header cannot be read.
    """
    with _reasons(file), Image.open(file) as image:
        width, height = image.size
        # `getexif` reads a whole PNG in search of the tag; what stands before its pixels has to do.
        tags = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        return (width, height) if tags.get(_ORIENTATION) in _SIDEWAYS else (height, width)


def decode(file: Path | BinaryIO, height: int, width: int, resize: Resize) -> np.ndarray:
    """Reads an image and fits it to a wanted size.

    Every Pillow mode becomes RGB: palettes are looked up, CMYK is converted, alpha is composited on
    white, 16-bit grey is scaled. Of an animation the first frame counts. EXIF orientation is applied.

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
    with _reasons(file), Image.open(file) as image:
        if image.format == "JPEG":
            # The decoder halves JPEGs almost for free; twice the wanted size leaves the rest to the filter.
            image.draft(None, (2 * max(height, width), 2 * max(height, width)))
        # Pillow must not resize palettes or numeric modes, so colour comes first.
        fitted = _fit(ImageOps.exif_transpose(_to_rgb(image)), height, width, resize)
        return np.asarray(fitted, dtype=np.uint8)


def _fit(image: Image.Image, height: int, width: int, resize: Resize) -> Image.Image:
    box = (0.0, 0.0, float(image.width), float(image.height))
    if resize == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = round((image.width - scale * width) / 2), round((image.height - scale * height) / 2)
        box = (left, top, left + scale * width, top + scale * height)
    if (box[2] - box[0], box[3] - box[1]) == (width, height):
        return image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _with_exif(_grey(image), image)
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return _with_exif(Image.alpha_composite(white, with_alpha).convert("RGB"), image)
    return image if image.mode == "RGB" else _with_exif(image.convert("RGB"), image)


def _with_exif(converted: Image.Image, original: Image.Image) -> Image.Image:
    """Conversion may drop the tags that say which side is up."""
    converted.getexif().update({k: v for k, v in original.getexif().items() if k == _ORIENTATION})
    return converted


def _grey(image: Image.Image) -> Image.Image:
    """16-bit (or float 0-255) grey as RGB; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    top = 255 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"grey values must lie in 0-{top}; got {values.min():g} to {values.max():g}")
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
    except OSError as error:
        raise BadImageError(error.strerror or _one_line(error)) from None
    except Exception as error:
        raise BadImageError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
