"""The audit's parts on images made here, with faults whose truth is known; the features are coarse thumbnails."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from kbaseline.audit.alignment import SIDE, agreement, thumbnail
from kbaseline.audit.audit import audit_data
from kbaseline.audit.copies import kept_together
from kbaseline.audit.floor import cross_validate
from kbaseline.audit.shortcuts import find_shortcuts
from kbaseline.audit.suspects import find_suspects
from kbaseline.data import ImageData, Split
from kbaseline.data.decode import Header
from kbaseline.data.duplicates import all_places
from kbaseline.data.splits import fold_indices
from kbaseline.models.probe import Probe, fit_probe

SIZE = 96
CLASSES = ("disc", "square", "cross")


def photo(label: int, rng: np.random.Generator) -> Image.Image:
    """A textured ground and a thing on it, of the class's colour, in a place of its own."""
    ground = Image.fromarray(rng.integers(60, 200, (9, 9, 3), dtype=np.uint8)).resize((SIZE, SIZE), 3)
    pixels = np.asarray(ground, np.float32)
    y, x = np.mgrid[:SIZE, :SIZE]
    cx, cy = rng.integers(30, SIZE - 30, 2)
    side = rng.integers(14, 26)
    dx, dy = np.abs(x - cx), np.abs(y - cy)
    thing = (dx**2 + dy**2 < side**2, np.maximum(dx, dy) < side, (np.minimum(dx, dy) < 6) & (np.maximum(dx, dy) < side))
    colour = np.eye(3)[label] * 200 + rng.integers(0, 50, 3)
    pixels[thing[label]] = colour
    return Image.fromarray((pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _cropped(image: Image.Image) -> Image.Image:
    return image.crop((6, 3, SIZE - 2, SIZE - 5))


COPIES = {
    "resized": lambda image: image.resize((40, 40)),
    "recompressed": lambda image: _jpeg(image, 20),
    "cropped": _cropped,
    "recoloured": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.2)).enhance(0.5),
    "mirrored": ImageOps.mirror,
    "all of it": lambda image: _jpeg(_cropped(ImageOps.mirror(image)), 40),
}


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def features(images: np.ndarray) -> np.ndarray:
    """Colours on a 4 x 4 grid, of the image and its mirror, whatever its contrast: the least that a network sees."""
    coarse = [np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BOX), np.float32) for image in images]
    both = np.stack([(one + one[:, ::-1]).ravel() for one in coarse])
    colours = np.stack([np.quantile(one.reshape(-1, 3) - one.mean(), (0, 1), axis=0).ravel() / 50 for one in coarse])
    return np.hstack([(both - both.mean(axis=1, keepdims=True)) / (both.std(axis=1, keepdims=True) + 1), colours])


@pytest.fixture(scope="module")
def planted():
    """(data, audit, truth): copies across splits, flipped labels, dark, blank and blurred images."""
    rng = np.random.default_rng(1)
    labels = np.arange(240) % 3
    images = [photo(int(label), rng) for label in labels]
    pixels = [_pixels(image) for image in images]
    truth = {"dark": 3, "blank": 4, "blurred": 5}
    pixels[3] = (pixels[3] * 0.2).astype(np.uint8)
    pixels[4] = np.full_like(pixels[4], 120)
    pixels[5] = _pixels(images[5].resize((5, 5)))
    flips = rng.choice(np.arange(20, 200), 12, replace=False)
    given = labels.copy()
    given[flips] = (labels[flips] + 1) % 3
    sources = np.setdiff1d(np.arange(20, 200), flips)[: 2 * len(COPIES)]
    made = [COPIES[kind](images[number]) for number, kind in zip(sources, [*COPIES, *COPIES], strict=True)]
    valid = (np.stack([*pixels[200:], *map(_pixels, made)]), np.append(labels[200:], labels[sources]))
    data = ImageData.from_arrays((np.stack(pixels[:200]), given[:200]), valid, class_names=CLASSES)
    every = np.concatenate([np.asarray(split.images) for split in data.splits.values()])
    audit = audit_data(data, features(every))
    return data, audit, {**truth, "flips": set(flips.tolist()), "copies": dict(enumerate(sources.tolist()))}


def test_copies_are_found_across_splits_and_nothing_else(planted):
    _, audit, truth = planted
    found = {
        (place.row, other.row - 40)
        for group in audit.near_duplicates
        for place in group.places
        for other in group.places
        if place.split == "train" and other.split == "valid"
    }
    assert found == {(source, copy) for copy, source in truth["copies"].items()}
    assert all(len(group.places) == 2 for group in audit.near_duplicates)
    assert audit.leaks == {"valid": len(truth["copies"])}


