"""Exports a finished run's network as one portable file, which is compared with the run before it is published."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kbaseline.console.bars import Bar, status
from kbaseline.data.fit import fit_batch
from kbaseline.data.prepare import load_sample
from kbaseline.data.sources.registry import source_status
from kbaseline.devices.environment import version
from kbaseline.errors import InputError, KBaselineError, RunError, one_line, with_kind
from kbaseline.export.card import render_card
from kbaseline.export.formats import Format, get_format
from kbaseline.export.network import OUTPUT, UNFAMILIARITY, compute_in_float32, stock_network
from kbaseline.models.cpu import restore
from kbaseline.runs.copies import copies_of_run
from kbaseline.runs.record import read_run
from kbaseline.runs.run import SavedRun, load
from kbaseline.storage.run_folder import RunFolder

TOLERANCE = 1e-4
"""Largest allowed difference between a probability of the exported file and of the run."""

UNFAMILIARITY_TOLERANCE = 1e-3
"""Largest allowed difference between an unfamiliarity of both, as a part of it where it is above 1."""

CARD = "model_card.md"

EXPORTS = "exports"
"""Folder in a run folder for its exports."""
"""File name of the model card."""

_IMAGES, _BATCH, _SINGLE = 100, 25, 3
"""Images to compare on; their batch size; how many of them are first predicted one by one."""

_MIN_SIDE, _MAX_SIDE = 8, 4096
"""Smallest and largest height and width of the input, in pixels."""


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with its run's network, both computed in float32.

    Attributes:
        images: number of images predicted with both.
        source: description of the images.
        batches: the batch sizes used with the file.
        difference: largest difference between two probabilities.
    """

    images: int
    source: str
    batches: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.images} {self.source}, in batches of {self.batches[0]} and {self.batches[1]}: the same classes, "
            f"probabilities differ by at most {self.difference:.1e}"
        )


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: the exported file.
        card: the model card beside it.
        height, width: size of its input images, in pixels.
        agreement: result of the comparison with the run.
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
    """Exports a run's network: from raw uint8 pixels, with resize and normalisation inside, to float32 probabilities.

    The probabilities are calibrated, and a second output is the unfamiliarity, unless an older version made the run.
    The file takes batches of any size, of images of one height and width. It is written to a temporary folder, read
    by the reader of its format and compared with the run's network on real images; only then is it published.

    Args:
        run: the folder of a finished run.
        kind: `keras`, `onnx` or `stablehlo`.
        out: the folder for file and model card, new or empty; None for `exports/KIND` in the run folder, numbered if
            it exists.
        input_size: height and width of the input images, in pixels; None for the size of the run's images.
        console: where progress is shown; None shows nothing.

    Raises:
        InputError: the folder holds no finished run, the format is unknown, a package it needs is missing, the size
            is out of range, or `out` is not empty.
        RunError: the format cannot express the network, or the file disagrees with the run; no file is left.
    """
    fmt, console = get_format(kind), console or Console(quiet=True)
    RunFolder.check(out, read_run(Path(run)).folder / EXPORTS)
    if input_size is not None and not all(_MIN_SIDE <= side <= _MAX_SIDE for side in input_size):
        given = " ".join(str(side) for side in input_size)
        raise InputError(f"input size {given}: height and width must be {_MIN_SIDE} to {_MAX_SIDE} pixels.")
    saved = replace(load(run), console=console)
    restore(saved.model)
    images, source = _real_images(saved)
    height, width = input_size or saved.image_size
    images = fit_batch(images, height, width, "squish")
    metadata: dict[str, Any] = {
        "class_names": list(saved.class_names),
        "input": f"uint8 (batch, {height}, {width}, 3), RGB, 0-255",
        "output": f"float32 (batch, {len(saved.class_names)}), probabilities",
        "run": saved.config.name,
        "kbaseline": version("kbaseline"),
    }
    if saved.doubt:
        metadata |= {"output": f"{metadata['output']}; float32 (batch,), unfamiliarity", "doubt": saved.doubt.summary()}
    with tempfile.TemporaryDirectory(prefix="kbaseline-") as scratch:
        draft = Path(scratch) / fmt.file
        rounded = compute_in_float32(saved.model)
        with _one_line_errors(fmt, saved):
            with status(console, f"{fmt.file}: converting"):
                sizes = (height, width), saved.image_size, saved.config.data.resize
                fmt.write(stock_network(saved.model, *sizes, saved.doubt), metadata, draft)
            agreement = _check_agreement(fmt, draft, saved, images, source)
        card = render_card(read_run(saved.folder), kind, draft, (height, width), str(agreement), rounded, saved.doubt)
        folder = RunFolder.create(out, kind, under=saved.folder / EXPORTS)
        with folder.atomic(fmt.file) as path:
            shutil.copyfile(draft, path)
    return Exported(folder.path / fmt.file, folder.write_text(CARD, card), height, width, agreement)


