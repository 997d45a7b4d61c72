"""Images with what a network says of them: as data for the report, and as galleries for a notebook."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image, ImageOps

from kbaseline.config.paths import expand_home
from kbaseline.console.format import percent
from kbaseline.data import Split
from kbaseline.data.decode import BadImageError, decode
from kbaseline.data.fit import Resize
from kbaseline.errors import DataError
from kbaseline.gradcam import grad_cam
from kbaseline.metrics import Evaluation
from kbaseline.render.images import SMALL, heat_picture, picture
from kbaseline.render.notebook import Card, Gallery


def examples(split: Split, shown: Iterable[int], evaluation: Evaluation) -> list[dict[str, Any]]:
    """These images, each with its name, picture, true and predicted class, and the probabilities of both."""
    small = max(split.images.shape[1:3]) <= SMALL
    found = [{**evaluation.example(int(index)), "picture": picture(np.asarray(split.images[index]))} for index in shown]
    return [
        {**one, "name": split.name(one["index"]), "small": small, "right": one["predicted"] == one["actual"]}
        for one in found
    ]


def explained_examples(
    model: keras.Model, split: Split, shown: Sequence[int], evaluation: Evaluation
) -> list[dict[str, Any]]:
    """`examples` with Grad-CAM heat maps for the predicted and the true class."""
    found = examples(split, shown, evaluation)
    if found:
        rows = np.asarray(shown)
        pixels = np.stack([split.images[i] for i in shown])
        # Both classes in one call, which compiles once.
        classes = np.concatenate([evaluation.probabilities[rows].argmax(axis=1), evaluation.labels[rows]])
        heats = np.split(grad_cam(model, np.concatenate([pixels, pixels]), classes), 2)
        for example, image, heat_predicted, heat_actual in zip(found, pixels, *heats, strict=True):
            example["heat_predicted"] = heat_picture(image, heat_predicted)
            example["heat_actual"] = heat_picture(image, heat_actual)
    return found


def example_gallery(model: keras.Model, split: Split, evaluation: Evaluation, shown: Sequence[int]) -> Gallery:
    """A gallery of these images: each beside what the model, as it is now, bases its prediction on (Grad-CAM)."""
    cards = []
    for one in explained_examples(model, split, shown, evaluation):
        lines = [
            f"predicted {one['predicted']} ({percent(one['p_predicted'])})",
            *([] if one["right"] else [f"is {one['actual']} ({percent(one['p_actual'])})"]),
            f"loss {one['loss']:.3g}",
            one["name"],
        ]
        cards.append(Card((one["picture"], one["heat_predicted"]), tuple(lines), bool(one["small"]), not one["right"]))
    return Gallery("highest loss first: predicted class, true class, loss; the heat map shows what decided", cards)


Picture = str | Path | Image.Image | np.ndarray
"""An image as a user has it: the path of a file, a PIL image, or uint8 `(height, width, 3)`."""

_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes that a PNG holds without loss."""


def read_pictures(pictures: Picture | Sequence[Picture], size: tuple[int, int], resize: Resize) -> list[np.ndarray]:
    """Reads pictures as a run reads its files; a single one needs no list.

    Returns:
        Arrays, uint8 `(height, width, 3)`, of `size`, height and width in pixels.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    single = isinstance(pictures, str | Path | Image.Image) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)
    every: Any = [pictures] if single else pictures
    if not len(every):
        raise DataError("pictures: there are none; give paths, PIL images or arrays.")
    pixels = []
    for number, one in enumerate(every):
        file = expand_home(one) if isinstance(one, str | Path) else _as_file(one)
        try:
            pixels.append(decode(file, *size, resize))
        except BadImageError as error:
            raise DataError(
                f"{str(one)!r}: {error}." if isinstance(file, Path) else f"picture {number}: {error}."
            ) from None
    return pixels


def prediction_gallery(
    pictures: Picture | Sequence[Picture],
    pixels: Sequence[np.ndarray],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    top: int,
) -> Gallery:
    """A gallery of pictures as the network sees them, with their most probable classes.

    Args:
        pictures: as `read_pictures` took them; paths are shown as names.
        pixels: what it returned.
        probabilities: float `(number, classes)`.
        class_names: names by label.
        top: number of classes.
    """
    named: Any = [pictures] if isinstance(pictures, str | Path) else pictures
    cards = []
    for number, (image, row) in enumerate(zip(pixels, probabilities, strict=True)):
        lines = [f"{class_names[i]} {percent(float(row[i]))}" for i in np.argsort(-row, kind="stable")[: max(top, 1)]]
        one = named[number] if isinstance(named, Sequence) else None
        lines += [Path(one).name] if isinstance(one, str | Path) else []
        cards.append(Card((picture(image),), tuple(lines), max(image.shape[:2]) <= SMALL))
    return Gallery(f"{len(cards)} {'prediction' if len(cards) == 1 else 'predictions'}", cards)


def _as_file(one: Image.Image | np.ndarray) -> io.BytesIO:
    """A picture in memory as a PNG, so that one reader decides what its pixels mean."""
    image = one if isinstance(one, Image.Image) else Image.fromarray(np.asarray(one))
    upright, file = ImageOps.exif_transpose(image), io.BytesIO()
    (upright if upright.mode in _IN_PNG else upright.convert("RGB")).save(file, "PNG")
    return file
