"""Metrics from probabilities and labels: accuracy and its interval, calibration, per-class scores, worst images.

Works on NumPy arrays, without Keras.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kbaseline.calibration import Calibration, calibrate, losses
from kbaseline.console.format import html_table, interval, percent, shortened
from kbaseline.errors import InputError
from kbaseline.render.notebook import Gallery, Table, fragment, paragraphs

if TYPE_CHECKING:
    from kbaseline.render.plots import Plot

CONFIDENCE = 0.95
"""Confidence level of every interval."""

_POWER = 0.8
"""Share of trials in which a difference is to be found."""

_MOST_TOP = 5
"""Top-k accuracy is top-5, or fewer where there are five classes or fewer."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of predicted probabilities.

    >>> from kbaseline.metrics import evaluate_predictions
    >>> evaluate_predictions([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1], ("cat", "dog"))
    Evaluation of 3 images: accuracy 66.67 % (95 % interval 20.77 – 93.85 %), loss 0.6067, calibration error 40.00 %
    most confused: dog as cat (1)

    Attributes:
        accuracy: fraction of images whose most probable class is the label, 0 to 1.
        interval: 95 % confidence interval of the accuracy; see `accuracy_interval`.
        balanced_accuracy: mean recall of the classes that have images, 0 to 1.
        macro_f1: mean F1 of the classes that have images or predictions, 0 to 1.
        top_k: 5, or one less than the number of classes.
        top_k_accuracy: fraction of images whose label is among the `top_k` most probable classes, 0 to 1.
        loss: mean cross-entropy, in nats.
        calibration: expected calibration error, before and after temperature scaling.
        per_class: for each class its `class` (name), `precision`, `recall`, `f1` (0 to 1; 0 where undefined)
            and `support` (images).
        confusion: int64 (classes, classes): images by actual class (row) and predicted class (column).
        class_names: names by label.
        probabilities: float64 (images, classes).
        labels: int64 (images,).
        pictures: makes the gallery of images, by index, that `worst` shows; None if the images are not at hand.
    """

    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    macro_f1: float
    top_k: int
    top_k_accuracy: float
    loss: float
    calibration: Calibration
    per_class: Table
    confusion: NDArray[np.int64]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    pictures: Callable[["Evaluation", Sequence[int]], Gallery] | None = None

    def __repr__(self) -> str:
        confused = ", ".join(f"{a} as {b} ({count})" for a, b, count in self.most_confused()[:3])
        return (
            f"Evaluation of {len(self.labels):,} images: accuracy {percent(self.accuracy)} (95 % interval "
            f"{interval(self.interval)}), loss {self.loss:.4f}, calibration error {percent(self.calibration.error)}\n"
            f"most confused: {shortened(confused or 'none', 150)}"
        )

    def _repr_html_(self) -> str:
        return fragment(paragraphs(repr(self)), html_table(("score", ""), ((a, *b) for a, b in score_rows({"": self}))))

    def plot_confusion(self) -> "Plot":
        """Plots the confusion matrix; a Matplotlib figure."""
        from kbaseline.render.plots import plot_confusion

        return plot_confusion(self.confusion, self.class_names)

    def worst(self, n: int = 9) -> Gallery:
        """The `n` images with the highest loss: prediction, label, loss, and a Grad-CAM heat map of the prediction.

        Raises:
            InputError: the images are not at hand; they are after `Learner.evaluate` and `Learner.tta`.
        """
        if self.pictures is None:
            raise InputError(
                "worst: the images are not at hand; take learn.evaluate() or learn.tta(), or top_losses()."
            )
        return self.pictures(self, [row["index"] for row in self.top_losses(n)])

    def top_losses(self, k: int = 9) -> Table:
        """The `k` images with the highest loss (all, if there are fewer), worst first.

        Each has its `index`, `loss` (nats), `predicted` and `actual` (class names), and the probabilities of both,
        `p_predicted` and `p_actual`.
        """
        worst = np.argsort(-losses(self.probabilities, self.labels), kind="stable")
        return Table(self.example(int(index)) for index in worst[: max(k, 0)])

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
        """(actual, predicted, images) of every confusion made at least `min_count` times, most frequent first."""
        pairs = [
            (self.class_names[row], self.class_names[column], int(self.confusion[row, column]))
            for row, column in np.argwhere(self.confusion >= max(min_count, 1))
            if row != column
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def to_dict(self) -> dict[str, Any]:
        """Every score, the per-class table and the confusion matrix as plain Python, for JSON; no single images."""
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
    """Two predictions of the same images, compared image by image.

    Attributes:
        difference: accuracy of the second minus that of the first, -1 to 1.
        only_first: images that only the first predicts correctly.
        only_second: images that only the second predicts correctly.
        p_value: of McNemar's exact test: the probability of a difference at least this large by chance.
        images: images compared.
    """

    difference: float
    only_first: int
    only_second: int
    p_value: float
    images: int

    @property
    def images_to_settle(self) -> int | None:
        """Images on which a difference of this size would be found in four of five trials at a level of 5 %.

        By the normal approximation of McNemar's test (Connor 1987, doi 10.2307/2531961); None where there is no
        difference to find.
        """
        if not self.difference:
            return None
        from scipy.stats import norm

        differing = (self.only_first + self.only_second) / self.images
        spread = math.sqrt(max(differing - self.difference**2, 0))
        sure, power = (float(z) for z in norm.ppf((1 - (1 - CONFIDENCE) / 2, _POWER)))
        return math.ceil(((sure * math.sqrt(differing) + power * spread) / self.difference) ** 2)


def evaluate_predictions(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    temperature: float | None = None,
    pictures: Callable[[Evaluation, Sequence[int]], Gallery] | None = None,
) -> Evaluation:
    """Scores predictions.

    Args:
        probabilities: (images, classes), 0 to 1, every row summing to 1.
        labels: integers (images,), 0 to classes - 1.
        class_names: a name for each class.
        temperature: for the calibration scores, fitted on other predictions of the same network; None fits it on
            these, cross-fitted (see `Calibration`).
        pictures: see `Evaluation`.

    Raises:
        InputError: the shapes do not match, a label is out of range, or a row is not a probability distribution.
    """
    names = tuple(class_names)
    p, y = _checked(np.asarray(probabilities), np.asarray(labels), len(names))
    # scikit-learn takes a second to import; help and configuration do not need it.
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    predicted, every = p.argmax(axis=1), np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    right = int((predicted == y).sum())
    top_k = max(1, min(_MOST_TOP, len(names) - 1))
    leading = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    return Evaluation(
        accuracy=right / len(y),
        interval=accuracy_interval(right, len(y)),
        # The same as scikit-learn's balanced_accuracy_score, which warns where a class has no images.
        balanced_accuracy=float(recall[support > 0].mean()),
        macro_f1=float(f1_score(y, predicted, average="macro", zero_division=0)),
        top_k=top_k,
        # scikit-learn's top_k_accuracy_score breaks ties in favour of the last class; argmax takes the first.
        top_k_accuracy=float((leading == y[:, None]).any(axis=1).mean()),
        loss=float(losses(p, y).mean()),
        calibration=calibrate(p, y, temperature),
        per_class=Table(
            {"class": name, "precision": float(a), "recall": float(b), "f1": float(c), "support": int(d)}
            for name, a, b, c, d in zip(names, precision, recall, f1, support, strict=True)
        ),
        confusion=np.asarray(confusion_matrix(y, predicted, labels=every), dtype=np.int64),
        class_names=names,
        probabilities=p,
        labels=y,
        pictures=pictures,
    )


def accuracy_interval(right: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of an accuracy: Wilson's score interval, whose ends lie in 0 to 1.

    It covers the variation between samples of images from the same distribution, not between training seeds.

    Args:
        right: images predicted correctly.
        images: images in all, at least 1.
    """
    from scipy.stats import binomtest

    ends = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def compare_paired(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Compares two predictions of the same images, for instance plain and with TTA.

    Raises:
        InputError: their labels differ, so the images do too.
    """
    if not np.array_equal(first.labels, second.labels):
        raise InputError("paired comparison: both must predict the same images, but their labels differ.")
    from scipy.stats import binomtest

    a, b = (one.probabilities.argmax(axis=1) == one.labels for one in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differing = only_first + only_second
    return PairedComparison(
        difference=(only_second - only_first) / len(a),
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_first, differing).pvalue) if differing else 1.0,
        images=len(a),
    )


def final_evaluation(by_kind: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluation with TTA if there is one, else the plain one, of evaluations by kind of prediction."""
    return by_kind.get("tta") or by_kind["plain"]


def without_harm(by_kind: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Evaluations by kind of prediction, without TTA if it is less accurate than plain."""
    harmful = "tta" in by_kind and by_kind["tta"].accuracy < by_kind["plain"].accuracy
    return {kind: one for kind, one in by_kind.items() if not (harmful and kind == "tta")}


def score_rows(by_kind: Mapping[str, Evaluation]) -> list[tuple[str, list[str]]]:
    """Every score of evaluations by kind of prediction, as rows (name, formatted value of each kind)."""
    columns = [
        {
            "accuracy": percent(one.accuracy),
            "95 % interval": interval(one.interval),
            "balanced accuracy": percent(one.balanced_accuracy),
            "macro F1": percent(one.macro_f1),
            f"top-{one.top_k} accuracy": percent(one.top_k_accuracy),
            "loss, in nats": f"{one.loss:.4f}",
            "calibration error (ECE)": percent(one.calibration.error),
            "fitted temperature": f"{one.calibration.temperature:.2f}",
            "ECE at that temperature": percent(one.calibration.error_at_temperature),
        }
        for one in by_kind.values()
    ]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _checked(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Validates both and converts them to float64 and int64."""
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or not len(probabilities):
        raise InputError(
            f"probabilities: must have shape (images, {classes}), one column per class name, with at least one image; "
            f"got {probabilities.shape}."
        )
    if labels.shape != probabilities.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels: must be {len(probabilities)} integers, one per row of probabilities; "
            f"got {labels.dtype} {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels: must lie in 0 to {classes - 1}; got {labels.min()} to {labels.max()}.")
    p = probabilities.astype(np.float64)
    sums = p.sum(axis=1)
    # NaN fails every comparison, so test for valid rows, not for invalid ones.
    good = (p >= 0).all(axis=1) & (np.abs(sums - 1) <= 1e-3)
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(
            f"probabilities: every row must be non-negative and sum to 1; row {first} sums to {sums[first]:.6g} "
            f"and its smallest value is {p[first].min():.6g}. Apply softmax to logits first."
        )
    return p, labels.astype(np.int64)
