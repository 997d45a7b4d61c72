"""The source `csv:PATH`: a table with an image, its label and perhaps its split in every row."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import SPLITS
from kbaseline.console.bars import Bar
from kbaseline.data.pictures import File, FilePictures, shown
from kbaseline.data.sources.csv_table import Row, read_table
from kbaseline.data.sources.listing import Listing
from kbaseline.errors import DataError, did_you_mean, listed, one_line


@contextmanager
def open_csv(path: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the images that a CSV file names; `csv_table.read_table` says what it may look like.

    Paths count from the file's own folder. Labels are texts; classes are sorted by name, or by value where all are
    whole numbers. Without a column of splits all images are `train`.

    A row with something missing, with an unknown split, whose image is not there, or that repeats another is left
    out and named, or is an error if `config.on_bad_image` says so. Of rows that contradict each other none counts.

    Args:
        path: the file; `~` is understood.
        config: `on_bad_image`, and the columns.
        console: where to show progress; None shows nothing.

    Raises:
        DataError: the file or a row breaks a rule, or no row can be used.
    """
    source = _source(path)
    display_name = f"csv {str(source)!r}"
    table = read_table(source, display_name, config)
    files, missing = _files(source.parent, table.rows, console)
    if table.rows and not files:
        first = shown(str(source.parent / table.rows[0].image))[:300]
        raise DataError(
            f"{display_name}: none of its {len(table.rows):,} images is there; the first is looked for at {first!r}. "
            "Paths count from the folder of the CSV file; correct them or move it."
        )
    there = [row for row in table.rows if row.line in files]
    bad = table.bad | missing | _clashes(there, files)
    rows = [row for row in there if row.line not in bad]
    if bad and (config.on_bad_image == "error" or not rows):
        line = min(bad)
        more = f" ({len(bad):,} rows cannot be used)" if len(bad) > 1 else ""
        remedy = ", or set data.on_bad_image to 'skip'" if rows else ""
        raise DataError(f"{display_name} line {line}: {bad[line]}; correct it{remedy}.{more}")
    if not rows:
        raise DataError(f"{display_name}: has no rows; name an image and its label in each.")
    names = _sorted({row.label for row in rows})
    places = {name: place for place, name in enumerate(names)}
    # One list after the other, each in the order of the file.
    by_split = {split: [row for row in rows if (row.split or "train") == split] for split in SPLITS}
    labels = {split: np.array([places[row.label] for row in part]) for split, part in by_split.items() if part}
    pictures = FilePictures(source.parent, [files[row.line] for part in by_split.values() for row in part])
    skipped = tuple(f"{shown(source.name)} line {line}: {reason}" for line, reason in sorted(bad.items()))
    yield Listing(pictures, labels, names, display_name, skipped, _untrainable(labels, names, display_name))


def csv_status(path: str, config: DataConfig) -> tuple[bool, str]:
    """Whether there is such a file."""
    file = Path(path).expanduser()
    return file.is_file(), str(file) if file.is_file() else f"no file {file}"


def _untrainable(labels: Mapping[str, np.ndarray], names: Sequence[str], display_name: str) -> str:
    """Why nothing can be trained on a table's images, or an empty string."""
    if "train" not in labels:
        return f"{display_name}: no row is for train, only for {' and '.join(labels)}; add some."
    for split, own in labels.items():
        if len(unknown := np.setdiff1d(own, labels["train"])):
            return (
                f"{display_name}: {split} has classes that train lacks: {listed(names[label] for label in unknown)}; "
                "add training images of them, or leave them out."
            )
    return ""


def _source(path: str) -> Path:
    if not path.strip():
        raise DataError("data.source 'csv:': names no file; write csv:PATH.")
    try:
        file = Path(path).expanduser().resolve()
        mode = file.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        given = Path(path)
        near = [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else []
        raise DataError(f"csv {path!r}: no such file; give a CSV file.{did_you_mean(given.name, near)}") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"csv {path!r}: is a folder, not a file; write folder:{path} or give the CSV file in it.")
    if not stat.S_ISREG(mode):
        raise DataError(f"csv {path!r}: is no ordinary file; give a CSV file.")
    return file


def _files(root: Path, rows: list[Row], console: Console | None) -> tuple[dict[int, File], dict[int, str]]:
    """Line -> its image's file, and line -> why there is none."""
    found, missing = {}, {}
    with Bar(console, "Looking for files", len(rows)) as bar:
        for row in rows:
            # Tables made on Windows separate folders by backslashes.
            there = _file(root, row.image)
            if isinstance(there, str) and "\\" in row.image:
                there = _file(root, row.image.replace("\\", "/"))
            if isinstance(there, File):
                found[row.line] = there
            else:
                missing[row.line] = f"{shown(row.image)[:300]!r}: {there}"
            bar.advance()
    return found, missing


def _file(root: Path, image: str) -> File | str:
    """The file of an image, or why there is none."""
    try:
        status = (root / image).stat()
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return one_line(error)
    if not stat.S_ISREG(status.st_mode):
        return "is a folder" if stat.S_ISDIR(status.st_mode) else "is no ordinary file"
    return File(os.path.normpath(image), status.st_size, status.st_mtime_ns)


def _clashes(rows: Iterable[Row], files: dict[int, File]) -> dict[int, str]:
    """Line -> what is wrong with it, for rows that name the image of another row.

    Of rows that say the same the first counts; of rows that differ nobody knows which is right.
    """
    same: dict[str, list[Row]] = {}
    for row in rows:
        same.setdefault(files[row.line].path, []).append(row)
    bad = {}
    for path, group in same.items():
        first, *others = group
        name = repr(shown(path)[:300])
        differing = next((row for row in others if (row.label, row.split) != (first.label, first.split)), None)
        for row in group if differing else others:
            other = first if row is not first else differing
            if other is not None and row.label != other.label:
                bad[row.line] = f"{name} is {row.label!r} here and {other.label!r} on line {other.line}"
            elif other is not None and row.split != other.split:
                bad[row.line] = f"{name} is in {row.split} here and in {other.split} on line {other.line}"
            else:
                bad[row.line] = f"{name} stands on line {first.line} already"
    return bad


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """Whole numbers by value, anything else by name; Python takes no number of more than 4,300 digits."""
    if all(re.fullmatch(r"[+-]?\d{1,4300}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))
