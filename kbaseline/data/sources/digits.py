"""The source `digits`: real handwritten digits that come with scikit-learn, no download needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.sources.listing import Listing


@contextmanager
def open_digits(rest: str, config: DataConfig, console: Console | None = None) -> Iterator[Listing]:
    """Lists 1,797 images of 8x8 pixels in ten classes (UCI "Optical Recognition of Handwritten Digits", its test part).

    Grey values 0-16 become 0-255 by `round(value * 255 / 16)`, the same in red, green and blue. The 8x8 pixels are
    kept: the model itself resizes them to `config.size`, in the one resample that also holds the augmentation. There
    is one split, `train`.
    """
    digits = import_module("sklearn.datasets").load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    yield Listing(np.repeat(grey[..., None], 3, axis=-1), {"train": digits.target}, names, "digits")


def digits_status(rest: str, config: DataConfig) -> tuple[bool, str]:
    """Always here."""
    return True, "digits comes with scikit-learn"
