"""A source string reaches its reader, or says what it should have been; the digits are the real ones."""

import os

import numpy as np
import pytest
from PIL import Image

from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import ImageData, load_source
from kbaseline.data.sources.registry import absolute_source, full_source, source_status
from kbaseline.errors import DataError


def load(source, **options):
    return load_source(DataConfig(source=source, **options), 42)


def test_digits_are_scikit_learns():
    """Golden values: 1,797 images of 8x8, a fifth held out, 0-16 scaled to 0-255 in all three channels."""
    data = load("digits", size=32)
    assert (len(data.train), len(data.valid), data.test) == (1438, 359, None)
    assert data.train.images.shape[1:] == (8, 8, 3)
    assert (data.size, data.class_names) == (32, tuple("0123456789"))
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert (np.ptp(data.train.images, axis=-1) == 0).all()
    assert set(np.unique(data.train.images)) <= {round(value * 255 / 16) for value in range(17)}
    shares = np.bincount(data.valid.labels) / np.bincount(data.train.labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_limit_and_valid_fraction_reach_the_digits():
    """Subset and hold-out follow the configuration."""
    data = load("digits", limit=50, limit_valid=20, valid_fraction=0.5)
    assert (len(data.train), len(data.valid)) == (50, 20)
    assert np.bincount(data.train.labels).tolist() == [5] * 10


def test_from_source_takes_the_same_options():
    """The API's one-liner gives what the configuration gives."""
    data = ImageData.from_source("digits", size=16, limit=30)
    assert (data.size, len(data.train), data.source) == (16, 30, "digits")


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("tdfs:cifar10", "Did you mean 'tfds:cifar10'?"),
        ("cvs:photos.csv", "Did you mean 'csv:photos.csv'?"),
        ("foldr:photos", "Did you mean 'folder:photos'?"),
        ("cifar10", "Did you mean 'tfds:cifar10'?"),
        ("folder", "Did you mean 'folder:PATH'?"),
        ("digits:8", "Did you mean 'digits'?"),
        ("", "or digits."),
        ("https://example.org/a.zip", "or digits."),
    ],
)
def test_unknown_source(source, suggestion):
    """The forms are listed and a likely one is suggested."""
    with pytest.raises(DataError, match="must be tfds:NAME, folder:PATH, csv:PATH or digits") as caught:
        load(source)
    assert str(caught.value).endswith(suggestion)
    assert repr(source) in str(caught.value)


def test_status_downloads_nothing(tmp_path):
    """Golden: whether each kind of source is on this machine, and where, or what to do."""
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "t.csv").touch()

    def status(source):
        return source_status(DataConfig(source=source, data_dir=tmp_path))

    assert status("digits") == (True, "digits comes with scikit-learn")
    assert status(f"folder:{tmp_path}") == (True, str(tmp_path))
    assert status(f"folder:{tmp_path}/no") == (False, f"no folder {tmp_path}/no")
    assert status(f"csv:{tmp_path}/t.csv") == (True, f"{tmp_path}/t.csv")
    assert status(f"csv:{tmp_path}") == (False, f"no file {tmp_path}")
    assert status("tfds:cifar10") == (False, f"tfds:cifar10 is not in {tmp_path}/cifar10; `kbaseline fit` downloads it")
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").touch()
    assert status("tfds:cifar10:3.0.2") == (True, f"tfds:cifar10:3.0.2 in {tmp_path}/cifar10/3.0.2")
    assert status("folder") == (False, "no source 'folder'; give tfds:NAME, folder:PATH, csv:PATH or digits")


def test_a_bare_path_needs_no_prefix(tmp_path, monkeypatch):
    """A folder or a table is recognised without its prefix; a source's own name stays that source."""
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = ["path,label"]
    for number in range(8):
        photo = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number,) * 3).save(photo)
        lines.append(f"{photo.relative_to(tmp_path)},{'ab'[number % 2]}")
    (tmp_path / "labels.CSV").write_text("\n".join(lines))
    (tmp_path / "digits").mkdir()
    for source in ("photos", "photos/", str(tmp_path / "photos"), "labels.CSV", "./labels.CSV"):
        data = load(source, size=8)
        assert (data.class_names, len(data.train) + len(data.valid), data.source) == (("a", "b"), 8, source)
        assert source_status(DataConfig(source=source))[0]
    assert full_source("digits") == "digits"
    assert len(load("digits", size=8).class_names) == 10
    assert full_source("photos") == "folder:photos"
    with pytest.raises(DataError, match=r"write csv:labels\.CSV"):
        load("folder:labels.CSV")


def test_a_source_is_recorded_so_that_it_means_the_same_elsewhere(tmp_path, monkeypatch):
    """Golden: paths become absolute and get their prefix; all else stays."""
    (tmp_path / "here" / "photos").mkdir(parents=True)
    (tmp_path / "t.csv").touch()
    (tmp_path / "link").symlink_to(tmp_path / "here" / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    photos, table = f"folder:{tmp_path / 'here' / 'photos'}", f"csv:{tmp_path / 't.csv'}"
    for source in ("photos", "photos/", "folder:photos", "./photos", "folder:../link", "~/here/photos", photos):
        assert absolute_source(source) == photos
    for source in ("../t.csv", "csv:../t.csv", "~/t.csv", table):
        assert absolute_source(source) == table
    for source in ("digits", "tfds:mnist", "nowhere", "folder:", "csv: ", "", "folder:a\0"):
        assert absolute_source(source) == source


@pytest.mark.parametrize("source", ["photso/inner", "folder:photso/inner", "folder:photos/iner"])
def test_a_path_that_is_not_there_gets_one_that_is(tmp_path, monkeypatch, source):
    """The whole path that exists is suggested, wherever in it the slip is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    (tmp_path / "photos" / "inner.txt").touch()
    with pytest.raises(DataError, match=r"Did you mean 'photos/inner'\?$"):
        load(source)


@pytest.mark.parametrize(
    "source", ["folder:/nope", "csv:/nope", "/nope", "folder:/nope/photos", "csv:phots", "phots.csv"]
)
def test_nothing_is_suggested_that_is_not_alike(tmp_path, monkeypatch, source):
    """A path like no other gets no suggestion, nor a folder where a table is wanted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError) as caught:
        load(source)
    assert "Did you mean" not in str(caught.value)


def test_a_path_that_is_no_text_is_refused(tmp_path):
    """A folder whose own name is not UTF-8 is refused at once: a run could not write it down."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(DataError, match=r"caf\ufffd': is not UTF-8; rename"):
        load(f"folder:{folder}")
