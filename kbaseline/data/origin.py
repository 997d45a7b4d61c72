"""Where the decoded rows of a split came from: the encoded images, their numbers, a digest of their pixels."""

import hashlib
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
class Origin:
    """What the rows of a split were decoded from.

    Attributes:
        pictures: all encoded images of the source.
        numbers: int `(number,)`, which of them each row is.
        digests: uint64 `(number,)`, `pixel_digest` of each row.
    """

    pictures: Pictures
    numbers: np.ndarray
    digests: np.ndarray

    def take(self, indices: np.ndarray) -> "Origin":
        """Of the rows at `indices`, in that order."""
        return Origin(self.pictures, self.numbers[indices], self.digests[indices])

    def name(self, row: int) -> str:
        """What to call the image of a row in a message."""
        return self.pictures.name(int(self.numbers[row]))


def pixel_digest(pixels: bytes) -> int:
    """64 bits of BLAKE2b of an image's pixels, as an unsigned integer.

    Two of a million different images share one with a probability of 3e-8 (birthday bound, n² / 2⁶⁵).
    """
    return int.from_bytes(hashlib.blake2b(pixels, digest_size=8).digest(), "little")
