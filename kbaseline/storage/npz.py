"""Reads NumPy files that may be damaged or malicious: no pickles, and one exception type for every defect."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kbaseline.errors import one_line


class DamagedError(ValueError):
    """A file of arrays cannot be read; the message is the reason in one line, without the file name."""


@contextmanager
def one_error() -> Iterator[None]:
    """Turns any exception into `DamagedError`: readers fail on a damaged file with many kinds of them."""
    try:
        with warnings.catch_warnings():
            # NumPy warns about type names that it would not write itself.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise DamagedError(one_line(error)) from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, by name.

    Raises:
        DamagedError: it is not an `.npz` file, it is damaged, or it holds pickled Python objects.
    """
    # Opened here because NumPy leaves a file open that is not an archive.
    with one_error(), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DamagedError(f"{name!r} is not an array")
        if array.dtype.kind == "U" and array.nbytes:
            # NumPy accepts any 32 bits as a character and fails only when the character is used.
            characters = array.ravel().view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
            if characters.max() > sys.maxunicode:
                raise DamagedError(f"{name!r} holds invalid characters")
    return arrays


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of an `.npy` file, read into memory, or memory-mapped and read-only if `mapped`.

    Raises:
        DamagedError: as `read_arrays`.
    """
    with one_error():
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DamagedError("an archive of arrays, not one array")
    return array