def test_another_photo_of_the_same_thing_is_no_copy():
    rng = np.random.default_rng(2)
    same = np.stack([thumbnail(np.asarray(photo(0, np.random.default_rng(7)))) for _ in range(2)])
    others = np.stack([thumbnail(np.asarray(photo(0, rng))) for _ in range(8)])
    assert agreement(same[:1], same[1:]) == pytest.approx(1, abs=1e-3)
    assert agreement(others[:4], others[4:]).max() < 0.6


@pytest.mark.parametrize("kind", ["cropped", "mirrored", "all of it"])
def test_copies_of_small_images_agree_too(kind):
    """Of 32 pixels a side, which a thumbnail has to enlarge without steps."""
    rng = np.random.default_rng(4)
    photos = [photo(label, rng) for label in range(3)]
    first, second = (
        np.stack([thumbnail(np.asarray(image.convert("RGB").resize((32, 32)))) for image in images])
        for images in (photos, map(COPIES[kind], photos))
    )
    assert agreement(first, second).min() > 0.95
    assert agreement(first, np.roll(second, 1, axis=0)).max() < 0.6


def test_blank_images_agree_with_nothing():
    blank = np.full((1, SIDE, SIDE), 99, np.float32)
    assert agreement(blank, blank) < 0.5


def test_flipped_labels_are_suspects(planted):
    _, audit, truth = planted
    found = {one.place.row for one in audit.suspects if one.place.split == "train"}
    assert len(found & truth["flips"]) >= 11
    assert len(found - truth["flips"]) <= 4
    for one in audit.suspects:
        if one.place.row in truth["flips"] and one.place.split == "train":
            assert one.suggested == (one.place.label - 1) % 3


def test_odd_images_are_named_by_kind(planted):
    _, audit, truth = planted
    # The copies in valid were blurred on purpose too, by small sizes and JPEG.
    found = {(odd.kind, odd.place.row) for odd in audit.odd_images if odd.kind != "far" and odd.place.split == "train"}
    assert found == {(kind, truth[kind]) for kind in ("dark", "blank", "blurred")}


def test_suspects_are_those_of_cleanlab_in_the_order_of_their_margin():
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rng = np.random.default_rng(0)
    data = ImageData.from_arrays((np.zeros((300, 8, 8, 3), np.uint8), rng.integers(0, 3, 300)), valid_fraction=0.1)
    places = all_places(data)
    order = np.array([place.label for place in places])
    true = np.where(rng.random(300) < 0.9, order, (order + 1) % 3)
    own = rng.dirichlet(np.ones(3), 300) * 0.3 + 0.7 * np.eye(3)[true]
    found = find_suspects(places, own)
    quality = get_label_quality_scores(order, own, method="normalized_margin")
    positions = [places.index(one.place) for one in found]
    issues = set(np.flatnonzero(find_label_issues(order, own, n_jobs=1)))
    assert set(positions) == {number for number in issues if own[number].argmax() != order[number]}
    assert len(positions) >= 5
    assert (np.diff(quality[positions]) >= -1e-9).all()


def test_a_probe_chooses_its_strength_and_cross_validates_honestly():
    """On noise it must not beat chance, whatever it has seen; on a linear rule it is as good as the rule."""
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(300, 200)), rng.integers(0, 2, 300)
    floor = cross_validate(noise, labels, 2, np.arange(300))
    assert floor.accuracy < 0.6
    assert floor.folds == 5
    rule = (noise[:, :3].sum(axis=1) > 0).astype(int)
    assert cross_validate(noise[:, :6], rule, 2, np.arange(300)).accuracy > 0.95


