"""Doubt: sets hold as many classes as promised, distances are those of the Gaussians, and a file is read as written."""

from pathlib import Path

import numpy as np
import pytest
from small_run import save_doubt

from kbaseline.doubt import FALSE_ALARMS, FILE, LEVELS, Doubt, fit_doubt, set_threshold
from kbaseline.errors import InputError


def predictions(rng: np.random.Generator, images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five classes and labels drawn from others, so that the probabilities are not calibrated."""
    logits = rng.normal(0, sharpness, (images, 5))
    p, true = (np.exp(scale * logits) for scale in (1.0, 0.6))
    true /= true.sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > rng.uniform(size=(images, 1))).argmax(axis=1)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels


def fitted(p: np.ndarray, labels: np.ndarray, features: np.ndarray, held: np.ndarray) -> Doubt:
    return fit_doubt({"plain": 1.0}, {"plain": p}, labels, features, np.arange(len(features)) % 3, held)


@pytest.mark.parametrize("images", [40, 400])
@pytest.mark.parametrize("level", LEVELS)
def test_sets_hold_the_class_as_often_as_promised(level: float, images: int) -> None:
    """Statistics: over 300 draws of the images, the mean share of new images whose set holds the class is between the
    level and the level plus 1 / (images + 1), which split conformal prediction promises, but for chance."""
    rng = np.random.default_rng(0)
    covered, sizes = [], []
    for _ in range(300):
        p, labels = predictions(rng, images + 200, 2.0)
        cut = set_threshold(p[:images], labels[:images], level)
        inside = p[images:] >= np.float32(cut)
        inside[np.arange(200), p[images:].argmax(axis=1)] = True
        covered.append(inside[np.arange(200), labels[images:]].mean())
        sizes.append(inside.sum(axis=1).mean())
    chance = 4 * np.std(covered) / np.sqrt(len(covered))
    assert level - chance <= np.mean(covered) <= level + 1 / (images + 1) + chance
    assert 1 < np.mean(sizes) < 5


def test_sets_of_few_images_and_of_a_classifier_that_is_right() -> None:
    """Golden: too few images give every class; a classifier that is right often enough, its class alone; never none."""
    p = np.array([[0.6, 0.3, 0.1]] * 30, np.float32)
    right, wrong = np.zeros(30, int), np.array([0] * 25 + [1] * 4 + [2])
    assert set_threshold(p[:8], right[:8], 0.9) == 0
    assert set_threshold(p, right, 0.9) == 1
    assert set_threshold(p, wrong, 0.9) == np.float32(0.3)
    doubt = fitted(p, wrong, np.eye(6), np.eye(6))
    assert doubt.sets(p[:1], "plain").tolist() == [[True, True, False]]
    assert doubt.sets(np.full((1, 3), 1 / 3), "plain").tolist() == [[True, True, True]]
    assert fitted(p, right, np.eye(6), np.eye(6)).sets(p[:1], "plain").tolist() == [[True, False, False]]


def test_the_distance_is_mahalanobis(rng: np.random.Generator) -> None:
    """Reference: the square is the distance to the nearest mean by the inverse of the covariance within classes, the
    smaller half of its variances replaced by their mean; and as many held-out images as stated lie above each limit."""
    mix = rng.normal(size=(9, 9))
    labels = np.arange(3000) % 3
    features = (rng.normal(size=(3000, 9)) @ mix + 5 * rng.normal(size=(3, 9))[labels]).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[:1500][labels[:1500] == label].mean(axis=0) for label in range(3)])
    p = np.full((1500, 3), 1 / 3, np.float32)
    doubt = fitted(p, labels[1500:], features[:1500], features[1500:])
    around = unit[:1500] - means[labels[:1500]]
    variances, axes = np.linalg.eigh(around.T @ around / 1500)
    variances[:5] = variances[:5].mean()
    inverse = axes / variances @ axes.T
    gaps = unit[1500:, None] - means
    expected = np.sqrt(np.einsum("icf,fg,icg->ic", gaps, inverse, gaps).min(axis=1))
    found = doubt.unfamiliarity(features[1500:])
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-4)
    assert next(iter(doubt.limits.values())) == 1
    for (share, limit), wanted in zip(doubt.limits.items(), FALSE_ALARMS, strict=True):
        assert (found > limit).mean() == pytest.approx(wanted, abs=1e-3)
        assert share <= wanted
    np.testing.assert_allclose(doubt.unfamiliarity(7 * features), doubt.unfamiliarity(features), rtol=1e-3)


@pytest.mark.parametrize("features", [np.ones((6, 4)), np.eye(6), np.zeros((6, 2)), np.repeat(np.eye(3), 2, axis=0)])
def test_features_that_say_little(features: np.ndarray) -> None:
    """Invariant: constant features, an image a class and more features than images give finite distances; few held-out
    images give the smallest share of false alarms that they can show."""
    p = np.full((6, 3), 1 / 3, np.float32)
    doubt = fitted(p, np.zeros(6, int), features.astype(np.float32), features.astype(np.float32))
    ((share, limit),) = doubt.limits.items()
    assert (share, limit) == (pytest.approx(1 / 7), 1)
    assert (doubt.unfamiliarity(features) <= 1 + 1e-4).all()
    far = doubt.unfamiliarity(-np.arange(1.0, 1 + features.size).reshape(features.shape))
    assert np.isfinite(far).all()
    assert (far > 1).all()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Invariant: what is read says what was written; no file is None; a damaged one is a line that names a remedy."""
    assert Doubt.read(tmp_path) is None
    written = save_doubt(tmp_path, 4)
    read = Doubt.read(tmp_path)
    assert read is not None
    assert read.summary("tta") == written.summary("tta")
    images, p = np.arange(8.0).reshape(2, 4), np.array([[0.5, 0.3, 0.2]] * 2, np.float32)
    np.testing.assert_array_equal(read.unfamiliarity(images), written.unfamiliarity(images))
    np.testing.assert_array_equal(read.calibrated(p, "plain"), written.calibrated(p, "plain"))
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:200])
    with pytest.raises(InputError, match=r"doubt\.npz is damaged .* run it again, or remove the file") as caught:
        Doubt.read(tmp_path)
    assert "\n" not in str(caught.value)
