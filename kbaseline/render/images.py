"""Images and figures as data URIs, small enough to embed dozens of them in one page."""

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 64
"""Images up to this many pixels are shown unsmoothed."""

_LARGEST = 224
"""Longest side of an embedded image, in pixels."""

_QUALITY = 82
"""Of JPEG."""

_HEAT = 160
"""Shortest length of a heat map's longer side, in pixels, so that its soft edges show."""


def picture(image: np.ndarray) -> str:
    """An image as a data URI: lossless PNG up to `SMALL` pixels, else JPEG of at most 224 pixels.

    Args:
        image: uint8 `(height, width, 3)`.
    """
    content, kind = encoded(image)
    return _uri(kind, content)


def encoded(image: np.ndarray) -> tuple[bytes, str]:
    """The same as bytes, with their media type."""
    file = io.BytesIO()
    if max(image.shape[:2]) <= SMALL:
        Image.fromarray(image).save(file, "PNG", optimize=True)
        return file.getvalue(), "image/png"
    _fitted(image).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), "image/jpeg"


def heat_picture(image: np.ndarray, heat: np.ndarray) -> str:
    """A greyscale image overlaid with a heat map, as a data URI.

    Args:
        image: uint8 `(height, width, 3)`.
        heat: float `(rows, columns)`, 0 to 1, covering the whole image.
    """
    # A prediction without a heat map need not wait for it.
    import matplotlib

    base = _fitted(image)
    # An integer factor without smoothing keeps the pixels sharp.
    factor = max(1, -(-_HEAT // max(base.size)))
    base = base.convert("L").resize((base.width * factor, base.height * factor), Image.Resampling.NEAREST)
    smooth = Image.fromarray(np.asarray(heat, np.float32)).resize(base.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)[..., None]
    colours = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3] * 255
    grey = 0.8 * np.asarray(base, np.float32)[..., None]
    # Where the heat is 0, the image itself shows.
    opaque = 0.75 * np.sqrt(strength)
    return _jpeg(Image.fromarray(np.rint(grey * (1 - opaque) + colours * opaque).astype(np.uint8)))


def chart(figure: "Figure") -> str:
    """A figure as `svg` gives it; empties the figure to free its memory."""
    made = svg(figure)
    figure.clear()
    return made


def svg(figure: "Figure") -> str:
    """A figure as a data URI of SVG on a transparent ground; a dark page inverts it (`report.css`, `notebook.css`).

    The letters stay text, in the reader's own font, so that a class name in any script is shown.
    """
    import matplotlib

    options: Any = {"svg.fonttype": "none", "svg.hashsalt": "kbaseline", "font.family": "sans-serif"}
    file = io.BytesIO()
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", file.getvalue())


def _fitted(image: np.ndarray) -> Image.Image:
    made = Image.fromarray(image)
    made.thumbnail((_LARGEST, _LARGEST))
    return made


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return _uri("image/jpeg", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
