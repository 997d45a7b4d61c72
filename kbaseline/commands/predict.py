"""Predicts image files with a finished run: files, folders and patterns in, one answer for each image out."""

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

from kbaseline.console.format import percent, plain_table
from kbaseline.data.cache import Target, decoded
from kbaseline.data.pictures import File, FilePictures
from kbaseline.data.walk import NO_IMAGE, is_rubbish, nearest_path, walk
from kbaseline.errors import DataError, InputError
from kbaseline.runs.run import SavedRun


@dataclass(frozen=True, eq=False)
class FilePredictions:
    """What a run says of image files.

    Attributes:
        files: those that could be read, in the order asked for.
        probabilities: float32 `(number, classes)`, a row for each of `files`.
        class_names: the name of each column.
        bad: file -> why it could not be read.
    """

    files: list[Path]
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    bad: dict[Path, str]

    def rows(self, top: int) -> list[dict[str, Any]]:
        """For each file `image`, `class`, `probability` (0 to 1), and as `top` that many classes, likeliest first."""
        rows = []
        for file, p in zip(self.files, self.probabilities, strict=True):
            best = np.argsort(-p, kind="stable")[: max(top, 1)]
            ranked = [{"class": self.class_names[i], "probability": float(p[i])} for i in best]
            # A name that is not UTF-8 is no text for JSON or CSV.
            name = os.fsencode(file).decode("utf-8", "replace")
            rows.append({"image": name, **ranked[0], "top": ranked})
        return rows

    def to_csv(self, top: int) -> str:
        """One line a file under a header: the image, then class and probability of each of the `top` likeliest."""
        top = min(top, len(self.class_names))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability"))]
        )
        for row in self.rows(top):
            writer.writerow([row["image"], *(value for entry in row["top"] for value in entry.values())])
        return text.getvalue()


def find_images(arguments: Sequence[str]) -> tuple[list[Path], dict[Path, str]]:
    """The image files that files, folders (searched to any depth) and patterns stand for, each once.

    Hidden files, and what systems leave in folders, count only where they are named outright.

    Returns:
        The image files; every other file -> why it is left out.

    Raises:
        InputError: an argument that stands for nothing, or no image at all.
    """
    found: dict[Path, None] = {}
    left_out: dict[Path, str] = {}
    for argument in arguments:
        path = Path(argument).expanduser()
        # A file whose own name holds brackets is no pattern.
        named = os.path.lexists(path)
        matches = [] if named else glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob wants a root
        places = [path] if named else [Path(name) for name in sorted(matches) if not is_rubbish(Path(name).name)]
        insides = [walk(Path(), str(place)) for place in places]
        for inside in insides:
            found |= dict.fromkeys(Path(file.path) for file in inside.images)
            left_out |= {Path(name): reason for name, reason in inside.left_out}
            left_out |= {Path(name): NO_IMAGE for name in inside.others}
        if not any(inside.images or inside.left_out or inside.others for inside in insides):
            what = "holds no image" if places else "no such file, and no file matches it as a pattern"
            near = "" if places else nearest_path(path, Path.exists)
            raise InputError(f"{argument!r}: {what}; give image files or their folder.{near}")
    if not found:
        file, reason = next(iter(left_out.items()))
        raise InputError(f"none of {len(left_out):,} files can be used; the first is {str(file)!r} ({reason}).")
    return list(found), left_out


def predict_files(
    run: SavedRun, files: Sequence[Path], *, tta: bool = False, console: Console | None = None
) -> FilePredictions:
    """Predicts image files, decoded and sized as the run's training images were.

    Args:
        run: see `load`.
        files: see `find_images`.
        tta: with test-time augmentation, as the run's configuration says.
        console: where decoding shows its progress; None shows nothing.

    Raises:
        DataError: none of the files can be read.
        InputError: `tta`, and the run's configuration leaves it out.
        RunError: the system's folder for temporary files cannot be written.
    """
    data = run.config.data
    files = list(files)
    # Of a copy that lasts for a moment nobody asks whether the files have changed.
    pictures = FilePictures(Path(), [File(str(file), 0, 0) for file in files])
    chosen = {"given": np.arange(len(files))}
    target = Target(data.size, data.resize, strict=False)
    # On disk for the moment: memory stays bounded however many there are.
    with tempfile.TemporaryDirectory(prefix="kbaseline-") as scratch:
        try:
            done = decoded(pictures, chosen, target, Path(scratch), console)["given"]
        except DataError as error:
            raise DataError(str(error).replace("given images: ", "")) from None
        probabilities = run.predict(done.images, tta=tta)
    kept = [file for position, file in enumerate(files) if position not in done.bad]
    return FilePredictions(kept, probabilities, run.class_names, {files[i]: why for i, why in done.bad.items()})


def print_predictions(found: FilePredictions, top: int, console: Console) -> None:
    """A table for people: one line a file, its likeliest classes with their probabilities."""
    table = plain_table("image")
    for rank in range(min(top, len(found.class_names))):
        table.add_column("class" if rank == 0 else f"{rank + 1}.", overflow="fold")
        table.add_column("", justify="right")
    for row in found.rows(top):
        cells = [cell for entry in row["top"] for cell in (Text(entry["class"]), percent(entry["probability"]))]
        table.add_row(Text(row["image"]), *cells)
    console.print(table)
