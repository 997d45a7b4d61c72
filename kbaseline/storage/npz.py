"""Reads NumPy's files, which may be damaged or hostile: never a pickle, and one error whatever is wrong with them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kbaseline.errors import one_line


class DamagedError(ValueError):
    """A file of arrays cannot be read; the message is the reason in one line, without the file's name."""


@contextmanager
def _one_error() -> Iterator[None]:
    """NumPy trips over a damaged file wherever it happens to be reading: zip, header, tokens, memory."""
    try:
        with warnings.catch_warnings():
            # Of names of types that it would not write itself.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise DamagedError(one_line(error)) from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, by name.

    Raises:
        DamagedError: it is no such file, it is damaged, or it holds Python objects, which only a pickle could make.
    """
    # Opened here, for NumPy leaves a file open that turns out to be no archive.
    with _one_error(), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = dict(arrays)
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise DamagedError(f"{name!r} is no array")
        if array.dtype.kind == "U" and array.nbytes:
            # NumPy takes any 32 bits for a character and fails where it is asked for one.
            characters = array.ravel().view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
            if characters.max() > sys.maxunicode:
                raise DamagedError(f"{name!r} holds what is no text")
    return found


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of an `.npy` file, `mapped` into memory, to be read only, or read.

    Raises:
        DamagedError: as `read_arrays`.
    """
    with _one_error():
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()
        raise DamagedError("an archive of arrays, not one array")
    return found
