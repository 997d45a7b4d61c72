"""Predicts image files, given as files, folders or patterns, with a finished run."""

import csv
import glob
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from kbaseline.config.paths import expand_home
from kbaseline.console.format import percent, plain_table
from kbaseline.data.cache import Target, decoded
from kbaseline.data.pictures import File, FilePictures
from kbaseline.data.walk import NO_IMAGE, is_rubbish, nearest_path, walk
from kbaseline.doubt import LEVELS
from kbaseline.errors import DataError, InputError, RunError
from kbaseline.runs.run import Answer, SavedRun

UNFAMILIAR = "none of these, probably"
"""What is said of an image with an unfamiliarity above 1."""


@dataclass(frozen=True, eq=False)
class FilePredictions:
    """A run's predictions of image files.

    Attributes:
        files: the readable files, in the given order.
        class_names: names of the columns.
        bad: unreadable file -> reason.
        answer: with the sets and the unfamiliarity of each of `files`.
    """

    files: list[Path]
    answer: Answer
    class_names: tuple[str, ...]
    bad: dict[Path, str]

    @property
    def probabilities(self) -> np.ndarray:
        """Float32 `(number, classes)`, one row for each of `files`."""
        return self.answer.probabilities

    def rows(self, top: int) -> list[dict[str, Any]]:
        """For each file `image`, `class`, `probability` (0 to 1) and `top`, its `top` most probable classes.

        Also `set`, the classes of its 90 % prediction set, `unfamiliarity` and `unfamiliar`, whether that is above 1,
        unless an older version made the run.
        """
        rows: list[dict[str, Any]] = []
        for file, p in zip(self.files, self.probabilities, strict=True):
            best = np.argsort(-p, kind="stable")[: max(top, 1)]
            ranked = [{"class": self.class_names[i], "probability": float(p[i])} for i in best]
            # A name that is not UTF-8 is no text for JSON or CSV.
            name = os.fsencode(file).decode("utf-8", "replace")
            rows.append({"image": name, **ranked[0], "top": ranked})
        if self.answer.sets is not None and self.answer.unfamiliarity is not None:
            for row, p, inside, strange in zip(
                rows, self.probabilities, self.answer.sets, self.answer.unfamiliarity, strict=True
            ):
                chosen = [self.class_names[i] for i in np.argsort(-p, kind="stable") if inside[i]]
                row |= {"set": chosen, "unfamiliarity": float(strange), "unfamiliar": bool(strange > 1)}
        return rows

    def to_csv(self, top: int) -> str:
        """CSV with a header and one line per file: the image, then class and probability of its `top` classes.

        Then `set`, its classes with ` | ` between them, `unfamiliarity` and `unfamiliar` (0 or 1), unless an older
        version made the run.
        """
        top = min(top, len(self.class_names))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        columns = ["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability"))]
        doubtful = self.answer.sets is not None
        writer.writerow(columns + (["set", "unfamiliarity", "unfamiliar"] if doubtful else []))
        for row in self.rows(top):
            doubts = [" | ".join(row["set"]), row["unfamiliarity"], int(row["unfamiliar"])] if doubtful else []
            writer.writerow([row["image"], *(value for entry in row["top"] for value in entry.values()), *doubts])
        return text.getvalue()


def find_images(arguments: Sequence[str]) -> tuple[list[Path], dict[Path, str]]:
    """The image files given as files, folders (searched recursively) and glob patterns, each once.

    Hidden files, and files that systems leave in folders, count only if they are named explicitly.

    Returns:
        The image files; every other file -> why it is left out.

    Raises:
        InputError: an argument matches nothing, or no file is an image.
    """
    found: dict[Path, None] = {}
    left_out: dict[Path, str] = {}
    for argument in arguments:
        path = expand_home(argument)
        # An existing file with brackets in its name is not a pattern.
        named = os.path.lexists(path)
        matches = [] if named else glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob wants a root
        places = [path] if named else [Path(name) for name in sorted(matches) if not is_rubbish(Path(name).name)]
        insides = [walk(Path(), str(place)) for place in places]
        for inside in insides:
            found |= dict.fromkeys(Path(file.path) for file in inside.images)
            left_out |= {Path(name): reason for name, reason in inside.left_out}
            left_out |= {Path(name): NO_IMAGE for name in inside.others}
        if not any(inside.images or inside.left_out or inside.others for inside in insides):
            what = "contains no image" if places else "no such file, and no file matches it as a pattern"
            near = "" if places else nearest_path(path, Path.exists)
            raise InputError(f"{argument!r}: {what}; give image files or their folder.{near}")
    if not found:
        file, reason = next(iter(left_out.items()))
        raise InputError(f"none of {len(left_out):,} files can be used; the first is {str(file)!r} ({reason}).")
    return list(found), left_out


def predict_files(
    run: SavedRun, files: Sequence[Path], *, tta: bool = False, console: Console | None = None
) -> FilePredictions:
    """Predicts image files, decoded and resized like the run's training images.

    Args:
        run: see `load`.
        files: see `find_images`.
        tta: use test-time augmentation, as the run was configured.
        console: where decoding shows its progress; None shows nothing.

    Raises:
        DataError: none of the files can be read.
        InputError: `tta` is true, but the run's configuration turns it off.
        RunError: the system's temporary folder cannot be written to.
    """
    data = run.config.data
    files = list(files)
    # Size and modification time 0: they only matter to a cache that outlives this call.
    pictures = FilePictures(Path(), [File(str(file), 0, 0) for file in files])
    chosen = {"given": np.arange(len(files))}
    target = Target(data.size, data.resize, strict=False, image_size=run.image_size)
    # Decoded to a temporary file, so that memory stays bounded for any number of images.
    with tempfile.TemporaryDirectory(prefix="kbaseline-") as scratch:
        try:
            done = decoded(pictures, chosen, target, Path(scratch), console)["given"]
        except DataError as error:
            raise DataError(str(error).replace("given images: ", "")) from None
        except RunError as error:
            remedy = "set TMPDIR to a folder on another disk"
            raise RunError(str(error).replace("set data.cache_dir", remedy)) from None
        answer = run.answer(done.images, tta=tta)
    kept = [file for position, file in enumerate(files) if position not in done.bad]
    return FilePredictions(kept, answer, run.class_names, {files[i]: why for i, why in done.bad.items()})


def print_predictions(predictions: FilePredictions, top: int, console: Console) -> None:
    """Prints a table: one line per file, its most probable classes with their probabilities, its prediction set."""
    table = plain_table("image")
    for rank in range(min(top, len(predictions.class_names))):
        table.add_column("class" if rank == 0 else f"{rank + 1}.", overflow="fold")
        table.add_column("", justify="right")
    if predictions.answer.sets is not None:
        table.add_column(f"{LEVELS[0]:.0%} set".replace("%", " %"), overflow="fold")
    for row in predictions.rows(top):
        cells = [cell for entry in row["top"] for cell in (Text(entry["class"]), percent(entry["probability"]))]
        if "set" in row:
            cells.append(Text(UNFAMILIAR, "yellow") if row["unfamiliar"] else Text(", ".join(row["set"])))
        table.add_row(Text(row["image"]), *cells)
    console.print(table)
