"""From probabilities and labels to numbers: accuracy and its interval, calibration, tables, the worst images.

Knows neither the model nor Keras: it takes arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kbaseline.calibration import Calibration, calibrate, losses
from kbaseline.errors import InputError

CONFIDENCE = 0.95
"""Of every interval."""

_MOST_TOP = 5
"""Top-k accuracy is top-5, or fewer where five classes would be all of them."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What predictions are worth.

    Attributes:
        accuracy: fraction of the images whose most probable class is theirs, 0 to 1.
        interval: 95 % confidence interval of the accuracy; see `accuracy_interval`.
        balanced_accuracy: mean recall of the classes that have images, 0 to 1.
        macro_f1: mean F1 of the classes that have images or predictions, 0 to 1.
        top_k: 5, or one less than the classes there are.
        top_k_accuracy: fraction of the images whose class is among the `top_k` most probable, 0 to 1.
        loss: mean of -log of the probability of an image's own class, in nats.
        calibration: expected calibration error, before and after a temperature.
        per_class: for each class its `class` (name), `precision`, `recall`, `f1` (0 to 1; 0 where undefined)
            and `support` (images).
        confusion: int64 (classes, classes): images by actual class (row) and predicted class (column).
        class_names: the names, by label.
        probabilities: float64 (images, classes).
        labels: int64 (images,).
    """

    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    top_k: int
    top_k_accuracy: float
    loss: float
    calibration: Calibration
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
        worst = np.argsort(-losses(self.probabilities, self.labels), kind="stable")
        return [self.example(int(index)) for index in worst[: max(k, 0)]]

    def example(self, index: int) -> dict[str, Any]:
        """One image, with the keys of `top_losses`."""
        row, own = self.probabilities[index], int(self.labels[index])
        guess = int(row.argmax())
        return {
            "index": index,
            "loss": float(losses(row[None], self.labels[index : index + 1])[0]),
            "predicted": self.class_names[guess],
            "actual": self.class_names[own],
            "p_predicted": float(row[guess]),
            "p_actual": float(row[own]),
        }

    def most_confused(self, min_count: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, images) of every mistake made at least `min_count` times, the commonest first."""
        pairs = [
            (self.class_names[row], self.class_names[column], int(self.confusion[row, column]))
            for row, column in np.argwhere(self.confusion >= max(min_count, 1))
            if row != column
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def to_dict(self) -> dict[str, Any]:
        """All figures, the table and the confusion matrix in plain Python, for JSON; not the single images."""
        return {
            "images": len(self.labels),
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "top_k": self.top_k,
            "top_k_accuracy": self.top_k_accuracy,
            "loss": self.loss,
            "calibration": asdict(self.calibration),
            "per_class": [dict(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class PairedComparison:
    """Two ways of predicting the same images, compared image by image.

    Attributes:
        difference: accuracy of the second less that of the first, -1 to 1.
        only_first: images that only the first has right.
        only_second: images that only the second has right.
        p_value: of McNemar's exact test: how often chance alone would make them differ at least as much.
    """

    difference: float
    only_first: int
    only_second: int
    p_value: float


def evaluate_predictions(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], *, temperature: float | None = None
) -> Evaluation:
    """Scores predictions.

    Args:
        probabilities: (images, classes), 0 to 1, every row summing to 1.
        labels: integers (images,), 0 to classes - 1.
        class_names: a name for each class.
        temperature: one fitted on other predictions of the network, for the figures of calibration; None fits it on
            these, crosswise (see `Calibration`).

    Raises:
        InputError: shapes that do not belong together, labels outside the classes, or rows that are no
            probabilities.
    """
    names = tuple(class_names)
    p, y = _checked(np.asarray(probabilities), np.asarray(labels), len(names))
    # scikit-learn takes a second to import; help and configuration do without.
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    predicted, every = p.argmax(axis=1), np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    right = int((predicted == y).sum())
    top_k = max(1, min(_MOST_TOP, len(names) - 1))
    leading = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    return Evaluation(
        accuracy=right / len(y),
        interval=accuracy_interval(right, len(y)),
        # scikit-learn's balanced_accuracy_score is this mean, with a warning where a class has no images.
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1_score(y, predicted, average="macro", zero_division=0)),
        top_k=top_k,
        # scikit-learn's top_k_accuracy_score lets the last of equals lead, where argmax takes the first.
        top_k_accuracy=float((leading == y[:, None]).any(axis=1).mean()),
        loss=float(losses(p, y).mean()),
        calibration=calibrate(p, y, temperature),
        per_class=[
            {"class": name, "precision": float(a), "recall": float(b), "f1": float(c), "support": int(d)}
            for name, a, b, c, d in zip(names, precision, recall, f1, support, strict=True)
        ],
        confusion=np.asarray(confusion_matrix(y, predicted, labels=every), dtype=np.int64),
        class_names=names,
        probabilities=p,
        labels=y,
    )


def accuracy_interval(right: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of an accuracy, both ends 0 to 1: Wilson's score interval, which stays inside 0 to 1.

    It tells how far the figure would move with other images of the same kind, not with another seed.

    Args:
        right: images predicted right.
        images: all of them, at least 1.
    """
    from scipy.stats import binomtest

    ends = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def compare_paired(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Compares two predictions of the same images, the first perhaps plain and the second with TTA.

    Raises:
        InputError: they are not of the same images.
    """
    if not np.array_equal(first.labels, second.labels):
        raise InputError("paired comparison: both must predict the same images; their labels differ.")
    from scipy.stats import binomtest

    a, b = (found.probabilities.argmax(axis=1) == found.labels for found in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differing = only_first + only_second
    return PairedComparison(
        difference=(only_second - only_first) / len(a),
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_first, differing).pvalue) if differing else 1.0,
    )


def final(by_kind: Mapping[str, Evaluation]) -> Evaluation:
    """Of the evaluations of one set of images by kind of prediction, the one with TTA, or else the plain one."""
    return by_kind.get("tta") or by_kind["plain"]


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
