"""Encoded images, for instance files on disk, and the link from decoded rows back to them."""

import hashlib
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np


class Pictures(Protocol):
    """Encoded images that can be opened in any order, from several threads."""

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...

    def open(self, index: int) -> Path | BinaryIO:
        """Where to read the image from."""
        ...

    def fingerprint(self, index: int) -> str:
        """Changes when the image does, found without reading it."""
        ...


@dataclass(frozen=True, eq=False)
class Provenance:
    """The encoded images that the rows of a split were decoded from.

    Attributes:
        pictures: all encoded images of the source.
        numbers: int `(number,)`, which of them each row is.
        digests: uint64 `(number,)`, `pixel_digest` of each row.
    """

    pictures: Pictures
    numbers: np.ndarray
    digests: np.ndarray

    def take(self, indices: np.ndarray) -> "Provenance":
        """Of the rows at `indices`, in that order."""
        return Provenance(self.pictures, self.numbers[indices], self.digests[indices])

    def name(self, row: int) -> str:
        """What to call the image of a row in a message."""
        return self.pictures.name(int(self.numbers[row]))


def pixel_digest(pixels: bytes) -> int:
    """64 bits of BLAKE2b of an image's pixels, as an unsigned integer.

    Two of a million different images share one with a probability of 3e-8 (birthday bound, n² / 2⁶⁵).
    """
    return int.from_bytes(hashlib.blake2b(pixels, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class File:
    """One image file.

    Attributes:
        path: from the root, or absolute.
        size: bytes.
        changed_ns: time of the last change of its content, name or rights (`st_ctime_ns`), which nobody can set.
    """

    path: str
    size: int
    changed_ns: int


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
        return f"{self.root}\0{file.path}\0{file.size}\0{file.changed_ns}"


def shown(path: str) -> str:
    """A path for a message of one line, with U+FFFD for bytes that are not UTF-8 and for unprintable characters."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def as_text(name: str) -> str:
    """A name from the file system as text: composed (NFC), with U+FFFD for bytes that are not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))
