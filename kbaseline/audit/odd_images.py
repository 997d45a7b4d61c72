"""Odd images: dark, bright, blank or blurred ones, odd shapes and sizes, and those far from all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.console import Console
from scipy.ndimage import laplace

from kbaseline.console.bars import Bar
from kbaseline.data import ImageData
from kbaseline.data.decode import Header
from kbaseline.data.duplicates import Place

DARK, BRIGHT = 0.32, 0.95
"""An image is dark if 99 % of its pixels are below the first (CleanVision's rule), bright if 95 % are above the second;
brightness 0 to 1."""

BLANK = 3.0
"""An image whose grey values, 0-255, have a smaller standard deviation is blank."""

ODD_ASPECT, ODD_SIZE = 0.35, 10.0
"""A shorter side below this share of the longer, and a side this many times longer or shorter than the median
(CleanVision's rules), where most images are not so."""

FAR_OUT = 3.0
"""Tukey's outer fence: that many interquartile ranges beyond the quartile."""


@dataclass(frozen=True)
class Odd:
    """An odd image.

    Attributes:
        place: the image.
        kind: `dark`, `bright`, `blank`, `blurred`, `odd size`, `odd aspect` or `far`.
        score: what was measured: brightness 0 to 1, standard deviation of the grey values, sharpness, the side in
            medians, the aspect, or the mean cosine to the nearest images.
    """

    place: Place
    kind: str
    score: float


def find_odd_images(
    data: ImageData,
    places: Sequence[Place],
    nearness: np.ndarray,
    headers: Mapping[Place, Header],
    console: Console | None = None,
) -> tuple[Odd, ...]:
    """Odd images by kind, the oddest of each first.

    Blur is what remains visible at the size the network sees: an image that is sharp there counts as sharp.

    Args:
        data: the images.
        places: all of them, in order.
        nearness: float `(images,)`, mean cosine of the features to the nearest images.
        headers: what is known of the files; images that are not files have none.
        console: where to show progress; None shows nothing.
    """
    measured = _measure(data, console)
    dark, bright, spread, sharp = measured.T
    blank = spread < BLANK
    visible = ~blank & (dark >= DARK)
    found = [
        *_chosen(places, "blank", spread, blank),
        *_chosen(places, "dark", dark, (dark < DARK) & ~blank),
        *_chosen(places, "bright", -bright, (bright > BRIGHT) & ~blank),
        *_chosen(places, "blurred", sharp, visible & _far_below(np.log(sharp.clip(1e-6)), visible)),
        *_odd_shapes(places, headers),
        *_chosen(places, "far", nearness, ~blank & _far_below(nearness, np.ones(len(nearness), bool))),
    ]
    return tuple(found)


def _measure(data: ImageData, console: Console | None) -> np.ndarray:
    """Of every image: 99 % and 5 % quantile of brightness, deviation of the grey values, and sharpness."""
    rows = []
    with Bar(console, "Looking at images", sum(map(len, data.splits.values()))) as bar:
        for split in data.splits.values():
            for image in split.images:
                values = np.asarray(Image.fromarray(np.asarray(image)).convert("L"), np.float32)
                spread = float(values.std())
                low, high = np.quantile(values, (0.05, 0.99)) / 255
                # The Laplacian answers to fine structure; divided by the contrast, not to a faint picture.
                rows.append((high, low, spread, float(laplace(values).std()) / max(spread, 1.0)))
                bar.advance()
    return np.array(rows)


def _far_below(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Whether each value lies below Tukey's outer fence of the usable ones."""
    if usable.sum() < 8:
        return np.zeros(len(values), bool)
    low, high = np.quantile(values[usable], (0.25, 0.75))
    far: np.ndarray = values < low - FAR_OUT * max(high - low, 1e-9)
    return far


def _odd_shapes(places: Sequence[Place], headers: Mapping[Place, Header]) -> list[Odd]:
    known = [place for place in places if place in headers]
    if not known:
        return []
    sides = np.array([np.sqrt(headers[place].height * headers[place].width) for place in known])
    aspects = np.array([_aspect(headers[place]) for place in known])
    ratio = sides / np.median(sides)
    wide = (aspects < ODD_ASPECT) & (np.median(aspects) >= ODD_ASPECT)
    return [
        *_chosen(known, "odd size", np.minimum(ratio, 1 / ratio), (ratio > ODD_SIZE) | (ratio < 1 / ODD_SIZE)),
        *_chosen(known, "odd aspect", aspects, wide),
    ]


def _aspect(header: Header) -> float:
    return min(header.height, header.width) / max(header.height, header.width)


def _chosen(places: Sequence[Place], kind: str, scores: np.ndarray, mask: np.ndarray) -> list[Odd]:
    order = [number for number in np.argsort(scores, kind="stable").tolist() if mask[number]]
    return [Odd(places[number], kind, abs(float(scores[number]))) for number in order]