@contextmanager
def _one_line_errors(fmt: Format, saved: SavedRun) -> Iterator[None]:
    """Turns an error of a converter or runtime, mostly about an unsupported operation, into one line."""
    try:
        yield
    except KBaselineError:
        raise
    except Exception as error:
        raise RunError(
            f"export of run {str(saved.folder)!r}: {fmt.file} cannot be created ({with_kind(error)}); "
            "nothing was written. Try another format."
        ) from error


def _check_agreement(fmt: Format, draft: Path, saved: SavedRun, images: np.ndarray, source: str) -> Agreement:
    """Compares the draft file with the run's network, at two batch sizes.

    Raises:
        RunError: a probability differs by more than `TOLERANCE` or an unfamiliarity by more than its own, or a
            predicted class or a class name differs.
    """
    answer = saved.answer(images)
    expected, strange = answer.probabilities, answer.unfamiliarity
    predict, metadata = fmt.read(draft)
    single, several = min(_SINGLE, len(images)), min(_BATCH, len(images))
    difference, changed, off = 0.0, 0, 0.0
    with Bar(saved.console, "Checking", single + len(images)) as bar:
        for size, end in ((1, single), (several, len(images))):
            for start in range(0, end, size):
                outputs, wanted = predict(images[start : start + size]), expected[start : start + size]
                actual = outputs[OUTPUT]
                # NumPy's maximum keeps NaN, and NaN fails every comparison.
                difference = np.maximum(difference, np.abs(actual - wanted).max())
                changed += int((actual.argmax(axis=1) != wanted.argmax(axis=1)).sum())
                if strange is not None:
                    known = strange[start : start + size]
                    off = np.maximum(off, (np.abs(outputs[UNFAMILIARITY] - known) / np.maximum(known, 1)).max())
                bar.advance(size)
    if not off <= UNFAMILIARITY_TOLERANCE:
        raise RunError(
            f"export of run {str(saved.folder)!r}: {fmt.file} gives an unfamiliarity that differs from the run's by up "
            f"to {off:.1e} of it on {len(images)} {source}, more than the allowed {UNFAMILIARITY_TOLERANCE:.0e}; "
            "nothing was written. Try another format."
        )
    if not (difference <= TOLERANCE and not changed and metadata["class_names"] == list(saved.class_names)):
        raise RunError(
            f"export of run {str(saved.folder)!r}: {fmt.file} disagrees with the run's network on {len(images)} "
            f"{source}: {changed} classes differ, and probabilities differ by up to {difference:.1e}, more than the "
            f"allowed {TOLERANCE:.0e}; nothing was written. Try another format."
        )
    return Agreement(len(images), source, (1, several), float(difference))


def _real_images(saved: SavedRun) -> tuple[np.ndarray, str]:
    """Images to compare on, uint8 `(number, height, width, 3)`, and their description.

    Validation images of the run, evenly spaced. If the run's data is not on this machine, crops of scikit-learn's
    sample photographs, because an export downloads nothing.
    """
    config = saved.config
    here, reason = source_status(config.data)
    if here:
        try:
            copies = copies_of_run(saved.folder, config.data, saved.console)
            images = load_sample(
                config.data, config.seed, _IMAGES, saved.console, image_size=saved.image_size, copies=copies
            )
        except KBaselineError as error:
            reason = one_line(error)
        else:
            count = len(images) - (len(images) % _BATCH if len(images) > _BATCH else 0)
            # Equal batches: the reader compiles once.
            return images[:count], f"validation images of {config.data.source}"
    return _photographs(config.data.size), f"crops of scikit-learn's photographs (the run's data: {reason})"


def _photographs(size: int) -> np.ndarray:
    """Square crops of two photographs at many scales, uint8 `(number, size, size, 3)`."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    pieces = []
    for number in range(_IMAGES):
        photograph = photographs[number % len(photographs)]
        side = int(rng.integers(32, min(photograph.shape[:2])))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        piece = photograph[top : top + side, left : left + side]
        pieces.append(fit_batch(piece[None], size, size, "squish")[0])
    return np.stack(pieces)
