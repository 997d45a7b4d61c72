"""Label suspects: images whose label a probe that has not seen them finds unlikely."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kbaseline.data.duplicates import Place


@dataclass(frozen=True)
class Suspect:
    """An image that may have the wrong label.

    Attributes:
        place: the image, with the label it has.
        suggested: the label that the probe gives it.
        score: probability of its label less that of the suggested one, -1 to 0: the lowest is the most suspect.
    """

    place: Place
    suggested: int
    score: float


def find_suspects(places: Sequence[Place], probabilities: np.ndarray) -> tuple[Suspect, ...]:
    """Suspects by confident learning (Northcutt et al. 2021, arXiv 1911.00068), as cleanlab does it; worst first.

    About half of such candidates were real errors in ten well-known test sets (arXiv 2103.14749): look at each.

    Args:
        places: every image.
        probabilities: float64 `(images, classes)`, each row from a model that has not seen that image.
    """
    with warnings.catch_warnings():
        # Of tqdm in a notebook without ipywidgets; no bar of it is shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        # It imports pandas, which takes a second.
        from cleanlab.filter import find_label_issues

    labels = np.array([place.label for place in places])
    suggested = probabilities.argmax(axis=1)
    every = np.arange(len(labels))
    scores = probabilities[every, labels] - probabilities[every, suggested]
    present = np.unique(labels)
    # cleanlab wants every class to have an image.
    given, own = np.searchsorted(present, labels), probabilities[:, present]
    issues = find_label_issues(given, own / own.sum(axis=1, keepdims=True).clip(1e-12), n_jobs=1)
    found = [number for number in np.flatnonzero(issues).tolist() if suggested[number] != labels[number]]
    return tuple(
        Suspect(places[number], int(suggested[number]), float(scores[number]))
        for number in sorted(found, key=lambda number: scores[number])
    )
