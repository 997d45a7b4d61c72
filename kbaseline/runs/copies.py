"""The copies that a run was divided by (`data.group: auto`), kept with it so that its split is the same everywhere."""

from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.audit.copies import find_copies
from kbaseline.config.schema import DataConfig
from kbaseline.errors import InputError
from kbaseline.storage.npz import DamagedError, read_arrays

FILE = "copies.npz"
"""Name of the file in a run folder."""


def copies_of_run(folder: Path | None, config: DataConfig, console: Console | None = None) -> np.ndarray | None:
    """The copies that a run keeps, or those found now where it keeps none; see `find_copies`.

    On another machine features differ in their last digits, and with them what is just similar enough to be a copy.

    Args:
        folder: of the run; None for a new one.
        config: its `data` section.
        console: where to show progress; None shows nothing.

    Raises:
        InputError: the file is damaged.
        DataError, DownloadError, RunError: as `load_source`.
    """
    if config.group != "auto" or folder is None or not (folder / FILE).is_file():
        return find_copies(config, console)
    try:
        found = read_arrays(folder / FILE)["copies"]
        if found.ndim != 1 or found.dtype.kind != "i":
            raise ValueError(f"{found.dtype} of shape {found.shape}")
    except (DamagedError, KeyError, ValueError) as error:
        raise InputError(
            f"run {str(folder)!r}: {FILE} is damaged ({error}); run it again, or remove the file to compare the images "
            "anew."
        ) from None
    return found
