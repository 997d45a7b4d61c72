"""Reads a CSV file of images: finds the columns of path, label and split, and their values in every row."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import named_splits
from kbaseline.errors import DataError, did_you_mean, listed, one_line

TABLES = (".csv", ".tsv")
"""Endings of the names of such files, in lower case."""

HEADERS = {
    "image": (
        *("image", "path", "filename", "file_name", "filepath", "file_path", "file", "images", "image_path"),
        *("image_file", "image_name", "image_id", "img", "img_path", "photo"),
    ),
    "label": ("label", "class", "target", "labels", "class_name", "classname", "category", "y"),
    "split": ("split", "fold", "subset", "set", "partition"),
}
"""What a column holds -> its usual names, in lower case, with `_` for blanks and hyphens."""

_SPLIT_LIKE = re.compile(
    r"(is|in|for)_(train(ing)?|valid(ation)?|val|test)|(train|valid|val|test)_?(valid|val|test|set|split)"
    r"|usage|phase|data_?set"
)
"""Names, written as in `HEADERS`, of columns that may say the split too; they are used only where they are named."""

_YES, _NO = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f")

NO_COLUMN = "none"
"""The `data.split_column` that ignores a column of splits."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the table: the number of its last line, its path as written, its label, its split and its group.

    `split` is `train`, `valid` or `test`, or None without such a column; so is `group`.
    """

    line: int
    image: str
    label: str
    split: str | None
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows that can be read, in their order, line -> reason for the others, and a line for each unused column."""

    rows: list[Row]
    bad: dict[int, str]
    notes: tuple[str, ...] = ()


def read_table(file: Path, display_name: str, config: DataConfig) -> Table:
    """Reads a CSV file; does not check whether its images exist.

    Fields are separated by commas, semicolons or tabs; the text is UTF-8, with or without a byte-order mark; the
    first line names the columns.

    Args:
        file: the file.
        display_name: what to call it in messages.
        config: `image_column`, `label_column` and `split_column` name columns that cannot be told by their names;
            `group_column` is used only if it is named.

    Raises:
        DataError: the file cannot be read or is no CSV, a column is missing or ambiguous, or no split is known.
    """
    header, lines = _read(file, display_name)
    columns = _columns(header, display_name, config)
    values = [cells for _, cells in lines]
    splits: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if "split" in columns:
        splits = _splits(display_name, header, columns["split"], values)
    elif config.split_column is None:
        notes = _unused(header, columns.values(), values)
    rows, bad = [], {}
    for line, cells in lines:
        if any(cells):
            row = _row(line, cells, len(header), columns, splits)
            if isinstance(row, Row):
                rows.append(row)
            else:
                bad[line] = row
    return Table(rows, bad, notes)


def column_names(file: Path) -> list[str]:
    """The columns of a CSV file; none where it cannot be read."""
    try:
        return _read(file, "")[0]
    except DataError:
        return []


def _read(file: Path, display_name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and every further row with its line number. Raises a `DataError` as `read_table`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{display_name}: is not UTF-8 (byte {error.start:,}); save it as CSV UTF-8.") from None
    except OSError as error:
        raise DataError(f"{display_name}: cannot be read ({one_line(error)}); check its rights.") from None
    # Strictly: a quote that is never closed would swallow the rest of the file as one value.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        header = [cell.strip() for cell in next((cells for cells in reader if any(map(str.strip, cells))), [])]
        if not header:
            raise DataError(f"{display_name}: is empty; its first line must name the columns.")
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{display_name} line {reader.line_num}: is no CSV ({error}); correct it.") from None
    return header, lines


def _delimiter(text: str) -> str:
    """Of comma, semicolon and tab the one that cuts the first line into most columns."""
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first], delimiter=delimiter)))
        except csv.Error:
            return 0

    return max(",;\t", key=columns)


