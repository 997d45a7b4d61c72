"""The names of splits; seeded, stratified splits and subsets, as index arrays."""

import numpy as np

SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""What people call a split, in lower case -> what it is called here."""


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out `fraction` of every class.

    A class of one image stays in train; every other class keeps at least one image on each side.

    Args:
        labels: int `(number,)`.
        fraction: of each class to hold out, in (0, 1).
        seed: fixes the choice.

    Returns:
        Sorted indices kept, sorted indices held out.
    """
    held = np.zeros(len(labels), bool)
    for members in _classes(labels, seed):
        if len(members) > 1:
            held[members[: int(np.clip(round(fraction * len(members)), 1, len(members) - 1))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def stratified_sample(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sorted indices of `size` images whose class shares match the whole's, at least one of each where `size` allows.

    The shares are rounded by largest remainder, so the sum is exactly `size`.
    """
    classes = _classes(labels, seed)
    counts = np.array([len(members) for members in classes])
    exact = size * counts / counts.sum()
    quota = np.floor(exact).astype(int)
    if size >= len(classes):
        quota = np.maximum(quota, 1)
    for index in np.argsort(quota - exact, kind="stable"):
        if quota.sum() >= size:
            break
        quota[index] += 1
    while quota.sum() > size:
        quota[np.argmax(quota)] -= 1
    return np.sort(np.concatenate([members[:share] for members, share in zip(classes, quota, strict=True)]))


def _classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The indices of every class that there is, classes in order, each in a random one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    counts = np.unique(labels, return_counts=True)[1]
    return np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(counts)[:-1])
