"""Image files on disk, as `Pictures`."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """One image file.

    Attributes:
        path: from the root, or absolute.
        size: bytes.
        mtime_ns: time of the last change.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class FilePictures:
    """Files below, or named from, one folder."""

    root: Path
    files: list[File]

    def name(self, index: int) -> str:
        """The path, fit to be shown."""
        return shown(self.files[index].path)

    def open(self, index: int) -> Path:
        """The file itself."""
        return self.root / self.files[index].path

    def fingerprint(self, index: int) -> str:
        """Of path, size and time."""
        # With the root: two folders may hold files of the same name, size and time (an unpacked archive).
        file = self.files[index]
        return f"{self.root}\0{file.path}\0{file.size}\0{file.mtime_ns}"


def shown(path: str) -> str:
    """A path for a message of one line: bytes that are no UTF-8 and unprintable characters become the sign for them."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
