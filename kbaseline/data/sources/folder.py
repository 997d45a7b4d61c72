"""The source `folder:PATH`: photos in one folder for each class, perhaps below `train/`, `valid/` and `test/`."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import ALIASES, SPLITS
from kbaseline.data.decode import SUFFIXES, UNREADABLE_SUFFIXES
from kbaseline.data.pictures import File, FilePictures
from kbaseline.data.sources.csv_table import TABLES
from kbaseline.data.sources.listing import Listing
from kbaseline.errors import DataError, did_you_mean, one_line


@contextmanager
def open_folder(path: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the photos below a folder.

    Either `train/` and perhaps `valid/` (or `val/`, `validation/`) and `test/` hold one folder for each class, or the
    folder itself does. Classes are sorted by name. All images below a class folder count, however deep; hidden files
    and other files are ignored.

    Args:
        path: the folder; `~` is understood.
        config, console: not used.

    Raises:
        DataError: the folder or a class breaks a rule.
    """
    root = _root(path)
    tree = {name: _classes(root, folder) for name, folder in _split_folders(root).items()}
    names = tuple(sorted(tree["train"]))
    _check_same_classes(root, tree)
    files = [file for classes in tree.values() for name in names for file in classes[name]]
    labels = {
        split: np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
        for split, classes in tree.items()
    }
    untrainable = _too_few(root, names, path) if len(names) < 2 else ""
    yield Listing(FilePictures(root, files), labels, names, f"folder {str(root)!r}", untrainable=untrainable)


def folder_status(path: str, config: DataConfig) -> tuple[bool, str]:
    """Whether there is such a folder."""
    folder = Path(path).expanduser()
    return folder.is_dir(), str(folder) if folder.is_dir() else f"no folder {folder}"


def _root(path: str) -> Path:
    if not path.strip():
        raise DataError("data.source 'folder:': names no folder; write folder:PATH.")
    try:
        root = Path(path).expanduser().resolve()
        mode = root.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        folder = Path(path)
        near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DataError(
            f"folder {path!r}: no such folder; give the folder of your photos.{did_you_mean(folder.name, near)}"
        ) from None
    if not stat.S_ISDIR(mode):
        remedy = f"write csv:{path} or " if root.suffix.lower() in TABLES else ""
        raise DataError(
            f"folder {path!r}: is a file, not a folder; {remedy}give the folder that holds the class folders."
        )
    return root


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"folder {str(folder)!r}: cannot be listed ({one_line(error)}); check its rights.") from None


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _scan(folder) if _is_dir(entry)]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_image(name: str) -> bool:
    # What cannot be read is taken too, so that it is named rather than overlooked.
    return Path(name).suffix.lower() in SUFFIXES | UNREADABLE_SUFFIXES


def _split_folders(root: Path) -> dict[str, Path]:
    """`train`, `valid` and `test` -> their folders; `train` is the root itself where there are none."""
    subfolders = _subfolders(root)
    found: dict[str, str] = {}
    for name in subfolders:
        split = ALIASES.get(name.lower())
        if split in found:
            raise DataError(f"folder {str(root)!r}: {found[split]!r} and {name!r} both mean {split}; keep one of them.")
        if split:
            found[split] = name
    others = [name for name in subfolders if name.lower() not in ALIASES]
    # A class may be called "train" too: then other classes stand beside it and it holds photos, not folders.
    if "train" in found and (_subfolders(root / found["train"]) or not others):
        return {split: root / found[split] for split in SPLITS if split in found}
    if found and not others:
        names = ", ".join(repr(name) for name in found.values())
        raise DataError(f"folder {str(root)!r}: has {names} but no 'train'; put the training photos in train/CLASS/.")
    return {"train": root}


def _classes(root: Path, folder: Path) -> dict[str, list[File]]:
    """Class name -> its image files, sorted by path.

    Raises:
        DataError: no class folders, or one without images.
    """
    names = _subfolders(folder)
    if not names:
        if any(_is_image(entry.name) for entry in _scan(folder)):
            raise DataError(
                f"folder {str(folder)!r}: holds images but no class folders; put the images of each class into "
                f"a folder named after it, for instance {str(folder / 'cat')!r}."
            )
        raise DataError(f"folder {str(folder)!r}: is empty; it must hold one folder of images for each class.")
    classes = {name: _files(root, folder / name) for name in names}
    for name, files in classes.items():
        if not files:
            kinds = " ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise DataError(
                f"class folder {str(folder / name)!r}: holds no images ({kinds}); add some or remove the folder."
            )
    return classes


def _files(root: Path, folder: Path) -> list[File]:
    """All image files below a class folder. A folder met twice, as in a loop of links, counts once."""
    found: list[File] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _scan(here):
            if _is_dir(entry):
                waiting.append(Path(entry.path))
            elif _is_image(entry.name):
                file = _as_file(root, entry)
                found += [file] if file else []
    return sorted(found, key=lambda file: file.path)


def _as_file(root: Path, entry: os.DirEntry[str]) -> File | None:
    path = os.path.relpath(entry.path, root)
    try:
        status = entry.stat()
    except OSError:
        return File(path, -1, 0)  # A broken link: decoding will say so.
    # Reading a pipe or a device would wait for ever.
    return File(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _too_few(root: Path, names: tuple[str, ...], path: str) -> str:
    message = f"folder {str(root)!r}: training needs at least two class folders; got only {names[0]!r}."
    inner = _subfolders(root / names[0]) if (root / names[0]).is_dir() else []
    return f"{message} Did you mean folder:{Path(path) / names[0]}?" if len(inner) > 1 else message


def _check_same_classes(root: Path, tree: dict[str, dict[str, list[File]]]) -> None:
    train = set(tree["train"])
    for split in tree.keys() - {"train"}:
        other = set(tree[split])
        sides = [
            f"{side} lacks {', '.join(repr(name) for name in sorted(missing))}"
            for side, missing in ((split, train - other), ("train", other - train))
            if missing
        ]
        if sides:
            raise DataError(f"folder {str(root)!r}: train and {split} must hold the same classes; {'; '.join(sides)}.")
