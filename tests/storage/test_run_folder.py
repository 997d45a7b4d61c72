"""The run folder: files appear whole, folders are never shared, troubles are one line."""

import csv
import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from kbaseline.errors import InputError, RunError
from kbaseline.storage.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "ignored")


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def test_create_uses_the_folder_asked_for(tmp_path):
    """`out` is made, parents included, and an empty one is taken as it is."""
    (tmp_path / "there").mkdir()
    assert RunFolder.create(tmp_path / "a" / "b", "x").path == tmp_path / "a" / "b"
    assert RunFolder.create(tmp_path / "there", "x").path == tmp_path / "there"
    assert list((tmp_path / "there").iterdir()) == []


def test_create_refuses_a_folder_with_something_in_it(tmp_path):
    """Nothing is overwritten: one line with the folder and the remedy, exit code 2."""
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"exists and is not empty.*--out") as caught:
        RunFolder.create(tmp_path, "x")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_create_refuses_a_file_and_what_lies_below_one(tmp_path):
    """A path that cannot be a folder is an InputError, not a traceback."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=r"is a file.*--out"):
        RunFolder.create(file, "x")
    with pytest.raises(InputError, match=r"cannot be created or written to \(Not a directory\).*--out"):
        RunFolder.create(file / "run", "x")


def test_create_refuses_a_folder_it_cannot_write_to(tmp_path, monkeypatch):
    """The folder is tried before hours of training, not after."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*--out"):
        RunFolder.create(tmp_path / "run", "x")


def test_create_counts_up_under_runs(tmp_path, monkeypatch):
    """Without `out`, each run has a folder of its own under `runs/`, or under what is named instead."""
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create(None, "quick").path.as_posix() for _ in range(3)]
    assert made == ["runs/quick", "runs/quick-2", "runs/quick-3"]
    assert RunFolder.create(None, "quick", tmp_path / "there").path == tmp_path / "there" / "quick"


def test_create_never_gives_two_runs_one_folder(tmp_path, monkeypatch):
    """Runs that start together get different folders."""
    monkeypatch.chdir(tmp_path)
    made, gate = [], threading.Barrier(8)

    def start():
        gate.wait()
        made.append(RunFolder.create(None, "quick").path)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


def test_atomic_shows_the_file_only_when_it_is_whole(folder):
    """Until the block ends the old content stands, and the temporary file has the same suffix beside it.

    Whoever has the old file open goes on reading the old one: it is replaced, not written over.
    """
    folder.write_text("model.keras", "old")
    with (folder.path / "model.keras").open() as reader:
        with folder.atomic("model.keras") as path:
            path.write_text("new")
            assert (folder.path / "model.keras").read_text() == "old"
            assert path.parent == folder.path
            assert path.suffix == ".keras"
            assert path.name.startswith(".model.")
        assert reader.read() == "old"
    assert (folder.path / "model.keras").read_text() == "new"
    assert names(folder) == ["model.keras"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_keeps_the_old_file_when_writing_fails(folder, error):
    """Whatever stops the writing passes through; the half-written file goes and the old one stays."""
    folder.write_text("a.txt", "old")

    def write():
        with folder.atomic("a.txt") as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert (folder.path / "a.txt").read_text() == "old"
    assert names(folder) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, monkeypatch):
    """Golden: below a file, or in a folder without the right to write, also where the name is not given."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x': cannot be created or written to \(.*Not a directory"):
        RunFolder.check(tmp_path / "file" / "x")
    RunFolder.check(tmp_path / "new" / "x")
    RunFolder.check(None, tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda path, rights: Path(path) != tmp_path)
    for out, under in ((tmp_path / "new" / "x", Path("runs")), (None, tmp_path / "evaluations")):
        with pytest.raises(InputError, match=r"cannot be created or written to \(.*Permission denied.*with --out"):
            RunFolder.check(out, under)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line(folder):
    """ENOSPC while writing becomes a RunError that names the file and says what to do."""
    with pytest.raises(RunError, match=r"No space left on device\. Free some space") as caught, folder.atomic("a.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "a.txt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_vanished_folder_is_one_line(folder):
    """A folder removed under a run becomes a RunError."""
    folder.path.rmdir()
    with pytest.raises(RunError, match="moved or removed"):
        folder.write_text("a.txt", "x")


def test_new_files_have_the_usual_permissions(folder):
    """A result can be read by whoever may read a file made in the plain way."""
    (folder.path / "plain").write_text("")
    written = folder.write_text("a.txt", "x")
    assert (folder.path / "plain").stat().st_mode == written.stat().st_mode


def test_json_takes_numpy_and_turns_nan_to_null(folder):
    """JSON is valid and keeps the order of keys and the digits of floats."""
    value = {
        "z": np.float32(0.5),
        "a": 0.1234567890123,
        "nan": [float("nan"), np.float64("nan"), float("inf"), np.array([1.0, np.nan])],
        "many": np.arange(3),
        "path": Path("runs/x"),
        "pair": (1, None, True),
        3: "Zürich",
    }
    text = folder.write_json("r.json", value).read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {
        "z": 0.5,
        "a": 0.1234567890123,
        "nan": [None, None, None, [1.0, None]],
        "many": [0, 1, 2],
        "path": "runs/x",
        "pair": [1, None, True],
        "3": "Zürich",
    }
    assert list(found)[:2] == ["z", "a"]
    assert "Zürich" in text


def test_csv_has_every_key_once(folder):
    """The header is the union of the keys in order of appearance; what a row lacks is empty."""
    rows = [{"stage": "head, frozen", "loss": 0.25}, {"stage": "fine", "loss": None, "extra": np.float32(1.5)}]
    path = folder.write_csv("h.csv", rows)
    assert path.read_bytes() == b'stage,loss,extra\n"head, frozen",0.25,\nfine,,1.5\n'
    with path.open(newline="") as file:
        assert next(csv.DictReader(file))["stage"] == "head, frozen"
    assert folder.write_csv("none.csv", []).read_text() == ""


def test_npz_reads_back(folder):
    """Arrays come back with their dtype, names included, without pickle."""
    path = folder.write_npz("p.npz", labels=np.array([1, 2], np.int64), class_names=["cat", "dog"])
    with np.load(path) as found:
        np.testing.assert_array_equal(found["labels"], np.array([1, 2], np.int64))
        assert found["class_names"].tolist() == ["cat", "dog"]


def test_figure_is_a_png_of_130_dpi_and_emptied(folder):
    """The picture has the promised size, an odd script in it is no warning, and its memory is given back."""
    from PIL import Image

    figure = Figure(figsize=(2, 1))
    figure.add_subplot().set_title("汉")
    with Image.open(folder.write_figure("f.png", figure)) as image:
        assert (image.format, image.size) == ("PNG", (260, 130))
    assert figure.axes == []
    assert names(folder) == ["f.png"]
