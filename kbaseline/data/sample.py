"""A few images to look at: chosen evenly over the classes, and transformed as training may show them."""

import numpy as np

from kbaseline.config.schema import TransformsConfig


def spread_rows(labels: np.ndarray, most: int, seed: int, per_class: int | None = None) -> np.ndarray:
    """Chooses at most `most` images, of evenly spaced classes if there are more than that, in the order of the classes.

    Args:
        labels: integers `(number,)`.
        most: most images.
        seed: fixes the choice within a class.
        per_class: most images of a class; None for as many as are needed.

    Returns:
        Integers `(images,)`, indices into `labels`.
    """
    rng, present = np.random.default_rng(seed), np.unique(labels)
    classes = present[np.linspace(0, len(present) - 1, min(most, len(present))).round().astype(int)]
    members = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in classes]
    # Image k of every class before image k + 1 of any, so that the classes share what there is to choose.
    ranks = np.concatenate([np.arange(len(rows)) for rows in members])
    kept = np.sort(np.argsort(ranks, kind="stable")[:most])
    return np.concatenate(members)[kept]


def transformed(
    images: np.ndarray, size: int, transforms: TransformsConfig, seed: int, *, training: bool
) -> np.ndarray:
    """Images as the network sees them.

    Args:
        images: uint8 0-255 `(number, height, width, 3)`.
        size: side of the result, in pixels.
        transforms: the augmentation.
        seed: seed of the augmentation.
        training: whether to augment; otherwise they are resized as for validation.

    Returns:
        Uint8 0-255 `(number, size, size, 3)`, smaller in training if the augmentation has a `train_size`.
    """
    # Keras takes seconds to import, and images are read without it.
    from kbaseline.transforms import RandomTransforms

    layer = RandomTransforms(size, **transforms.model_dump(), seed=seed)
    pixels: np.ndarray = np.rint(np.clip(np.asarray(layer(images, training=training)), 0, 255)).astype(np.uint8)
    return pixels
