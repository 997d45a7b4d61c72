"""Turns one image file into right-side-up RGB pixels of a wanted size."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from kbaseline.data import png, tiff
from kbaseline.data.fit import Resize, fit
from kbaseline.errors import one_line

VERSION = 3
"""Raise it whenever the same file would give other pixels: decoded copies of older versions are then ignored."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})
"""Endings of the names of images, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
"""What a file may hold, whatever its name says. Pillow reads others too, some by starting another program."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": re.escape(png.SIGNATURE),
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM........[\x0c-\x8a]?...[\x0c-\xff]\0\0\0",
    "TIFF": b"|".join(map(re.escape, tiff.SIGNATURES)),
    "AVIF": rb"....ftyp(avif|avis|(mif1|msf1).{4,32}avi[fs])",
    "HEIC": rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PPM": rb"P[1-6]\s+[#\d]",
}
"""Format -> how its files begin."""

_ORIENTATION, _MAKE, _MODEL, _PHOTOMETRIC, _BITS = 274, 271, 272, 262, 258
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
    """What an image says of itself.

    Attributes:
        height: in pixels, once it is right side up.
        width: in pixels, once it is right side up.
        format: as Pillow calls it.
        camera: make and model; empty if it names none.
    """

    height: int
    width: int
    format: str
    camera: str = ""


def kind(file: Path | BinaryIO) -> str | None:
    """The format that a file's first bytes say it has, whatever its name says; None if it is no image's.

    It is one of `FORMATS` or `"HEIC"`. The rest of the file is not checked.

    Raises:
        OSError: the file cannot be read.
    """
    with _stream(file) as stream:
        start = stream.read(64)
    return next((name for name, begin in _SIGNATURES.items() if re.match(begin, start, re.DOTALL)), None)


def probe(file: Path | BinaryIO) -> Header:
    """Reads an image's header alone.

    Raises:
        BadImageError: the header cannot be read.
    """
    with _reasons(file), _stream(file) as stream:
        image = _opened(stream, pixels=False)
        if image is None:
            height, width, orientation = tiff.layout(stream)
            sideways, form, camera = orientation in _SIDEWAYS, "TIFF", ""
        else:
            width, height = image.size
            # Pillow turns TIFFs itself.
            sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
            form, camera = image.format or "unknown", _camera(image)
        if sideways:
            height, width = width, height
        return Header(height, width, form, camera)


def decode(file: Path | BinaryIO, height: int, width: int, resize: Resize) -> np.ndarray:
    """Reads an image and fits it to a wanted size.

    JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, PPM and JPEG 2000 are read. Every kind of pixel becomes RGB: palettes are
    looked up, CMYK is converted, alpha is composited on white, integers of more bits are scaled to 8. Of an animation
    the first frame counts. EXIF orientation is applied. What would come out wrong is refused: a PNG with a wrong
    checksum, 16-bit values that use less than a sixteenth of their range, floats of 0-1.

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
    with _reasons(file), _stream(file) as stream:
        image = _opened(stream, pixels=True)
        if image is None:
            values, white, alpha, orientation = tiff.read(stream)
            rgb = _scaled(values, white, alpha)
        else:
            if isinstance(image, TiffImageFile):
                tiff.check_deflated(image, stream)
            # The JPEG decoder halves almost for free; twice the wanted size leaves the rest to the filter.
            image.draft(None, (2 * max(height, width), 2 * max(height, width)))
            rgb = _to_rgb(image)
            # Asked after the pixels are read: by then Pillow has turned a TIFF and dropped its tag.
            orientation = _orientation(image)
        turn = _TURNS.get(orientation)
        upright = rgb if turn is None else rgb.transpose(turn)
        return np.asarray(fit(upright, height, width, resize), dtype=np.uint8)


@contextmanager
def _stream(file: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The file from its beginning; one that was open stays so."""
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        yield stream