def _columns(header: Sequence[str], display_name: str, config: DataConfig) -> dict[str, int]:
    """Role -> position of its column; `split` and `group` are left out where there is none."""
    asked = {"image": config.image_column, "label": config.label_column, "split": config.split_column}
    if config.group_column is not None:
        asked["group"] = config.group_column
    found: dict[str, int] = {}
    for role, name in asked.items():
        if role == "split" and name == NO_COLUMN:
            continue
        known = HEADERS.get(role, ())
        fits = [at for at, cell in enumerate(header) if (cell == name if name else _plain(cell) in known)]
        if len(fits) > 1:
            names = ", ".join(repr(header[at]) for at in fits)
            raise DataError(
                f"{display_name}: several columns may hold the {role}: {names}; set data.{role}_column to one."
            )
        if name and not fits:
            raise DataError(
                f"{display_name}: has no column {name!r} (data.{role}_column); it has {listed(header)}."
                f"{did_you_mean(name, header)}"
            )
        if fits:
            found[role] = fits[0]
        elif role != "split":
            raise DataError(
                f"{display_name}: its first line must name a column for the {role} ({', '.join(known[:3])} or so); "
                f"it has {listed(header)}. Set data.{role}_column if it is one of these."
            )
    return found


def _plain(header: str) -> str:
    return header.lower().replace(" ", "_").replace("-", "_")


def _splits(display_name: str, header: Sequence[str], at: int, lines: Iterable[Sequence[str]]) -> dict[str, str]:
    """Value of a column -> the split it means.

    Raises:
        DataError: it holds no split at all, for instance numbers of folds.
    """
    said = _values(lines, at)
    splits = _meant(header[at], said)
    if said and not splits:
        raise DataError(
            f"{display_name}: column {header[at]!r} must hold train, valid and test; it has {listed(sorted(said))}; "
            f"correct it, or set data.split_column to another column or to {NO_COLUMN}."
        )
    return splits


def _meant(header: str, values: Iterable[str]) -> dict[str, str]:
    """Value -> the split it means. In a column called `is_valid` or the like yes and no mean one, too."""
    said = set(values)
    about = re.fullmatch(r"(?:is|in|for)_(\w+)", _plain(header))
    (split,) = named_splits([about[1]] if about else []).values() or ("",)
    if not split or not {value.lower() for value in said} <= {*_YES, *_NO}:
        return named_splits(sorted(said))
    rest = "valid" if split == "train" else "train"
    return {value: split if value.lower() in _YES else rest for value in said}


def _unused(header: Sequence[str], used: Iterable[int], lines: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A line for each column that seems to say the split and is not used."""
    notes = []
    for at in sorted(set(range(len(header))) - set(used)):
        said = _values(lines, at)
        meant = _meant(header[at], said)
        telling = len(said) > 1 and meant.keys() == said
        if telling or (header[at] and _SPLIT_LIKE.fullmatch(_plain(header[at])) and len(said) < 10):
            remedy = f"; data.split_column={header[at]} uses it" if meant else ""
            notes.append(f"column {header[at]!r}: may say the split and is not used{remedy}")
    return tuple(notes)


def _values(lines: Iterable[Sequence[str]], at: int) -> set[str]:
    return {cells[at] for cells in lines if len(cells) > at} - {""}


def _row(line: int, cells: list[str], width: int, columns: Mapping[str, int], splits: Mapping[str, str]) -> Row | str:
    """A row, or what is wrong with it."""
    while len(cells) > width and not cells[-1]:
        cells.pop()
    if len(cells) != width:
        # Values may stand in the wrong columns.
        return f"has {len(cells)} values for {width} columns"
    image, label = cells[columns["image"]], cells[columns["label"]]
    if not image or not label:
        return "has no label" if image else "has no image"
    split = None
    if "split" in columns:
        said = cells[columns["split"]]
        split = splits.get(said)
        if split is None:
            return f"split {said[:40]!r} must be train, valid or test" if said else "has no split"
    # The same letters may be composed in two ways; they are one class.
    group = cells[columns["group"]] if "group" in columns else None
    return Row(line, image, unicodedata.normalize("NFC", label), split, group)
