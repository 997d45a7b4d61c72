"""The source `digits`: the real handwritten digits that come with scikit-learn, no download needed."""

from importlib import import_module

import numpy as np

from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import ImageData, Split
from kbaseline.data.prepare import choose


def load_digits(config: DataConfig, seed: int) -> ImageData:
    """1,797 images of 8x8 in ten classes (UCI "Optical Recognition of Handwritten Digits", its test part).

    Grey values 0-16 become 0-255 by `round(value * 255 / 16)`, the same in red, green and blue. The
    source's 8x8 pixels are kept: the model itself resizes them to `config.size`, in the one resample
    that also holds the augmentation. There is one split, so a stratified fifth is held out to validate.

    Args:
        config: `size`, `limit`, `limit_valid` and `valid_fraction` count.
        seed: fixes the hold-out and the subsets.

    Returns:
        Images uint8 0-255, `(number, 8, 8, 3)`.

    Raises:
        DataError: fewer than two classes are left by `config.limit`.
    """
    everything, names = all_digits()
    data = ImageData(everything, everything, names, config.size, source=config.source, flip_safe=False)
    return choose(data, config, seed, has_valid=False)


def all_digits() -> tuple[Split, tuple[str, ...]]:
    """All images and labels, and the names of the labels."""
    digits = import_module("sklearn.datasets").load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    return Split(np.repeat(grey[..., None], 3, axis=-1), digits.target.astype(np.int32)), names
