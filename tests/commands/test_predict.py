"""Prediction of files: what is found, that it is decoded as in training, and what each format prints."""

import csv
import errno
import io
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small_run import save_doubt

from kbaseline.cli import main
from kbaseline.commands.predict import find_images, predict_files
from kbaseline.data import cache
from kbaseline.errors import DataError, InputError, RunError
from kbaseline.runs.run import load


@pytest.fixture
def run(finished_run) -> Path:
    """A finished run whose network knows cat, dog and emu by red, green and blue."""
    folder = finished_run("run", tta=False)
    image = keras.Input((None, None, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D(name="head_average")(keras.layers.Rescaling(1 / 16)(image))
    keras.Model(image, mean).save(folder / "model.keras")
    return folder


def photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one deep down, and two files that are none."""
    photo(tmp_path / "in" / "a.png", (255, 0, 0))
    photo(tmp_path / "in" / "deep" / "b.jpg", (0, 255, 0), (300, 200))
    photo(tmp_path / "in" / "c [1].png", (0, 0, 255))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG")
    return tmp_path / "in"


def found(arguments: list[Path]) -> list[Path]:
    return find_images([str(argument) for argument in arguments])[0]


def test_files_folders_and_patterns_are_found_once(photos: Path) -> None:
    """Golden: a folder gives its images to any depth, a pattern its matches, a name with brackets itself."""
    everything = {"a.png", "b.jpg", "c [1].png", "torn.png"}
    assert {file.name for file in found([photos])} == everything
    assert [file.name for file in found([photos / "*.png", photos / "a.png"])] == [
        "a.png",
        "c [1].png",
        "torn.png",
    ]
    assert found([photos / "c [1].png"]) == [photos / "c [1].png"]
    for nothing in (photos / "no*.png", photos / "gone", photos / "deep" / "x.png"):
        with pytest.raises(InputError, match="no such file"):
            find_images([str(nothing)])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """Golden: an empty folder is an error that says so; one of nothing usable gives the first reason."""
    with pytest.raises(InputError, match="contains no image"):
        find_images([str(tmp_path)])
    (tmp_path / "a.heic").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(InputError, match=r"none of 2 files can be used; the first is .*a\.heic' \(HEIC is not read"):
        find_images([str(tmp_path)])


def test_a_path_that_is_not_there_gets_one_that_is(photos: Path) -> None:
    """Golden: a slip in a path is named whole; nothing like it, nothing said."""
    with pytest.raises(InputError, match=r"Did you mean '.*/in/deep/b\.jpg'\?"):
        find_images([str(photos / "depe" / "b.jpg")])
    with pytest.raises(InputError) as caught:
        find_images(["/nope"])
    assert "Did you mean" not in str(caught.value)


def test_each_file_is_taken_named_or_meant_to_be_hidden(photos: Path, tmp_path: Path) -> None:
    """Golden: linked files and folders and strange suffixes are taken, what cannot be used is named with its reason,
    hidden files count only where they are named outright."""
    photo(tmp_path / "elsewhere" / "far.png", (9, 9, 9))
    (photos / "folder").symlink_to(tmp_path / "elsewhere")
    (photos / "link.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (photos / "gone.png").symlink_to("/nowhere")
    (photos / "phone.heic").touch()
    (photos / "a.png").rename(photos / "q.png?w=1")
    for name in (".hidden.png", "._b.png", ".ipynb_checkpoints/x.png", "@eaDir/x.png"):
        photo(photos / name, (9, 9, 9))
    (photos / "Thumbs.db").touch()
    reasons = {
        "gone.png": "is a broken link",
        "phone.heic": "HEIC is not read; convert it to JPEG",
        "notes.txt": "is no image",
    }
    deep = {"c [1].png", "q.png?w=1", "torn.png", "link.png", "deep/b.jpg", "folder/far.png"}
    flat = {name for name in deep if "/" not in name}
    for argument, expected in ((photos, deep), (photos / "*", deep), (photos / "*.*", flat)):
        files, left_out = find_images([str(argument)])
        assert {str(file.relative_to(photos)) for file in files} == expected
        assert {file.name: reason for file, reason in left_out.items()} == reasons
    assert found([photos / ".hidden.png"]) == [photos / ".hidden.png"]
    assert found([photos / ".ipynb_checkpoints"]) == [photos / ".ipynb_checkpoints" / "x.png"]
    with pytest.raises(InputError, match=r"gone\.png' \(is a broken link"):
        find_images([str(photos / "gone.png")])


def test_each_file_gets_its_own_answer(run: Path, photos: Path) -> None:
    """Golden: the colours are told apart; what cannot be read is named and shifts no other answer."""
    found = predict_files(load(run), find_images([str(photos)])[0])
    said = {Path(row["image"]).name: row["class"] for row in found.rows(1)}
    assert said == {"a.png": "cat", "b.jpg": "dog", "c [1].png": "emu"}
    assert [file.name for file in found.bad] == ["torn.png"]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_name_that_is_not_utf8_is_text_in_every_answer(run: Path, tmp_path: Path) -> None:
    """Golden: JSON and CSV hold text that any program can read."""
    file = photo(tmp_path / os.fsdecode(b"caf\xe9.png"), (255, 0, 0))
    (row,) = predict_files(load(run), find_images([str(file)])[0]).rows(1)
    assert row["image"].endswith("caf\ufffd.png")
    done = CliRunner().invoke(main, ["predict", str(run), str(file), "--json"])
    assert json.loads(done.stdout.encode())[0]["image"] == row["image"]


def test_nothing_readable_is_an_error(run: Path, photos: Path) -> None:
    """Golden: if no file can be read the first reason is told."""
    with pytest.raises(DataError, match=r"none of 1 can be read; the first is .*torn\.png"):
        predict_files(load(run), [photos / "torn.png"])


def test_a_full_temporary_folder_has_a_remedy_of_its_own(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden: photos are decoded to the system's temporary folder, which no key of the configuration names."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_make", full)
    with pytest.raises(RunError, match=r"No space left on device\); make room, or set TMPDIR to a folder on another"):
        predict_files(load(run), [photos / "a.png"])


def test_the_command_prints_json_and_csv(run: Path, photos: Path) -> None:
    """Golden: standard output is JSON or CSV alone, with the `top` classes; bad files are named on standard error."""
    done = CliRunner().invoke(main, ["predict", str(run), str(photos), "--json", "--top", "2"])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [len(row["top"]) for row in rows] == [2, 2, 2]
    assert rows[0]["class"] == rows[0]["top"][0]["class"]
    assert "torn.png" in done.stderr
    assert "notes.txt: is no image" in done.stderr
    done = CliRunner().invoke(main, ["predict", str(run), str(photos), "--csv"])
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["class_1"] for row in table] == [row["class"] for row in rows]
    assert sum(float(table[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert CliRunner().invoke(main, ["predict", str(run), str(photos)]).stdout.count("dog") >= 1
    assert CliRunner().invoke(main, ["predict", str(run), str(photos), "--csv", "--json"]).exit_code == 2
    gone = CliRunner().invoke(main, ["predict", str(run), "gone.png"])
    assert (gone.exit_code, gone.stderr.count("\n")) == (2, 1)


def test_what_the_classes_do_not_cover_is_said(run: Path, photos: Path) -> None:
    """Golden: with a doubt every format gives the 90 % set and says of what is unlike the training images, "none of
    these, probably"; without one, as in runs of older versions, nothing of it is there."""
    old = json.loads(CliRunner().invoke(main, ["predict", str(run), str(photos), "--json"]).stdout)
    assert set(old[0]) == {"image", "class", "probability", "top"}
    save_doubt(run, 3)  # of features around 0.5, a grey of 8
    photo(photos / "familiar.png", (8, 10, 7))
    rows = json.loads(CliRunner().invoke(main, ["predict", str(run), str(photos), "--json"]).stdout)
    assert [row["class"] for row in rows[:1]] == [row["class"] for row in old[:1]]
    assert {Path(row["image"]).name for row in rows if not row["unfamiliar"]} == {"familiar.png"}
    assert all(row["unfamiliar"] == (row["unfamiliarity"] > 1) for row in rows)
    assert all(row["set"] == [one["class"] for one in row["top"]][: len(row["set"])] for row in rows)
    text = CliRunner().invoke(main, ["predict", str(run), str(photos), "--csv"]).stdout
    assert [(row["set"].split(" | "), row["unfamiliar"]) for row in csv.DictReader(io.StringIO(text))] == [
        (row["set"], str(int(row["unfamiliar"]))) for row in rows
    ]
    shown = CliRunner().invoke(main, ["predict", str(run), str(photos)], env={"COLUMNS": "200"}).stdout
    assert shown.count("none of these, probably") == 3
    (line,) = (line for line in shown.splitlines() if "familiar.png" in line)
    assert ", ".join(next(row["set"] for row in rows if row["image"].endswith("familiar.png"))) in line