def test_groups_stay_together():
    """300 copies of 30 images with random labels: whoever splits them from their copies finds all."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    features, labels = np.repeat(rng.normal(size=(30, 50)), 10, axis=0), np.repeat(rng.integers(0, 2, 30), 10)
    assert cross_validate(features, labels, 2, groups).accuracy < 0.75
    assert cross_validate(features, labels, 2, np.arange(300)).accuracy > 0.95
    for kept, held in fold_indices(labels, 5, 0, groups):
        assert not set(groups[kept]) & set(groups[held])


@pytest.mark.parametrize("grouped", [True, False])
def test_the_audit_keeps_the_groups_of_the_data_together(grouped):
    """30 patients of 10 images each, in two splits, with labels at random: whoever divides a patient knows all."""
    rng = np.random.default_rng(0)
    patients, labels = np.repeat(np.arange(30), 10), np.repeat(rng.integers(0, 2, 30), 10)
    features = np.repeat(rng.normal(size=(30, 50)), 10, axis=0) + rng.normal(0, 0.01, (300, 50))
    images = rng.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    images[9] = images[290]  # a copy: the first patient and the last are one group
    order = rng.permutation(300)
    parts = [Split(images[at], labels[at], groups=patients[at] if grouped else None) for at in np.split(order, [200])]
    data = ImageData(*parts, ("no", "yes"), 8)
    found = audit_data(data, features[order])
    assert (found.floor.accuracy < 0.75) == grouped
    together = kept_together(data, found.near_duplicates)
    assert len(np.unique(together)) == (29 if grouped else 299)
    assert len(set(together[np.isin(patients[order], (0, 29))])) == (1 if grouped else 19)


def test_probe_equals_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(200, 5)).astype(np.float32)
    x[:, 4] = 7
    for classes in (2, 3):
        y = rng.integers(0, classes, 200)
        probe = fit_probe(x, y, classes + 1, strength=0.1)
        scaler = StandardScaler().fit(x)
        peer = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(scaler.transform(x), y)
        np.testing.assert_allclose(
            probe.probabilities(x)[:, :classes], peer.predict_proba(scaler.transform(x)), atol=5e-3
        )
        assert (probe.probabilities(x)[:, classes] == 0).all()
        weights = np.linspace(0.2, 3, classes + 1)
        weighted = fit_probe(x, y, classes + 1, strength=0.1, class_weights=weights)
        peer = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000, class_weight=dict(enumerate(weights)))
        expected = peer.fit(scaler.transform(x), y).predict_proba(scaler.transform(x))
        np.testing.assert_allclose(weighted.probabilities(x)[:, :classes], expected, atol=5e-3)
        assert np.abs(weighted.probabilities(x) - probe.probabilities(x)).max() > 0.1
    assert isinstance(probe, Probe)


def test_shortcuts_are_what_tells_the_class():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    properties = {"format": np.eye(2)[labels], "file size": rng.normal(size=200), "aspect": np.ones(200)}
    found = find_shortcuts(properties, labels, np.arange(200))
    assert {one.property for one in found} == {"format", "all of the file"}
    assert found[0].accuracy > 0.95


def test_odd_shapes_need_a_file(planted):
    data, _, _ = planted
    from kbaseline.audit.odd_images import find_odd_images

    places = all_places(data)
    headers = {place: Header(400, 300, "JPEG") for place in places}
    headers[places[0]] = Header(400, 60, "JPEG")
    headers[places[1]] = Header(20, 20, "JPEG")
    found = find_odd_images(data, places, np.zeros(len(places)), headers)
    assert {(odd.kind, odd.place) for odd in found if "odd" in odd.kind} == {
        ("odd aspect", places[0]),
        ("odd size", places[1]),
    }


def test_the_audit_is_plain_json(planted):
    import json

    _, audit, _ = planted
    found = json.loads(json.dumps(audit.to_dict()))
    assert {"near_duplicates", "label_suspects", "odd_images", "shortcuts", "probe", "learning_curve"} <= set(found)
    assert found["probe"]["folds"] == 5
    assert [point["images"] for point in found["learning_curve"]] == sorted(
        p["images"] for p in found["learning_curve"]
    )
    assert found["findings"][0].startswith("Leak: 12 of 52 valid images")


def test_more_images_are_worth_what_the_last_doubling_was(planted):
    """Golden; nothing is said beyond twice as many."""
    from dataclasses import replace

    from kbaseline.audit.floor import CurvePoint

    _, audit, _ = planted
    half, whole = CurvePoint(100, (0.70, 0.72, 0.68)), CurvePoint(200, (0.74, 0.75, 0.73))
    assert whole.gain(half) == (pytest.approx(0.04), pytest.approx(0.01 / 3**0.5))
    said = replace(audit, curve=(half, whole)).more_images
    assert said.endswith(
        "gained 4.0 ± 0.6 points. Twice as many would bring between nothing and about 4.0 points more."
    )
    flat = CurvePoint(200, (0.70, 0.71, 0.69))
    assert "would bring little" in replace(audit, curve=(half, flat)).more_images
