"""The source `folder:PATH`: photos in one folder for each class, perhaps below `train/`, `valid/` and `test/`."""

import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.config.paths import expand_home
from kbaseline.config.schema import DataConfig
from kbaseline.config.splits import SPLITS, is_container, named_splits
from kbaseline.data.pictures import File, FilePictures, as_text, shown
from kbaseline.data.sources.csv_table import TABLES
from kbaseline.data.sources.listing import Listing, alike_but_for_case, number_groups
from kbaseline.data.walk import Found, is_folder, nearest_path, not_used, scan, walk
from kbaseline.errors import DataError, listed, one_line


@contextmanager
def open_folder(path: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists the photos below a folder.

    Either folders for training, validation and test, called as people call them (`train`, `Testing`, `val_data`,
    `dev`), hold one folder for each class, or the folder itself does. Classes are sorted by name. All images below a
    class folder count, however deep. What is not used is named, apart from hidden files and what systems leave.

    Args:
        path: the folder; `~` is understood.
        config: `on_bad_image`.
        console: not used.

    Raises:
        DataError: the folder or a class breaks a rule, or an image cannot be used and `config.on_bad_image` says so.
    """
    reader = _Reader(_root(path))
    tree = reader.splits()
    aside = reader.aside
    if config.on_bad_image == "error" and aside.left_out:
        name, reason = aside.left_out[0]
        raise DataError(
            f"image {shown(name)!r}: cannot be used ({reason}); mend or remove it, or set data.on_bad_image to 'skip'."
        )
    names = tuple(sorted({name for classes in tree.values() for name in classes}))
    files = [file for classes in tree.values() for name in names for file in classes.get(name, ())]
    counts = {split: [len(classes.get(name, ())) for name in names] for split, classes in tree.items()}
    labels = {split: np.repeat(np.arange(len(names)), count) for split, count in counts.items()}
    skipped = (*reader.notes, *alike_but_for_case(names), *not_used(aside))
    pictures = FilePictures(reader.root, files)
    groups = number_groups([reader.sub_folders.get(file.path) for file in files]) if config.group == "folder" else None
    yield Listing(pictures, labels, names, reader.name, skipped, reader.untrainable(tree, path), groups)


def folder_status(path: str, config: DataConfig) -> tuple[bool, str]:
    """Whether there is such a folder."""
    folder = expand_home(path)
    return folder.is_dir(), str(folder) if folder.is_dir() else f"no folder {folder}"


def _root(path: str) -> Path:
    if not path.strip():
        raise DataError("data.source 'folder:': names no folder; write folder:PATH.")
    root = expand_home(path)
    try:
        root = root.resolve()
        mode = root.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        raise DataError(
            f"folder {path!r}: no such folder; give the folder of your photos.{nearest_path(Path(path), Path.is_dir)}"
        ) from None
    if not stat.S_ISDIR(mode):
        remedy = f"write csv:{path} or " if root.suffix.lower() in TABLES else ""
        raise DataError(
            f"folder {path!r}: is a file, not a folder; {remedy}give the folder that holds the class folders."
        )
    return root


_Classes = dict[str, list[File]]
"""Class name -> its images, sorted by path."""


class _Reader:
    """Reads one folder.

    Attributes:
        root: the folder; paths count from here.
        name: what to call it in messages.
        notes: a line for each folder that is not used.
        aside: files that are not used.
        sub_folders: path of an image -> the sub-folder of its class folder that it lies in, if it does.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, f"folder {shown(str(root))!r}"
        self.notes: list[str] = []
        self.aside = Found()
        self.sub_folders: dict[str, str] = {}
        self._spelt: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def splits(self) -> dict[str, _Classes]:
        """Split -> its classes, in the order of `SPLITS`.

        Raises:
            DataError: no class folder with images in it, two folders for one split, or two names that read the same.
        """
        self._folders = self._split_folders()
        found = {split: self._classes(folder, split) for split, folder in self._folders.items()}
        tree = {split: classes for split, classes in found.items() if classes}
        if not tree:
            raise DataError(self._nothing(next(iter(self._folders.values()))))
        return tree

    def untrainable(self, tree: Mapping[str, _Classes], path: str) -> str:
        """Why nothing can be trained on these images, or an empty string."""
        if "train" in self._folders.keys() - tree.keys():
            return self._nothing(self._folders["train"])
        if "train" not in tree:
            return f"{self.name}: has {listed(tree)} but no 'train'; put the training photos in train/CLASS/."
        if len(tree["train"]) > 1:
            return ""
        (name,) = tree["train"]
        message = f"{self.name}: training needs at least two class folders; got only {name!r}."
        inner = self._spelt[name]
        deeper = (self.root / inner).is_dir() and len(self._subfolders(inner)) > 1
        return f"{message} Did you mean folder:{Path(path) / inner}?" if deeper else message

    def _split_folders(self) -> dict[str, str]:
        """Split -> path of the folder that holds its classes; `train` is the root itself where there are no splits."""
        top = self._subfolders("")
        meant = self._meant(top)
        if not meant:
            return {"train": ""}
        found: dict[str, str] = {}
        for name, split in meant.items():
            if split in found:
                raise DataError(f"{self.name}: {found[split]!r} and {name!r} both mean {split}; keep one of them.")
            found[split] = name
        for name in top:
            if name not in meant and (count := len(walk(self.root, name).images)):
                self.notes.append(f"{shown(name)}/: its {_images(count)} not used beside {listed(meant)}")
        loose = walk(self.root, deep=False)
        self._put_aside(loose)
        self._note_loose(loose)
        return {split: self._descended(found[split], split) for split in SPLITS if split in found}

    def _descended(self, folder: str, split: str) -> str:
        """`_classes_in`; photos beside a folder that is gone into are noted."""
        inner = self._classes_in(folder, split)
        while folder != inner:
            loose = walk(self.root, folder, deep=False)
            self._put_aside(loose)
            self._note_loose(loose)
            folder = f"{folder}/{inner.removeprefix(f'{folder}/').partition('/')[0]}"
        return inner

    def _meant(self, top: list[str]) -> dict[str, str]:
        """Which folders are splits -> which; none where all are classes."""
        strict, loose = named_splits(top), named_splits(top, loosely=True)
        others = [name for name in top if name not in strict]
        # A class may be called "train" too: then other classes stand beside it and it holds photos, not folders.
        if "train" in strict.values():
            if not others or any(self._subfolders(name) for name, split in strict.items() if split == "train"):
                return strict
        elif strict and not others:
            return strict
        classes = {name: set(self._subfolders(self._classes_in(name, loose[name]))) for name in loose}
        alone = len(loose) == len(top) and any(split == "train" and len(classes[n]) > 1 for n, split in loose.items())
        shared = any(classes[a] & classes[b] for a in loose for b in loose if loose[a] != loose[b])
        if len(set(loose.values())) < 2 or not (alone or shared):
            return {}
        return {**loose, **strict}

    def _classes_in(self, folder: str, split: str) -> str:
        """The folder itself, or the only one in it where that is one level too many: `train/train`, `test/images`."""
        for _ in range(3):
            inner = self._subfolders(folder)
            if len(inner) != 1 or not (is_container(inner[0]) or split in named_splits(inner, loosely=True).values()):
                break
            folder = f"{folder}/{inner[0]}"
        return folder

    def _classes(self, folder: str, split: str) -> _Classes:
        """The classes below a folder that have images; what else lies there is put aside."""
        classes: _Classes = {}
        for name in self._subfolders(folder):
            path = f"{folder}/{name}" if folder else name
            found = walk(self.root, path)
            self._put_aside(found)
            if found.images:
                text = self._text(name)
                inside = {file.path: file.path.removeprefix(f"{path}/").partition("/") for file in found.images}
                self.sub_folders |= {file: parts[0] for file, parts in inside.items() if parts[2]}
                # One name may be composed in two ways.
                classes[text] = sorted([*classes.get(text, []), *found.images], key=lambda file: file.path)
            else:
                self.notes.append(f"{shown(path)}/: has no image that can be used, ignored")
        loose = walk(self.root, folder, deep=False)
        self._put_aside(loose)
        if classes:
            self._note_loose(loose)
        elif split != "train":
            why = f"{_images(len(loose.images))} not in class folders, so not scored" if loose.images else "is empty"
            self.notes.append(f"{shown(folder)}/: {why}")
        return classes

    def _note_loose(self, loose: Found) -> None:
        if loose.images:
            first, count = shown(loose.images[0].path), _images(len(loose.images))
            self.notes.append(f"{first}: {count} beside the class folders, not in one, so not used")

    def _text(self, name: str) -> str:
        """The name of a class. Raises a `DataError` where another one, spelt otherwise, reads the same."""
        text, composed = as_text(name), unicodedata.normalize("NFC", name)
        other = self._spelt.setdefault(text, composed)
        if other != composed:
            raise DataError(
                f"{self.name}: two names of classes are not UTF-8 and read {text!r}; rename their folders in UTF-8."
            )
        return text

    def _subfolders(self, folder: str) -> list[str]:
        try:
            return [entry.name for entry in scan(self.root / folder) if is_folder(entry)]
        except OSError as error:
            if folder:
                return []  # `walk` reports it.
            raise DataError(f"{self.name}: cannot be listed ({one_line(error)}); check its rights.") from None

    def _put_aside(self, found: Found) -> None:
        self.aside.left_out.extend(found.left_out)
        self.aside.others.extend(found.others)

    def _nothing(self, folder: str) -> str:
        """Why there is no class in a folder."""
        there = self.root / folder
        name = f"folder {shown(str(there))!r}"
        if walk(self.root, folder, deep=False).images:
            return (
                f"{name}: holds images but no class folders; put the images of each class into a folder named after "
                f"it, for instance {shown(str(there / 'cat'))!r}."
            )
        if self.aside.left_out:
            path, reason = self.aside.left_out[0]
            return f"{name}: none of its images can be used; the first is {shown(path)!r}: {reason}."
        return f"{name}: is empty; it must hold one folder of images for each class."


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count:,} images are"
