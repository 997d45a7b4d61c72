"""A contact sheet of training images: each resized, and with random augmentation."""

import numpy as np
from matplotlib.figure import Figure

from kbaseline.config.schema import TransformsConfig
from kbaseline.console.format import shortened
from kbaseline.data import ImageData
from kbaseline.data.sample import spread_rows, transformed
from kbaseline.render.plots import GREY, INK

ROWS = 12
"""Most images on a sheet, divided evenly among the classes; of more classes, this many evenly spaced ones are shown."""

VIEWS = 5
"""Augmented views of each image."""

_WIDTH, _LABEL = 6.9, 0.9
"""Widths in inches: of the sheet, as of every plot, and of the class names on its left."""


def sheet_images(data: ImageData, transforms: TransformsConfig, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Selects the images of the sheet and augments them.

    Args:
        data: training images are drawn from it by class.
        transforms: the augmentation.
        seed: seed of the selection and the augmentation.

    Returns:
        Labels int32 `(images,)`; the images resized as for validation, uint8 0-255 `(images, size, size, 3)`; and
        augmented, uint8 0-255 `(images, VIEWS, size, size, 3)`.
    """
    per_class = ROWS // min(ROWS, len(np.unique(data.train.labels)))
    chosen = spread_rows(data.train.labels, ROWS, seed, per_class)
    labels = data.train.labels[chosen]
    images = np.asarray(data.train.images[chosen])
    plain, augmented = (
        transformed(np.repeat(images, count, axis=0), data.size, transforms, seed, training=count > 1)
        for count in (1, VIEWS)
    )
    return labels, plain, augmented.reshape(len(images), VIEWS, *augmented.shape[1:])


def plot_contact_sheet(data: ImageData, transforms: TransformsConfig, seed: int) -> Figure:
    """Draws the sheet, one row per image: resized, then augmented; see `sheet_images`."""
    labels, plain, augmented = sheet_images(data, transforms, seed)
    cell = (_WIDTH - _LABEL) / (VIEWS + 1)
    height = cell * len(labels) + 0.4
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    for row, label in enumerate(labels):
        for column, image in enumerate((plain[row], *augmented[row])):
            # A narrow gap separates the resized image from the augmented ones.
            left = _LABEL + column * cell + (0.06 if column else 0)
            bottom = height - 0.4 - (row + 1) * cell
            box = (left / _WIDTH, bottom / height, (cell - 0.08) / _WIDTH, (cell - 0.08) / height)
            axes = figure.add_axes(box)
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
        middle = (bottom + cell / 2) / height
        shown = shortened(data.class_names[label], 13)
        figure.text(0.1 / _WIDTH, middle, shown, va="center", color=INK, fontsize=9, parse_math=False)
    top = 1 - 0.22 / height
    figure.text((_LABEL + cell / 2 - 0.04) / _WIDTH, top, "resized", ha="center", color=GREY, fontsize=9)
    middle = (_LABEL + cell * (1 + VIEWS / 2)) / _WIDTH
    figure.text(middle, top, "augmented, as training may show it", ha="center", color=GREY, fontsize=9)
    return figure
