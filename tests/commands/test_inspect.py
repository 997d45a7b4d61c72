"""`kbaseline data`: every count is the folder's own, a leak is loud, the sheet shows what training sees."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kbaseline.cli import main
from kbaseline.commands.contact_sheet import VIEWS, plot_contact_sheet, sheet_images
from kbaseline.commands.inspect import inspect_source
from kbaseline.commands.inspect_view import print_inspection
from kbaseline.config.load import load_config
from kbaseline.config.schema import TransformsConfig
from kbaseline.data import ImageData
from kbaseline.transforms import RandomTransforms

COUNTS = {"cat": {"train": 8, "valid": 2}, "dog": {"train": 2, "valid": 2}}


def photo(path, value, size=(24, 16)):
    """An image whose pixels are its own: noise seeded by `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two classes, 8 and 2 training images and 2 validation images of each, all different."""
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    number = 0
    for name, splits in COUNTS.items():
        for split, count in splits.items():
            for _ in range(count):
                photo(root / split / name / f"{number:02}.png", number)
                number += 1
    return root


def look(root, **changes):
    return inspect_source(load_config({"data": {"source": f"folder:{root}", "size": 16}}, changes))


def shown(found, width=80):
    console = Console(width=width)
    with console.capture() as text:
        print_inspection(found, console)
    return text.get()


def test_counts_sizes_and_formats(photos):
    """Golden: images by class and split, sizes and formats are those that were written."""
    photo(photos / "train" / "cat" / "large.jpg", 99, (100, 60))
    found = look(photos)
    assert found.counts == {**COUNTS, "cat": {"train": 9, "valid": 2}}
    assert found.files == {
        "width": {"min": 24, "median": 24, "max": 100},
        "height": {"min": 16, "median": 16, "max": 60},
        "formats": {"PNG": 14, "JPEG": 1},
    }
    assert found.warnings() == []
    text = shown(found)
    assert "width: 24 to 100 pixels, median 24" in text
    assert "formats: PNG 14, JPEG 1" in text


def test_bad_files_are_named(photos):
    """Golden: a file that cannot be read is counted, named with its reason, and in none of the counts."""
    (photos / "train" / "cat" / "empty.jpg").write_bytes(b"")
    found = look(photos)
    assert found.counts == COUNTS
    assert found.to_dict()["skipped"] == ["train/cat/empty.jpg: the file is empty"]
    assert "skipped: 1\n  train/cat/empty.jpg: the file is empty" in shown(found)


def test_bad_files_are_named_whatever_a_run_would_do(photos):
    """Golden: what `on_bad_image: error` refuses in a run is only named here."""
    (photos / "train" / "cat" / "empty.jpg").write_bytes(b"")
    assert len(look(photos, **{"data.on_bad_image": "error"}).data.skipped) == 1


def test_a_placeholder_among_photos_is_remarked(photos):
    """Golden: a GIF called .jpg, as sites give for a photo that is gone, is named; a .JPG that is one is not."""
    Image.new("P", (24, 16)).save(photos / "train" / "dog" / "gone.jpg", "GIF")
    photo(photos / "train" / "dog" / "fine.JPG", 99)
    found = look(photos)
    assert found.misnamed == found.to_dict()["misnamed"] == {"train/dog/gone.jpg": "GIF"}
    (remark,) = found.notes()
    assert "1 of 16 files differ in format from their suffix: train/dog/gone.jpg (GIF)" in remark


def test_a_leak_is_loud(photos):
    """Golden: an image in train and valid is counted and named, whatever its file is called and how it is packed."""
    source = photos / "train" / "cat" / "03.png"
    Image.open(source).save(photos / "valid" / "cat" / "other.bmp")
    found = look(photos)
    assert found.duplicates.leaks == {"valid": 1}
    assert [[found.name(place) for place in group] for group in found.leaking] == [
        ["train/cat/03.png", "valid/cat/other.bmp"]
    ]
    (warning,) = found.warnings()
    assert warning.startswith("LEAK: 1 of 5 valid images are also in train")
    text = shown(found, width=200)
    assert "train/cat/03.png (train, cat) = valid/cat/other.bmp (valid, cat)" in text


def test_repeats_and_contradictions(photos):
    """Golden: of four equal images in train three repeat the first; where their classes differ, one label is wrong."""
    source = (photos / "train" / "cat" / "00.png").read_bytes()
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (photos / "train" / name).write_bytes(source)
    found = look(photos)
    assert found.repeats == {"train": 3}
    assert found.duplicates.leaks == {}
    assert found.notes()[0] == "Repeats: 3 of 13 train images repeat another, pixel for pixel."
    (warning,) = found.warnings()
    assert warning.startswith("LABELS: identical images have different classes (1 times)")


def test_imbalance_is_remarked_where_nothing_is_done_about_it(photos):
    """Golden: 8 to 2 training images are remarked with the setting that helps; with that setting they are not."""
    (remark,) = look(photos).notes()
    assert remark.startswith("Imbalance: 'cat' has 8 training images, 'dog' 2.")
    assert "data.class_weights=auto" in remark
    assert look(photos, **{"data.class_weights": "auto"}).notes() == []
    for number in range(3):
        photo(photos / "train" / "dog" / f"more{number}.png", 200 + number)
    assert look(photos).notes() == []


def test_the_sheet_shows_what_the_network_sees(photos):
    """Reference: plain pictures are a resize alone; the augmented ones differ, repeat by seed, and are in order."""
    data, transforms = look(photos).data, TransformsConfig()
    labels, plain, augmented = sheet_images(data, transforms, 1)
    assert labels.tolist() == sorted(labels.tolist())
    assert set(labels.tolist()) == {0, 1}
    assert augmented.shape == (8, VIEWS, 16, 16, 3)
    every = np.rint(np.asarray(RandomTransforms(16)(data.train.images, training=False)))
    for label, image in zip(labels, plain, strict=True):
        same = [np.array_equal(image, other) for other in every]
        assert [data.train.labels[i] for i in np.flatnonzero(same)] == [label]
    assert (augmented != plain[:, None]).any(axis=(1, 2, 3, 4)).all()
    np.testing.assert_array_equal(augmented, sheet_images(data, transforms, 1)[2])
    off = TransformsConfig(p_affine=0, p_lighting=0)
    np.testing.assert_array_equal(*np.broadcast_arrays(sheet_images(data, off, 1)[2], plain[:, None]))


@pytest.mark.parametrize(("classes", "shown"), [(2, [0, 1]), (10, [*range(10)]), (23, [*range(0, 23, 2)])])
def test_every_class_is_on_the_sheet(classes, shown):
    """Golden: each class has its share, however rare; of more classes than rows, evenly spaced ones are shown."""
    labels = np.concatenate([np.arange(classes), np.zeros(50, int)])
    data = ImageData.from_arrays((np.zeros((len(labels), 8, 8, 3), np.uint8), labels))
    found, *_ = sheet_images(data, TransformsConfig(), 0)
    assert np.unique(found).tolist() == shown
    assert len(found) <= 12


def test_the_sheet_has_a_picture_for_every_view(photos):
    """Golden: a row an image, each named by its class, with one plain and five augmented pictures."""
    figure = plot_contact_sheet(look(photos).data, TransformsConfig(), 0)
    assert len(figure.axes) == 8 * (1 + VIEWS)
    assert [text.get_text() for text in figure.texts[:8]] == ["cat"] * 6 + ["dog"] * 2


def test_the_command_writes_and_prints(photos):
    """The command prints the table, leaves two whole files, and its JSON is the file's."""
    call = ["data", f"folder:{photos}", "--set", "data.size=16"]
    done = CliRunner().invoke(main, [*call, "--out", "seen"])
    assert done.exit_code == 0, done.output
    assert "contact sheet: seen/samples.png" in done.stdout
    with Image.open("seen/samples.png") as sheet:
        assert sheet.width == 897
    assert sorted(path.name for path in photos.parent.joinpath("seen").iterdir()) == ["data.json", "samples.png"]
    done = CliRunner().invoke(main, [*call, "--json"])
    assert json.loads(done.stdout) == json.loads(photos.parent.joinpath("seen", "data.json").read_text())
    done = CliRunner().invoke(main, [*call, "--out", "seen"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
