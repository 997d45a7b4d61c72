"""Metrics: golden numbers worked out by hand, and errors for invalid predictions."""

import json
import math

import numpy as np
import pytest

from kbaseline.console.format import clock, percent
from kbaseline.errors import InputError
from kbaseline.metrics import accuracy_interval, compare_paired, evaluate_predictions, without_harm

NAMES = ("cat", "dog", "emu")
# Predictions: cat, dog, cat, dog, dog. None is emu.
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [0.1, 0.6, 0.3], [0.0, 0.75, 0.25]])
LABELS = np.array([0, 1, 1, 2, 2])


@pytest.fixture
def evaluation():
    return evaluate_predictions(PROBABILITIES, LABELS, NAMES)


def test_accuracy_and_loss(evaluation):
    """Golden: two of five right; the mean of -log of 0.8, 0.5, 0.4, 0.3, 0.25."""
    assert evaluation.accuracy == 0.4
    assert evaluation.loss == pytest.approx(-math.log(0.8 * 0.5 * 0.4 * 0.3 * 0.25) / 5, rel=1e-12)


def test_tta_that_harms_is_left_out(evaluation):
    """Golden: less accurate than plain it goes, equally accurate or alone it stays."""
    worse = evaluate_predictions((1 - PROBABILITIES) / 2, LABELS, NAMES)
    assert worse.accuracy < evaluation.accuracy
    assert without_harm({"plain": evaluation, "tta": worse}) == {"plain": evaluation}
    for kept in ({"plain": worse, "tta": evaluation}, {"plain": worse, "tta": worse}, {"plain": evaluation}):
        assert without_harm(kept) == kept


def test_a_probability_of_zero_costs_a_finite_loss():
    """As in Keras, a probability counts as at least 1e-7."""
    found = evaluate_predictions([[1.0, 0.0]], [1], ["a", "b"])
    assert found.loss == pytest.approx(-math.log(1e-7))


def test_confusion_has_actual_rows(evaluation):
    """Golden: rows are actual classes, columns predicted ones, including classes that were never predicted."""
    assert evaluation.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 2, 0]]
    assert evaluation.confusion.dtype == np.int64


def test_per_class_table(evaluation):
    """Golden: precision by column, recall by row; 0, without a warning, where nothing was predicted."""
    cat, dog, emu = evaluation.per_class
    assert cat == {"class": "cat", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert dog == {"class": "dog", "precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4, "support": 2}
    assert emu == {"class": "emu", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}


def test_a_class_without_images_has_its_row():
    """The table and the matrix have every class, whatever the labels are."""
    found = evaluate_predictions([[0.7, 0.2, 0.1]], [0], NAMES)
    assert [row["support"] for row in found.per_class] == [1, 0, 0]
    assert found.confusion.shape == (3, 3)


def test_top_losses_come_worst_first(evaluation):
    """The image with the least probable class of its own leads; k beyond the images gives them all."""
    assert [row["index"] for row in evaluation.top_losses(99)] == [4, 3, 2, 1, 0]
    assert evaluation.top_losses(0) == []
    (worst,) = evaluation.top_losses(1)
    assert worst == {
        "index": 4,
        "loss": pytest.approx(-math.log(0.25)),
        "predicted": "dog",
        "actual": "emu",
        "p_predicted": 0.75,
        "p_actual": 0.25,
    }


def test_most_confused_is_sorted_and_leaves_out_the_diagonal(evaluation):
    """As fastai: (actual, predicted, count), the commonest first, at least `min_count`."""
    assert evaluation.most_confused() == [("emu", "dog", 2), ("dog", "cat", 1)]
    assert evaluation.most_confused(min_count=2) == [("emu", "dog", 2)]


def test_to_dict_is_plain(evaluation):
    """Invariant: the metrics survive JSON unchanged."""
    found = evaluation.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("images", "accuracy", "interval", "balanced_accuracy", "macro_f1", "top_k", "top_k_accuracy", "loss"),
        *("calibration", "per_class", "confusion"),
    ]
    assert found["calibration"]["cross_fitted"] is True


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3 (Wilson)
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_accuracy_interval_is_wilsons(right, images, low, high):
    """Golden: the published intervals of Newcombe 1998 (Statistics in Medicine 17, 857-872); the last by symmetry."""
    assert accuracy_interval(right, images) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_the_interval_is_that_of_the_accuracy(evaluation):
    """Reference: Wilson's formula written out for two right of five."""
    z, n, p = 1.959963984540054, 5, 0.4
    middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert evaluation.interval == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


def test_means_over_classes(evaluation):
    """Golden: mean recall of 1, 1/2, 0; mean F1 of 2/3, 2/5, 0."""
    assert evaluation.balanced_accuracy == pytest.approx(0.5)
    assert evaluation.macro_f1 == pytest.approx((2 / 3 + 2 / 5) / 3)


def test_a_class_without_images_spoils_no_mean():
    """Reference: scikit-learn's own means; classes that occur nowhere are left out of both."""
    from sklearn.metrics import balanced_accuracy_score, f1_score

    labels = np.array([0, 0, 1, 1, 1])
    p = np.eye(5)[[0, 0, 1, 0, 1]]
    found = evaluate_predictions(p, labels, list("abcde"))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, p.argmax(axis=1)))
    assert found.macro_f1 == pytest.approx(f1_score(labels, p.argmax(axis=1), average="macro"))
    assert found.macro_f1 > 0.7


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (3, 2), (6, 5), (30, 5)])
def test_top_k_accuracy(classes, k, rng):
    """Reference: the rank of every image's own class, counted one by one."""
    p = rng.dirichlet(np.ones(classes), size=200)
    labels = rng.integers(0, classes, size=200)
    ranks = [sum(value > row[label] for value in row) for row, label in zip(p, labels, strict=True)]
    found = evaluate_predictions(p, labels, [str(i) for i in range(classes)])
    assert found.top_k == k
    assert found.top_k_accuracy == pytest.approx(np.mean([rank < k for rank in ranks]), abs=1e-12)
    assert 0 < found.accuracy <= found.top_k_accuracy < 1


