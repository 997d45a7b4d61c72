"""`features`: those of the frozen network, one row for each image, computed once for all splits of a set."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kbaseline import ImageData, features
from kbaseline import feature_extraction as module
from kbaseline.cli import main
from kbaseline.errors import DataError, InputError, ModelError

SIZE = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with six photos each, of which one is in both."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    shutil.copy(folder / "cat/0.png", folder / "dog/0.png")
    return folder


@pytest.fixture(scope="module")
def trained_backbone(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny backbone with statistics in its BatchNorm that are not those of a batch."""
    model = keras.models.load_model(tiny_backbone)
    norm = model.get_layer("first_bn")
    norm.moving_mean.assign(np.linspace(-1, 1, 16))
    norm.moving_variance.assign(np.linspace(0.5, 4, 16))
    path = tmp_path_factory.mktemp("trained") / "trained.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes for which a network was built."""
    sizes, build = [], module.build_extractor
    monkeypatch.setattr(module, "build_extractor", lambda size, *given: sizes.append(size) or build(size, *given))
    return sizes


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), "float32")


def test_they_are_the_frozen_networks(photos: Path, trained_backbone: str, cache: Path, built: list[int]) -> None:
    """Reference: the saved network on the photos, in inference, averaged over all places; by split and by file.

    Invariant: another split, and the files alone, need no network; a photo that is there twice is computed once.
    """
    network = keras.models.load_model(trained_backbone)
    files = sorted(photos.rglob("*.png"))
    expected = dict(zip(map(str, files), np.mean(network(np.stack([pixels(f) for f in files])), (1, 2)), strict=True))
    for seed in (0, 1):
        data = ImageData.from_source(f"folder:{photos}", SIZE, seed=seed, valid_fraction=0.3)
        found = features(data, trained_backbone)
        assert list(found) == ["train", "valid"]
        for name, split in data.splits.items():
            assert type(found[name]) is np.ndarray
            names = [str(photos / split.name(row)) for row in range(len(split))]
            np.testing.assert_allclose(found[name], [expected[name] for name in names], rtol=1e-4, atol=1e-5)
    reversed_files = [str(file) for file in files[::-1]]
    np.testing.assert_allclose(
        features(reversed_files, trained_backbone, size=SIZE), [*expected.values()][::-1], rtol=1e-4, atol=1e-5
    )
    assert built == [SIZE]
    (file,) = (cache / "features").iterdir()
    assert np.load(file).shape == (11, 32)


def test_arrays_are_resized_as_for_prediction(
    rng: np.random.Generator, trained_backbone: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: of images of one colour, which no resize changes; written in chunks that are smaller than a split."""
    monkeypatch.setattr(module, "CHUNK", 3)
    colours = rng.integers(0, 256, (12, 1, 1, 3), dtype=np.uint8)
    images = np.tile(colours, (1, 9, 7, 1))
    data = ImageData.from_arrays((images[:8], np.arange(8) % 2), (images[8:], np.arange(4) % 2), size=SIZE)
    found = features(data, trained_backbone, batch_size=2)
    network = keras.models.load_model(trained_backbone)
    expected = np.mean(network(np.tile(colours, (1, SIZE, SIZE, 1)).astype("float32")), (1, 2))
    np.testing.assert_allclose([*found["train"], *found["valid"]], expected, rtol=1e-4, atol=1e-4)


def test_what_they_are_kept_by(
    photos: Path, trained_backbone: str, cache: Path, built: list[int], tmp_path: Path
) -> None:
    """Invariant: other images, another size or other weights are computed anew, and so is a damaged file.

    `kbaseline cache` counts and deletes them.
    """
    files, network = sorted(photos.rglob("*.png")), tmp_path / "own.keras"
    shutil.copy(trained_backbone, network)
    known = features(files, str(network), size=SIZE)
    features(files, str(network), size=SIZE)
    assert len(built) == 1
    (kept,) = (cache / "features").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    np.testing.assert_array_equal(features(files, str(network), size=SIZE), known)
    assert len(built) == 2
    features(files[1:4], str(network), size=SIZE)
    features(files, str(network), size=SIZE // 2)
    model = keras.models.load_model(network)
    model.get_layer("second_conv").bias.assign(np.ones(32))
    model.save(network)
    assert (features(files, str(network), size=SIZE) != known).any()
    assert len(built) == 5
    entries = []
    for given in ((), ("--clear",)):
        shown = CliRunner().invoke(main, ["cache", "--json", *given]).stdout
        entries.append(json.loads(shown)["features"]["entries"])
    assert entries == [4, 0]
    assert not list((cache / "features").iterdir())


@pytest.mark.parametrize(
    ("data", "settings", "error", "said"),
    [
        ("photos", {}, InputError, "features of 'photos': give a list of image files"),
        ([], {}, InputError, "there are no files"),
        (["no.png"], {}, DataError, r"image '.*no\.png': "),
        ([__file__], {}, DataError, r"image '.*\.py': "),
        (None, {"weights": "none"}, ModelError, "weights 'none': features of random weights"),
        (None, {"backbone": "resnet5"}, ModelError, "backbone 'resnet5': no such name"),
        (None, {"batch_size": 0}, InputError, "batch_size: must be at least 1, or None .*; got 0"),
    ],
)
def test_what_has_no_features(
    data: object, settings: dict, error: type, said: str, photos: Path, trained_backbone: str, cache: Path
) -> None:
    """Golden: an error of one line, and nothing is left in the cache."""
    files = [photos / "cat/0.png"] if data is None else data
    with pytest.raises(error, match=said) as caught:
        features(files, **{"backbone": trained_backbone, "size": SIZE, **settings})
    assert "\n" not in str(caught.value)
    assert not (cache / "features").exists()
