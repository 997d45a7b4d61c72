"""Reads NumPy's files, which may be damaged or hostile: never a pickle, and one error whatever is wrong with them."""

import sys
from pathlib import Path

import numpy as np

from kbaseline.errors import one_line


class DamagedError(ValueError):
    """A file of arrays cannot be read; the message is the reason in one line, without the file's name."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, by name.

    Raises:
        DamagedError: it is no such file, it is damaged, or it holds Python objects, which only a pickle could make.
    """
    # NumPy trips over a damaged file wherever it happens to be reading: zip, header, tokens, memory.
    try:
        # Opened here, for NumPy leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
    except Exception as error:
        raise DamagedError(one_line(error)) from None
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
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except Exception as error:
        raise DamagedError(one_line(error)) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise DamagedError("an archive of arrays, not one array")
    return found
