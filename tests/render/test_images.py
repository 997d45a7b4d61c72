"""Pictures as data URIs: the very pixels, bounded sizes."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from kbaseline.render.images import chart, heat_picture, picture
from kbaseline.render.plots import plot_confusion


def content(uri, kind):
    start, text = uri.split(";base64,")
    assert start == f"data:{kind}"
    return base64.b64decode(text, validate=True)


def pixels(uri, kind):
    with Image.open(io.BytesIO(content(uri, kind))) as image:
        return np.asarray(image.convert("RGB"))


def test_a_small_image_keeps_its_pixels(rng):
    """Invariant: up to 64 pixels nothing is resized or compressed with loss."""
    image = rng.integers(0, 256, (32, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(picture(image), "image/png"), image)


def test_a_large_image_is_bounded(rng):
    """Golden: at most 224 pixels, of the same shape, in at most 60 KB even for noise."""
    uri = picture(rng.integers(0, 256, (800, 400, 3), dtype=np.uint8))
    assert pixels(uri, "image/jpeg").shape == (224, 112, 3)
    assert len(uri) < 60_000


def test_heat_lies_where_the_map_is_high():
    """Golden: a map whose right half is hot colours the right half of a grey image, and leaves the left one grey."""
    image, heat = np.full((32, 32, 3), 100, np.uint8), np.array([[0.0, 1.0], [0.0, 1.0]])
    shown = pixels(heat_picture(image, heat), "image/jpeg").astype(int)
    assert shown.shape == (160, 160, 3)
    left, right = shown[:, :20].mean(axis=(0, 1)), shown[:, -20:].mean(axis=(0, 1))
    assert np.ptp(left) < 6  # no colour
    assert right[0] - right[2] > 60  # yellow
    cold = pixels(heat_picture(image, np.zeros((2, 2))), "image/jpeg")
    assert np.ptp(cold.astype(int)) < 6


def test_a_chart_is_text_on_no_ground():
    """Golden: one SVG of well-formed XML on a transparent ground; names are text, escaped."""
    svg = content(chart(plot_confusion([[3, 1], [0, 2]], ["<script>x()", "猫"])), "image/svg+xml").decode()
    drawn = list(ElementTree.fromstring(svg).iter())  # noqa: S314 - our own file
    assert {"<script>x()", "猫", "3", "predicted"} <= {element.text for element in drawn}
    assert "<script" not in svg
    ground = next(element for element in drawn if element.get("id") == "patch_1")
    assert "fill: none" in ground[0].get("style")


def test_a_chart_is_the_same_twice():
    """Determinism: the same figure gives the same bytes; no date, no random names."""
    assert chart(plot_confusion([[1]], ["a"])) == chart(plot_confusion([[1]], ["a"]))
