"""Reads by tifffile the TIFFs that Pillow refuses or reads wrongly."""

import logging
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _COMPRESSION, _SAMPLES, _PLANES, _PREDICTOR, _EXTRA, _FORMAT = 258, 259, 277, 284, 317, 338, 339
_PARTS = ((273, 279), (324, 325))
"""Where strips begin, and how many bytes they take; the same for tiles."""
_DEFLATE = (8, 32946)
_PREMULTIPLIED = 1
_AT_ONCE = 2**20
_UNSIGNED, _FLOAT = (1,), (3,)


class Layout(NamedTuple):
    """Height and width as stored, in pixels, and the EXIF orientation, 1-8."""

    height: int
    width: int
    orientation: int


def pillow_is_right(image: TiffImageFile) -> bool:
    """Whether Pillow reads the values of a TIFF that it knows as they are.

    It mixes the values of 16-bit colours in separate, uncompressed planes, takes signed integers for unsigned ones,
    the plane of alpha for grey, and compressed floats of another byte order or with a predictor as they stand.
    Measured with Pillow 13 on all layouts that tifffile writes.
    """
    tags = image.tag_v2
    bits, format_ = max(tags.get(_BITS, (1,))), set(tags.get(_FORMAT, _UNSIGNED))
    compression, samples = tags.get(_COMPRESSION, 1), tags.get(_SAMPLES, 1)
    if format_ == set(_FLOAT):
        return bool(compression == 1 or (tags.get(_PREDICTOR, 1) == 1 and tags.prefix == b"II"))
    if format_ != set(_UNSIGNED) or bits > 16:
        return False
    separate = tags.get(_PLANES, 1) == 2 and samples > 1
    if _PREMULTIPLIED in tags.get(_EXTRA, ()) and (samples == 2 or separate):
        return False
    return bool(not separate or (samples > 2 and (bits <= 8 or compression != 1)))


def check_deflated(image: TiffImageFile, file: BinaryIO) -> None:
    """Tests the checksums of deflated pixels, which Pillow does not.

    Raises:
        ValueError: one is wrong, or pixels are cut off.
        zlib.error: likewise.
    """
    tags = image.tag_v2
    if tags.get(_COMPRESSION) not in _DEFLATE:
        return
    # A hostile file may name one strip a million times.
    allowed = 16 * image.width * image.height + 64 * _AT_ONCE
    for places, sizes in _PARTS:
        for place, size in zip(tags.get(places, ()), tags.get(sizes, ()), strict=False):
            file.seek(place)
            inflate = zlib.decompressobj()
            while not inflate.eof and allowed > 0:
                given = inflate.unconsumed_tail or file.read(min(size, _AT_ONCE))
                size -= 0 if inflate.unconsumed_tail else len(given)
                if not given:
                    raise ValueError("the TIFF is damaged: pixels are cut off")
                allowed -= len(inflate.decompress(given, _AT_ONCE))


def layout(file: BinaryIO) -> Layout:
    """The size of the first page.

    Raises:
        Exception: whatever tifffile trips over.
    """
    return _layout(_first_page(file))


def read(file: BinaryIO) -> tuple[np.ndarray, float, np.ndarray | None, int]:
    """The first page: grey or RGB values.

    Returns:
        Values `(height, width, 1 or 3)` of the file's type, 0 being black; the value that is white; alpha, float 0-1
        `(height, width, 1)`, or None; the EXIF orientation.

    Raises:
        ValueError: it is neither grey nor RGB, or does not say which of its bands are.
        Exception: whatever else tifffile trips over; a compression it needs the package imagecodecs for, for instance.
    """
    page = _first_page(file)
    found = _layout(page)
    photometric, *extra = (getattr(meaning, "name", str(meaning)) for meaning in (page.photometric, *page.extrasamples))
    colours = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3}.get(photometric)
    if colours is None or page.imagedepth > 1 or page.samplesperpixel != colours + len(extra):
        raise ValueError(f"{page.samplesperpixel} bands of {page.dtype} {photometric}; convert it to 8-bit RGB")
    if extra and page.dtype.kind == "f":
        raise ValueError("floats with an alpha, which may count to 1 or to 255; write it as 8-bit RGBA")
    if colours == 1 and extra not in ([], ["ASSOCALPHA"], ["UNASSALPHA"]):
        raise ValueError(f"{page.samplesperpixel} bands, and no word on which are red, green and blue; write it as RGB")
    # (planes, 1, height, width, values in a plane)
    values = page.asarray(squeeze=False, maxworkers=1)[:, 0]
    values = values[0] if len(values) == 1 else np.moveaxis(values[..., 0], 0, -1)
    white = _white(values.dtype, page.bitspersample)
    alpha = None
    if extra and extra[0] in ("ASSOCALPHA", "UNASSALPHA"):
        alpha = values[..., colours : colours + 1] / white
    values = values[..., :colours]
    if photometric == "MINISWHITE":
        values = white - values.astype(np.float64)
    if alpha is not None and extra[0] == "ASSOCALPHA":
        values = np.divide(values, alpha, out=np.zeros(values.shape), where=alpha > 0)
    return values, white, alpha, found.orientation


def _first_page(file: BinaryIO) -> Any:
    # It logs what it finds odd, to standard error unless somebody takes it.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    import tifffile

    file.seek(0)
    return tifffile.TiffFile(file).pages.first


def _layout(page: Any) -> Layout:
    height, width = int(page.imagelength), int(page.imagewidth)
    if not height * width:
        raise ValueError("the TIFF is damaged: it gives no size")
    if height * width > 2 * (Image.MAX_IMAGE_PIXELS or height * width):
        raise Image.DecompressionBombError
    orientation = page.tags.get("Orientation")
    return Layout(height, width, 1 if orientation is None else int(orientation.value))


def _white(dtype: np.dtype[Any], bits: int) -> float:
    if dtype.kind == "f":
        return 255
    return float(2 ** (bits - (dtype.kind == "i")) - 1)
