"""`Rows`: some rows of a memory map, in any order, without a copy of them in memory."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np


class Rows:
    """Images that are read when they are asked for; indexed, measured and converted like an array.

    `rows[3]`, `rows[2:9]`, `rows[[5, 1]]` and a mask read those images alone; `np.asarray` reads all.

    Args:
        stored: uint8 `(any, height, width, 3)`, a memory map.
        numbers: int `(number,)`, which of its rows these are.
    """

    def __init__(self, stored: np.ndarray, numbers: np.ndarray) -> None:
        self.stored, self.numbers = stored, numbers
        self.shape: tuple[int, ...] = (len(numbers), *stored.shape[1:])
        self.ndim, self.dtype = stored.ndim, stored.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that all of them would take in memory."""
        return len(self) * self.stored[:1].nbytes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            first, rest = slice(None), [first, *rest]
        numbers = self.numbers[first]
        images: np.ndarray = self.stored[numbers]
        return images[(slice(None),) * np.ndim(numbers) + tuple(rest)]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.stored[number] for number in self.numbers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.stored[self.numbers], dtype)

    def __repr__(self) -> str:
        return f"Rows({self.dtype} {self.shape})"


def rows(stored: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The rows of a memory map with these numbers: a part of the map where they follow each other, else `Rows`.

    Called an array because it does whatever kbaseline asks of one.
    """
    if len(numbers) and (np.diff(numbers) == 1).all():
        part: np.ndarray = stored[numbers[0] : numbers[-1] + 1]
        return part
    return cast(np.ndarray, Rows(stored, numbers))
