"""Chooses the images of each split on labels alone: seeded, stratified, as numbers."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from kbaseline.errors import DataError

DEFAULT_VALID_FRACTION = 0.2


def choose(
    labels: Mapping[str, np.ndarray],
    seed: int,
    *,
    valid_fraction: float | None = None,
    limit: int | None = None,
    limit_valid: int | None = None,
    groups: np.ndarray | None = None,
    fold: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Decides which images train, validate and test.

    A source's own validation split is kept; without one, `test` validates (as in the article). Without either, or
    when `valid_fraction` asks for it, a stratified part of `train` is held out. Then come the subsets of the limits.

    Args:
        labels: `train` and perhaps `valid` and `test`, in this order -> int `(number,)`, a class for every image.
        seed: fixes the hold-out and the subsets.
        valid_fraction: fraction of `train` to hold out although there is another split to validate on.
        limit: at most this many training images.
        limit_valid: at most this many of every other split; default: `limit`.
        groups: int `(number,)`, a number for every image of all splits; a hold-out does not divide images of one.
        fold: `(k, K)`, hold out the k-th of K stratified parts of `train` instead; `(0, K)` keeps all of `train`, and
            holds out the first part as well.

    Returns:
        `train`, `valid` and perhaps `test` -> sorted int `(number,)`, images as `number_images` numbers them, all of
        one split of `labels`. `valid` is empty where no class of `train` has two images to share.
    """
    numbers = number_images(labels)
    own = None if groups is None else groups[numbers["train"]]
    held_out = valid_fraction is not None or fold is not None
    if not held_out and "valid" in labels:
        chosen = numbers
    elif not held_out and "test" in labels:
        chosen = {"train": numbers["train"], "valid": numbers["test"]}
    else:
        if fold is not None:
            kept, held = _fold(labels["train"], fold, seed, own)
        else:
            kept, held = stratified_split(labels["train"], valid_fraction or DEFAULT_VALID_FRACTION, seed, own)
        chosen = {"train": numbers["train"][kept], "valid": numbers["train"][held]}
        rest = numbers.get("test", numbers.get("valid"))
        chosen |= {} if rest is None else {"test": rest}
    every = np.concatenate(list(labels.values()))
    for name, size in (("train", limit), ("valid", limit_valid or limit), ("test", limit_valid or limit)):
        if size is not None and name in chosen and size < len(chosen[name]):
            chosen[name] = chosen[name][stratified_sample(every[chosen[name]], size, seed)]
    return chosen


def number_images(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers of each split's images, counted from 0 through all splits in their order."""
    ends = np.cumsum([len(part) for part in labels.values()])
    return {name: np.arange(end - len(labels[name]), end) for name, end in zip(labels, ends, strict=True)}


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out `fraction` of every class.

    A class of one image stays in train; every other class keeps at least one image on each side. With groups the shares
    are met as far as whole groups allow, and a class of one group stays in train.

    Args:
        labels: int `(number,)`.
        fraction: of each class to hold out, in (0, 1).
        seed: fixes the choice.
        groups: int `(number,)`; images of one group stay together. None: every image is its own.

    Returns:
        Sorted indices kept, sorted indices held out.
    """
    if groups is not None:
        return _grouped_split(labels, fraction, seed, groups)
    held = np.zeros(len(labels), bool)
    for members in _classes(labels, seed):
        if len(members) > 1:
            held[members[: int(np.clip(round(fraction * len(members)), 1, len(members) - 1))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def fold_indices(
    labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kept, held out) for each fold, sorted int: stratified, seeded, and groups stay together; by scikit-learn.

    There are fewer folds than asked for where the largest class, or the number of groups, is smaller.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    folds = min(folds, int(np.bincount(labels).max()), len(labels) if groups is None else len(np.unique(groups)))
    if folds < 2:
        return []
    with warnings.catch_warnings():
        # A class may have fewer images than there are folds: it is then missing from some.
        warnings.filterwarnings("ignore", message="The least populated class")
        if groups is None:
            return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))
        return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups))


def merge_groups(relations: Sequence[np.ndarray]) -> np.ndarray:
    """The groups of images that one relation or several, one after the other, hold together.

    Args:
        relations: at least one, each int `(number,)`, a number for every image, the same for images of one group.

    Returns:
        int `(number,)`, the groups counted from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = len(relations[0])
    links = []
    for relation in relations:
        _, first, group = np.unique(relation, return_index=True, return_inverse=True)
        links.append(first[group])
    ends = np.concatenate(links)
    graph = coo_array((np.ones(len(ends)), (np.tile(np.arange(number), len(links)), ends)), shape=(number, number))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _fold(
    labels: np.ndarray, fold: tuple[int, int], seed: int, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    number, folds = fold
    parts = fold_indices(labels, folds, seed, groups)
    if len(parts) < folds:
        raise DataError(
            f"data.fold: {folds} parts need a class of as many images, and as many groups; there can be {len(parts)}."
        )
    kept, held = parts[max(number, 1) - 1]
    return (kept, held) if number else (np.arange(len(labels)), held)


def _grouped_split(labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of stratified folds of groups, one that leaves train most classes, and of these the nearest to the fraction.

    A group that is the only one of a class stays in train.
    """
    every = np.arange(len(labels))
    label, group = np.unique(np.stack([labels, groups]), axis=1)
    only = group[np.isin(label, np.flatnonzero(np.bincount(label) == 1))]
    free = np.flatnonzero(~np.isin(groups, only))
    if len(free) < 2:
        return every, every[:0]
    wanted = fraction * len(labels)
    share = min(wanted / len(free), 1 - 1 / len(free))
    parts = fold_indices(labels[free], max(2, round(1 / min(share, 1 - share))), seed, groups[free])
    if not parts:
        return every, every[:0]

    def lost_and_off(held: np.ndarray) -> tuple[int, float]:
        return len(np.setdiff1d(labels, np.delete(labels, held))), abs(len(held) - wanted)

    held = min((free[held if share <= 0.5 else kept] for kept, held in parts), key=lost_and_off)
    return np.delete(every, held), held


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
