"""From probabilities and labels to numbers: accuracy, loss, a table per class, the confusion matrix, the worst images.

Knows neither the model nor Keras: it takes arrays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kbaseline.errors import InputError

_SMALLEST = 1e-7
"""Probabilities below it count as it, as in Keras, so that one confident mistake does not make the loss infinite."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What predictions are worth.

    Attributes:
        accuracy: fraction of the images whose most probable class is theirs, 0 to 1.
        loss: mean of -log of the probability of an image's own class, in nats.
        per_class: for each class its `class` (name), `precision`, `recall`, `f1` (0 to 1; 0 where undefined)
            and `support` (images).
        confusion: int64 (classes, classes): images by actual class (row) and predicted class (column).
        class_names: the names, by label.
        probabilities: float64 (images, classes).
        labels: int64 (images,).
    """

    accuracy: float
    loss: float
    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]

    def top_losses(self, k: int = 9) -> list[dict[str, Any]]:
        """The `k` images with the highest loss (all, if there are fewer), worst first.

        Each has its `index`, `loss` (nats), `predicted` and `actual` (class names), and the probabilities of both,
        `p_predicted` and `p_actual`.
        """
        losses = _losses(self.probabilities, self.labels)
        predicted = self.probabilities.argmax(axis=1)
        return [
            {
                "index": int(i),
                "loss": float(losses[i]),
                "predicted": self.class_names[predicted[i]],
                "actual": self.class_names[self.labels[i]],
                "p_predicted": float(self.probabilities[i, predicted[i]]),
                "p_actual": float(self.probabilities[i, self.labels[i]]),
            }
            for i in np.argsort(-losses, kind="stable")[: max(k, 0)]
        ]

    def most_confused(self, min_count: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, images) of every mistake made at least `min_count` times, the commonest first."""
        pairs = [
            (self.class_names[row], self.class_names[column], int(self.confusion[row, column]))
            for row, column in np.argwhere(self.confusion >= max(min_count, 1))
            if row != column
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def to_dict(self) -> dict[str, Any]:
        """Accuracy, loss, table and confusion matrix in plain Python, for JSON; not the single images."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "per_class": [dict(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }


def evaluate_predictions(probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str]) -> Evaluation:
    """Scores predictions.

    Args:
        probabilities: (images, classes), 0 to 1, every row summing to 1.
        labels: integers (images,), 0 to classes - 1.
        class_names: a name for each class.

    Raises:
        InputError: shapes that do not belong together, labels outside the classes, or rows that are no
            probabilities.
    """
    names = tuple(class_names)
    p, y = _checked(np.asarray(probabilities), np.asarray(labels), len(names))
    # scikit-learn takes a second to import; help and configuration do without.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted, every = p.argmax(axis=1), np.arange(len(names))
    columns = precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    return Evaluation(
        accuracy=float((predicted == y).mean()),
        loss=float(_losses(p, y).mean()),
        per_class=[
            {"class": name, "precision": float(a), "recall": float(b), "f1": float(c), "support": int(d)}
            for name, a, b, c, d in zip(names, *columns, strict=True)
        ],
        confusion=np.asarray(confusion_matrix(y, predicted, labels=every), dtype=np.int64),
        class_names=names,
        probabilities=p,
        labels=y,
    )


def percent(fraction: float | None) -> str:
    """`94.56 %` for 0.9456; a dash for None and NaN. How every table of a run writes an accuracy."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f} %"


def clock(seconds: float | None) -> str:
    """`01:23`, or `1:02:03` from an hour on; a dash for None and NaN. How every table of a run writes a time."""
    if seconds is None or math.isnan(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log of the probability of each image's own class, float64 (images,)."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(own, _SMALLEST, 1.0)), dtype=np.float64)


def _checked(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Both as float64 and int64, or an InputError that says what is wrong with them."""
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or not len(probabilities):
        raise InputError(
            f"probabilities must have shape (images, {classes}), one column a class name, and at least one image; "
            f"got {probabilities.shape}."
        )
    if labels.shape != probabilities.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels must be {len(probabilities)} integers, one a row of probabilities; "
            f"got {labels.dtype} {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels must lie in 0 to {classes - 1}; got {labels.min()} to {labels.max()}.")
    p = probabilities.astype(np.float64)
    sums = p.sum(axis=1)
    # NaN fails every comparison, so what must hold is asked, not what must not.
    good = (p >= 0).all(axis=1) & (np.abs(sums - 1) <= 1e-3)
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(
            f"probabilities: every row must be at least 0 and sum to 1; row {first} sums to {sums[first]:.6g} "
            f"with a least value of {p[first].min():.6g}. Apply softmax to logits first."
        )
    return p, labels.astype(np.int64)
