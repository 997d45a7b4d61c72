"""Leaks: which scored images have a near-duplicate in an earlier split, and the accuracy without them."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from kbaseline.audit.near_duplicates import find_near_duplicates, leaked_rows, nearest
from kbaseline.config.splits import DISPLAY_NAMES
from kbaseline.console.format import percent
from kbaseline.data import ImageData
from kbaseline.data.duplicates import EARLIER
from kbaseline.metrics import Evaluation


def find_leaked(data: ImageData, features: Mapping[str, np.ndarray], console: Console | None) -> dict[str, list[int]]:
    """Split -> rows of its images that have a near-duplicate in an earlier split.

    Args:
        data: the images.
        features: split -> float `(images, any)`, of all images.
        console: where to show progress; None shows nothing.
    """
    every = np.concatenate([features[name] for name in data.splits])
    groups = find_near_duplicates(data, nearest(every, console), console, across=True)
    return leaked_rows(groups, list(data.splits))


def accuracy_without(evaluation: Evaluation, rows: Sequence[int]) -> float | None:
    """Accuracy on the other images, 0 to 1; None if there are no others."""
    right = np.delete(evaluation.probabilities.argmax(axis=1) == evaluation.labels, rows)
    return float(right.mean()) if len(right) else None


def leak_line(split: str, rows: Sequence[int], evaluation: Evaluation) -> str:
    """One line on the images of a split at `rows` and the accuracy without them; an empty string if there are none."""
    if not rows:
        return ""
    line = (
        f"near-duplicates: {len(rows):,} of {len(evaluation.labels):,} {DISPLAY_NAMES[split]} images have a copy in "
        f"{EARLIER[split]}"
    )
    without = accuracy_without(evaluation, rows)
    if without is None:
        return line
    return f"{line}; accuracy without them {percent(without)}, with them {percent(evaluation.accuracy)}"
