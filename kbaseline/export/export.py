"""A finished run's network as one file that runs elsewhere, checked against the run before anybody sees it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.data.sources.registry import load_source, source_status
from kbaseline.devices.xla import environment
from kbaseline.errors import InputError, KBaselineError, RunError, one_line, with_kind
from kbaseline.export.card import render_card
from kbaseline.export.formats import Format, get_format
from kbaseline.export.network import compute_in_float32, stock_network
from kbaseline.models.cpu import restore
from kbaseline.runs.record import read_run
from kbaseline.runs.run import SavedRun, load
from kbaseline.storage.run_folder import RunFolder

TOLERANCE = 1e-4
"""Largest difference of a probability that an exported file may show."""

CARD = "model_card.md"
"""The card's name."""

_IMAGES, _BATCH, _SINGLE = 100, 25, 3
"""Images to check on; how many of them at once; how many of them one by one before."""

_MIN_SIDE, _MAX_SIDE = 8, 4096
"""Pixels an input may be high and wide."""


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with its run's network, both computed in float32.

    Attributes:
        images: how many were predicted with both.
        source: what they are.
        batches: the batch sizes the file was asked with.
        difference: largest difference of a probability.
    """

    images: int
    source: str
    batches: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.images} {self.source}, in batches of {self.batches[0]} and {self.batches[1]}: the same classes, "
            f"probabilities that differ by {self.difference:.1e} at most"
        )


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Attributes:
        path: the file.
        card: the model card beside it.
        height, width: of the images it takes, in pixels.
        agreement: the check it passed.
    """

    path: Path
    card: Path
    height: int
    width: int
    agreement: Agreement


def export_run(
    run: str | Path,
    kind: str,
    out: Path | None = None,
    input_size: tuple[int, int] | None = None,
    console: Console | None = None,
) -> Exported:
    """Exports a run's network: raw uint8 pixels in, resize and normalisation inside, float32 probabilities out.

    The file takes batches of any number of images of one height and width. It is written to a temporary folder, read
    again by its own format's reader and compared with the run's network on real images; only then does it appear.

    Args:
        run: the folder of a finished run.
        kind: `keras`, `onnx` or `stablehlo`.
        out: the folder for file and model card, absent or empty; None for `exports/KIND` in the run's, numbered if
            there is one.
        input_size: height and width of the images the file takes, in pixels; None for those of the run's images.
        console: where progress goes; None shows nothing.

    Raises:
        InputError: no finished run, no such format, a package it needs is missing, a size that is out of range, or a
            folder that holds something.
        RunError: the format cannot say what the network does, or the file does not agree with the run; no file is
            left.
    """
    fmt, console = get_format(kind), console or Console(quiet=True)
    RunFolder.check(out)
    if input_size is not None and not all(_MIN_SIDE <= side <= _MAX_SIDE for side in input_size):
        given = " ".join(str(side) for side in input_size)
        raise InputError(f"input size {given}: height and width must be {_MIN_SIDE} to {_MAX_SIDE} pixels.")
    saved = replace(load(run), console=console)
    restore(saved.model)
    images, source = _real_images(saved)
    height, width = input_size or saved.result.data.image_size or images.shape[1:3]
    images = _resized_batch(images, height, width)
    metadata = {
        "class_names": list(saved.class_names),
        "input": f"uint8 (batch, {height}, {width}, 3), RGB, 0-255",
        "output": f"float32 (batch, {len(saved.class_names)}), probabilities",
        "run": saved.config.name,
        "kbaseline": environment()["kbaseline"],
    }
    with tempfile.TemporaryDirectory(prefix="kbaseline-") as scratch:
        draft = Path(scratch) / fmt.file
        rounded = compute_in_float32(saved.model)
        with _one_line_errors(fmt, saved):
            with console.status(f"{fmt.file}: converting"):
                fmt.write(stock_network(saved.model, height, width), metadata, draft)
            agreement = _check_agreement(fmt, draft, saved, images, source)
        card = render_card(read_run(saved.folder), kind, draft, (height, width), str(agreement), rounded)
        folder = RunFolder.create(out, kind, under=saved.folder / "exports")
        with folder.atomic(fmt.file) as path:
            shutil.copyfile(draft, path)
    return Exported(folder.path / fmt.file, folder.write_text(CARD, card), height, width, agreement)


@contextmanager
def _one_line_errors(fmt: Format, saved: SavedRun) -> Iterator[None]:
    """Converters and runtimes raise whatever they trip over; nearly all of it means an operation they do not know."""
    try:
        yield
    except KBaselineError:
        raise
    except Exception as error:
        raise RunError(
            f"export of run {str(saved.folder)!r}: {fmt.file} cannot be made ({with_kind(error)}); "
            "nothing was written. Try another format."
        ) from error


def _check_agreement(fmt: Format, draft: Path, saved: SavedRun, images: np.ndarray, source: str) -> Agreement:
    """Reads the draft and compares it with the run's network, at two batch sizes.

    Raises:
        RunError: a probability differs by more than `TOLERANCE`, or a class or a class's name differs.
    """
    expected = saved.predict(images)
    predict, metadata = fmt.read(draft)
    single, several = min(_SINGLE, len(images)), min(_BATCH, len(images))
    difference, changed = 0.0, 0
    with Bar(saved.console, "Checking", single + len(images)) as bar:
        for size, end in ((1, single), (several, len(images))):
            for start in range(0, end, size):
                found, wanted = predict(images[start : start + size]), expected[start : start + size]
                # NumPy's maximum keeps NaN, and NaN passes no comparison.
                difference = np.maximum(difference, np.abs(found - wanted).max())
                changed += int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum())
                bar.advance(size)
    if not (difference <= TOLERANCE and not changed and metadata["class_names"] == list(saved.class_names)):
        raise RunError(
            f"export of run {str(saved.folder)!r}: {fmt.file} does not agree with the run's network on {len(images)} "
            f"{source}: {changed} classes differ, and probabilities by up to {difference:.1e} where {TOLERANCE:.0e} is "
            "the most allowed; nothing was written. Try another format."
        )
    return Agreement(len(images), source, (1, several), float(difference))


def _real_images(saved: SavedRun) -> tuple[np.ndarray, str]:
    """Images to check on, uint8 `(number, height, width, 3)`, and what they are.

    Validation images of the run, spread over all there are; pieces of scikit-learn's photographs where the run's
    data is not on this machine, for an export downloads nothing.
    """
    config = saved.config
    here, reason = source_status(config.data)
    if here:
        try:
            valid = load_source(config.data, config.seed, saved.console).valid.images
        except KBaselineError as error:
            reason = one_line(error)
        else:
            count = min(len(valid), _IMAGES)
            count -= count % _BATCH if count > _BATCH else 0  # every batch of one size: the reader compiles it once
            places = np.linspace(0, len(valid) - 1, count).astype(int)
            return valid[places], f"validation images of {config.data.source}"
    return _photographs(config.data.size), f"pieces of scikit-learn's photographs (the run's data: {reason})"


def _photographs(size: int) -> np.ndarray:
    """Square pieces of two photographs at many scales, uint8 `(number, size, size, 3)`."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    pieces = []
    for number in range(_IMAGES):
        photograph = photographs[number % len(photographs)]
        side = int(rng.integers(32, min(photograph.shape[:2])))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        pieces.append(_resized(photograph[top : top + side, left : left + side], size, size))
    return np.stack(pieces)


def _resized_batch(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """The images at the size the exported file takes."""
    if images.shape[1:3] == (height, width):
        return images
    return np.stack([_resized(image, height, width) for image in images])


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
