"""The source `csv:PATH`: a table with an image, its label and perhaps its split in every row."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.config.paths import expand_home
from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import SPLITS
from kbaseline.console.bars import Bar
from kbaseline.data.pictures import File, FilePictures, as_text, shown
from kbaseline.data.sources.csv_table import Row, read_table
from kbaseline.data.sources.listing import Listing, alike_but_for_case, number_groups
from kbaseline.data.walk import NO_FILE, as_image, nearest_path, scan
from kbaseline.errors import DataError, listed


@contextmanager
def open_csv(path: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the images that a CSV file names; `csv_table.read_table` says what it may look like.

    Paths count from the file's own folder; the suffix may be missing, and case and the composition of letters differ,
    where one file alone can be meant. Labels are texts; classes are sorted by name, or by value where all are whole
    numbers. Without a column of splits all images are `train`.

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
    bad = table.bad | missing | _clashes(source.parent, there, files)
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
    ordered = [row for part in by_split.values() for row in part]
    pictures = FilePictures(source.parent, [files[row.line] for row in ordered])
    lines = (f"{shown(source.name)} line {line}: {reason}" for line, reason in sorted(bad.items()))
    skipped = (*table.notes, *alike_but_for_case(names), *lines)
    untrainable = f"{display_name}: no row is for train, only for {' and '.join(labels)}; add some."
    untrainable = "" if "train" in labels else untrainable
    groups = None if config.group_column is None else number_groups([row.group or None for row in ordered])
    yield Listing(pictures, labels, names, display_name, skipped, untrainable, groups)


def csv_status(path: str, config: DataConfig) -> tuple[bool, str]:
    """Whether there is such a file."""
    file = expand_home(path)
    return file.is_file(), str(file) if file.is_file() else f"no file {file}"


def _source(path: str) -> Path:
    if not path.strip():
        raise DataError("data.source 'csv:': names no file; write csv:PATH.")
    file = expand_home(path)
    try:
        file = file.resolve()
        mode = file.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        raise DataError(
            f"csv {path!r}: no such file; give a CSV file.{nearest_path(Path(path), Path.is_file)}"
        ) from None
    if stat.S_ISDIR(mode):
        raise DataError(f"csv {path!r}: is a folder, not a file; write folder:{path} or give the CSV file in it.")
    if not stat.S_ISREG(mode):
        raise DataError(f"csv {path!r}: is no ordinary file; give a CSV file.")
    return file


def _files(root: Path, rows: list[Row], console: Console | None) -> tuple[dict[int, File], dict[int, str]]:
    """Line -> its image's file, and line -> why there is none."""
    found, missing, folders = {}, {}, _Folders(root)
    with Bar(console, "Looking for files", len(rows)) as bar:
        for row in rows:
            # Tables made on Windows separate folders by backslashes.
            there = folders.file(row.image)
            if isinstance(there, str) and "\\" in row.image:
                there = folders.file(row.image.replace("\\", "/"))
            if isinstance(there, File):
                found[row.line] = there
            else:
                missing[row.line] = f"{shown(row.image)[:300]!r}: {there}"
            bar.advance()
    return found, missing


class _Folders:
    """Finds files by paths that may be spelt otherwise than on disk.

    Args:
        root: paths count from here.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, list[dict[str, list[str]]]] = {}

    def file(self, image: str) -> File | str:
        """The file of an image, or why there is none."""
        there = as_image(self._root / image, os.path.normpath(image))
        if there != NO_FILE:
            return there
        path, parts = Path(), Path(os.path.normpath(image)).parts
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            near = [part] if not last and (self._root / path / part).is_dir() else self._like(path, part, last=last)
            if len(near) != 1:
                return f"several files may be meant: {listed(near, 3)}" if near else there
            path /= near[0]
        return as_image(self._root / path, str(path))

    def _like(self, folder: Path, name: str, *, last: bool) -> list[str]:
        """What may be meant by a name in a folder: its letters composed otherwise, in other case, with a suffix."""
        if folder not in self._known:
            self._known[folder] = self._spellings(folder)
        whole = as_text(name)
        exact, folded, bare, bare_folded = self._known[folder]
        ways = [exact.get(whole), folded.get(whole.casefold())]
        if last:
            for found in (bare.get(whole, []), bare_folded.get(whole.casefold(), [])):
                ways.append([one for one in found if isinstance(as_image(self._root / folder / one, one), File)])
        return next(filter(None, ways), [])

    def _spellings(self, folder: Path) -> list[dict[str, list[str]]]:
        """Spelling -> names in a folder: composed, in lower case, without suffix, and both."""
        found: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        try:
            names = [entry.name for entry in scan(self._root / folder)]
        except (OSError, ValueError):
            names = []
        for name in names:
            whole, bare = as_text(name), as_text(Path(name).stem)
            for known, spelling in zip(found, (whole, whole.casefold(), bare, bare.casefold()), strict=True):
                known.setdefault(spelling, []).append(name)
        return found


def _clashes(root: Path, rows: Iterable[Row], files: dict[int, File]) -> dict[int, str]:
    """Line -> what is wrong with it, for rows that name the image of another row.

    Of rows that say the same the first counts; of rows that differ nobody knows which is right.
    """
    same: dict[str, list[Row]] = {}
    for row in rows:
        # One path may be given from the table's folder, another in full.
        same.setdefault(os.path.normpath(root / files[row.line].path), []).append(row)
    bad = {}
    for group in same.values():
        first, *others = group
        name = repr(shown(files[first.line].path)[:300])
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