def _opened(stream: BinaryIO, *, pixels: bool) -> Image.Image | None:
    """The image as Pillow opens it; None for a TIFF that is better read by tifffile."""
    start = stream.read(8)
    if start == png.SIGNATURE:
        return Image.open(png.essence(stream, pixels=pixels), formats=("PNG",))
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        if start.startswith(tiff.SIGNATURES):
            return None
        raise
    return None if isinstance(image, TiffImageFile) and not tiff.pillow_is_right(image) else image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 (upright) where the tags are missing or spoilt."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _camera(image: Image.Image) -> str:
    """Make and model in the EXIF tags; empty where the tags are missing or spoilt."""
    try:
        exif = image.getexif()
        return f"{exif.get(_MAKE, '')} {exif.get(_MODEL, '')}".strip()
    except Exception:
        return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, before any resize: Pillow cannot interpolate palettes and numeric modes."""
    if image.mode.startswith(("I", "F")):
        return _grey(image)
    sixteen = _has_16_bits(image)
    image.load()
    if sixteen and image.mode in ("RGB", "RGBA", "LA"):
        colours = np.ravel(image.getextrema())[: 2 if image.mode == "LA" else 6]
        # 255, not 257: of some formats Pillow rounds up.
        _check_range(255 * float(colours.max()), 65535)
    if sixteen and image.mode == "RGB" and image.has_transparency_data:
        raise ValueError("16-bit colours, one of which is transparent; write an alpha channel instead")
    # Some programs fill the fourth byte of a BMP with zeros and mean nothing by it.
    hidden = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None
    return image.convert("RGB") if hidden or not image.has_transparency_data else _on_white(image.convert("RGBA"))


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the file of an image that Pillow loads in 8 bits has 16; asked before the pixels are read."""
    args = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
    raw = args if isinstance(args, str) else args[0] if args else ""
    return ";16" in str(raw) or (image.format == "PPM" and isinstance(args, tuple) and 65535 in args)


def _grey(image: Image.Image) -> Image.Image:
    """16-bit (or float 0-255) grey as RGB; Pillow's own conversion clips at 255."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    white = 255 if image.mode == "F" else 2 ** min(tags.get(_BITS, (16,))) - 1
    values = np.asarray(image)[..., None]
    key = image.info.get("transparency")
    alpha = (values != key).astype(np.float32) if isinstance(key, int) else None
    # Pillow turns smaller values of a TIFF whose white is 0 round, but not these.
    return _scaled(white - values.astype(np.float32) if tags.get(_PHOTOMETRIC) == 0 else values, white, alpha)


def _scaled(values: np.ndarray, white: float, alpha: np.ndarray | None) -> Image.Image:
    """RGB of values `(height, width, 1 or 3)` from 0 to `white`, composited on white where there is an alpha, 0-1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        raise ValueError(f"values must lie in 0-{white:.0f}; got {low:g} to {high:g}")
    if white == 255 and 0 < high <= 1 and values.dtype.kind == "f":
        raise ValueError("values must lie in 0-255; got 0-1, which would be all but black")
    _check_range(high, white)
    scaled = values * np.float32(255 / white)
    if alpha is not None:
        scaled = scaled * alpha + 255 * (1 - alpha)
    pixels = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())


def _check_range(high: float, white: float) -> None:
    """Refuses 12-bit values in a 16-bit file: they would be all but black, and nothing in it says so."""
    if white > 255 and 0 < high <= white / 16:
        raise ValueError(f"values reach {high / white:.1%} of white, {white:.0f}: all but black; scale them up")


@contextmanager
def _reasons(file: Path | BinaryIO) -> Iterator[None]:
    """Pillow's plugins raise whatever they trip over; all of it means that this image cannot be read."""
    try:
        yield
    except UnidentifiedImageError:
        empty = isinstance(file, Path) and file.stat().st_size == 0
        heic = "HEIC, which Pillow cannot read; convert it to JPEG" if kind(file) == "HEIC" else None
        raise BadImageError("the file is empty" if empty else heic or "not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadImageError(f"more than {limit:,} pixels, Pillow's limit against decompression bombs") from None
    except FileNotFoundError:
        raise BadImageError("no such file (a broken link?)") from None
    except Exception as error:
        raise BadImageError(one_line(error)) from None
