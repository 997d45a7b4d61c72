"""Seeded, stratified splits and subsets, as index arrays."""

import numpy as np


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
    order = np.random.default_rng(seed).permutation(len(labels))
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = 0 if len(members) < 2 else int(np.clip(round(fraction * len(members)), 1, len(members) - 1))
        held.append(members[:count])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_sample(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sorted indices of `size` images whose class shares match the whole's, at least one of each where `size` allows.

    The shares are rounded by largest remainder, so the sum is exactly `size`.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
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
    return np.sort(np.concatenate([order[labels[order] == c][:n] for c, n in zip(classes, quota, strict=True)]))