def test_among_equals_the_first_label_leads():
    """Golden: with equal probabilities the first labels rank first, so top-1 is 1/3 and top-2 is 2/3."""
    p = np.full((3, 3), 1 / 3)
    found = evaluate_predictions(p, [0, 1, 2], NAMES)
    assert (found.accuracy, found.top_k_accuracy) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_paired_comparison_is_mcnemars():
    """Reference: the binomial tails written out, for 1 image that only the first has right and 6 only the second."""
    labels = np.zeros(20, int)
    first, second = np.zeros((20, 2)), np.zeros((20, 2))
    first[:, 0] = second[:, 0] = 1
    first[:6] = [0, 1]
    second[6] = [0, 1]
    a, b = (evaluate_predictions(p, labels, ["a", "b"]) for p in (first, second))
    found = compare_paired(a, b)
    assert (found.only_first, found.only_second, found.difference) == (1, 6, 0.25)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert compare_paired(b, a).difference == -0.25
    assert compare_paired(a, a).p_value == 1.0


def test_only_the_same_images_are_paired(evaluation):
    """Predictions of other images are refused."""
    with pytest.raises(InputError, match="same images"):
        compare_paired(evaluation, evaluate_predictions(PROBABILITIES, LABELS[::-1].copy(), NAMES))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.ones((2, 2)) / 2, [0, 1], r"shape \(images, 3\).*got \(2, 2\)"),
        (np.ones(3) / 3, [0], r"got \(3,\)"),
        (np.ones((0, 3)), [], "at least one image"),
        (PROBABILITIES, LABELS[:4], r"5 integers.*got int64 \(4,\)"),
        (PROBABILITIES, LABELS.astype(float), "5 integers.*got float64"),
        (PROBABILITIES, LABELS + 1, "0 to 2; got 1 to 3"),
        (PROBABILITIES, LABELS - 1, "0 to 2; got -1 to 1"),
        (PROBABILITIES * 2, LABELS, "row 0 sums to 2 .*softmax"),
        ([[2.0, -0.5, -0.5]], [0], "smallest value is -0.5"),
        ([[0.5, 0.25, 0.25], [math.nan, 0.5, 0.5]], [0, 0], "row 1 sums to nan"),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities, labels, message):
    """Each rule has its message, with the value it met."""
    with pytest.raises(InputError, match=message):
        evaluate_predictions(probabilities, labels, NAMES)


def test_float32_probabilities_of_many_classes_are_taken(rng):
    """The tolerance of the sum leaves room for float32 softmax."""
    logits = rng.normal(size=(50, 1000)).astype(np.float32) * 10
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert evaluate_predictions(p, p.argmax(axis=1), [str(i) for i in range(1000)]).accuracy == 1.0


@pytest.mark.parametrize(
    ("value", "text"), [(0.9456, "94.56 %"), (1.0, "100.00 %"), (None, "-"), (math.nan, "-"), (0.0, "0.00 %")]
)
def test_percent(value, text):
    """Golden: two decimals, a dash for nothing."""
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00:00"),
        (59.6, "01:00"),
        (83, "01:23"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_clock(value, text):
    """Golden: minutes and seconds, hours when there are any, and never sixty seconds."""
    assert clock(value) == text
