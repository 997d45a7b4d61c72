"""`kbaseline cache`: what is kept is counted, the longest unused goes first, and nothing that is not kbaseline's."""

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kbaseline.cli import main
from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import load_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder whose entries of 1,000 bytes were used in the order of their numbers, among strange files."""
    root = tmp_path / "cache"
    monkeypatch.setenv("KBASELINE_CACHE", str(root))
    for number, name in enumerate(("images/1", "labels/2", "jax/3", "images/4")):
        kind, digit = name.split("/")
        file = {
            "images": f"images/{digit * 32}/images.npy",
            "labels": f"labels/{digit * 32}.npy",
            "jax": f"jax/jit_step-{digit}-cache",
        }[kind]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(bytes(1000))
        for path in (root / file, (root / file).parent) if kind == "images" else (root / file,):
            os.utime(path, (1000 + number, 1000 + number))
    for strange in ("images/holiday/photo.jpg", "labels/mine.npy", "jax/notes.txt", "photo.jpg"):
        (root / strange).parent.mkdir(parents=True, exist_ok=True)
        (root / strange).write_bytes(bytes(9))
    return root


def run(*arguments):
    return CliRunner().invoke(main, ["cache", *arguments])


def sizes(*arguments):
    """Entries of each kind after the command."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert all(kind["bytes"] == 1000 * kind["entries"] for name, kind in found.items() if name != "folder")
    return [found[kind]["entries"] for kind in ("decoded images", "labels", "compiled programs")]


def strange(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size == 9)


def test_it_shows_what_is_kept(folder):
    """Golden: entries and bytes by kind, and what is not kbaseline's is not counted."""
    assert sizes() == [2, 1, 1]
    lines = run().stdout.splitlines()
    assert [line.split()[-3:] for line in lines if line.startswith("decoded")] == [["2", "2.0", "kB"]]


@pytest.mark.parametrize(
    ("bound", "left"),
    [("4000", [2, 1, 1]), ("3.5kB", [1, 1, 1]), ("2 KB", [1, 0, 1]), ("1999", [1, 0, 0]), ("0", [0, 0, 0])],
)
def test_trim_deletes_what_was_used_longest_ago(folder, bound, left):
    """Golden: until the rest takes no more than the bound, and never what is not kbaseline's."""
    assert sizes("--trim", bound) == left
    assert len(strange(folder)) == 4


def test_trim_alone_has_a_bound_of_its_own(folder):
    """Golden: 20 GB, far above four kilobytes."""
    assert sizes("--trim") == [2, 1, 1]


def test_clear_deletes_all(folder):
    """Golden: all of kbaseline's, and no more."""
    assert sizes("--clear") == [0, 0, 0]
    assert len(strange(folder)) == 4


def test_opening_a_copy_makes_it_the_last_to_go(tmp_path, monkeypatch):
    """A copy that is in use every day outlives one that was made later and used once."""
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((8, 8, 3), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    images = tmp_path / "cache" / "images"

    def copies(size):
        load_source(DataConfig(source=f"folder:{tmp_path / 'photos'}", size=size), 0)
        return {path.name for path in images.iterdir()}

    old = copies(8)
    both = copies(9)
    for name, when in ((*old, 1000), (*(both - old), 2000)):
        for path in (*(images / name).iterdir(), images / name):
            os.utime(path, (when, when))
    copies(8)
    assert run("--trim", "3kB").exit_code == 0
    assert {path.name for path in images.iterdir()} == old


@pytest.mark.parametrize("arguments", [("--trim", "much"), ("--trim", "1GB", "--clear"), ("--trim", "-3")])
def test_a_wrong_bound_deletes_nothing(folder, arguments):
    """One line and exit code 2."""
    assert run(*arguments).exit_code == 2
    assert sizes() == [2, 1, 1]


def test_an_absent_cache_is_empty(tmp_path, monkeypatch):
    """Golden: nothing is made by looking."""
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "none"))
    assert sizes("--clear") == [0, 0, 0]
    assert not (tmp_path / "none").exists()
