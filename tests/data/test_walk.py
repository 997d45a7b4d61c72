"""Which files below a folder are images, what is left out and why, and paths that are spelt almost right."""

import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from kbaseline.data.decode import decode
from kbaseline.data.pictures import File
from kbaseline.data.walk import NO_IMAGE, as_image, nearest_path, not_used, readable_suffixes, walk


def save(path: Path, kind: str = "PNG", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), 9).save(path, kind)
    return path


READABLE = {
    "a.jpe": "JPEG",
    "a.jfif": "JPEG",
    "a.JPeG": "JPEG",
    "a.mpo": "MPO",
    "a.apng": "PNG",
    "a.jp2": "JPEG2000",
    "a.j2k": "JPEG2000",
    "a.dib": "DIB",
    "a.tiff": "TIFF",
    "a.ppm": "PPM",
    "noext": "PNG",
    "q.jpg?w=640": "JPEG",
    "pic.jpg_large": "JPEG",
    "x.jpg.part": "JPEG",
    "trailing.webp ": "WEBP",
    "dot.png.": "PNG",
    "wrong.txt": "PNG",
    "wrong.heic": "JPEG",
    "wrong.cr2": "JPEG",
    "wrong.svg": "GIF",
}


@pytest.mark.parametrize("name", READABLE)
def test_an_image_is_found_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    """Golden: every suffix that Pillow knows, none, or a strange one; each is read, too."""
    save(tmp_path / name, READABLE[name])
    found = walk(tmp_path)
    assert [file.path for file in found.images] == [name]
    assert decode(tmp_path / name, 8, 8, "squish").shape == (8, 8, 3)


@pytest.mark.parametrize(("suffix", "mode"), [(".pgm", "L"), (".pbm", "1")])
def test_grey_bitmaps_are_found(tmp_path: Path, suffix: str, mode: str) -> None:
    """Golden: Netpbm's formats of one channel."""
    save(tmp_path / f"a{suffix}", "PPM", mode)
    assert len(walk(tmp_path).images) == 1


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    """Golden: telephones, cameras, drawings, links to nowhere, pipes; other files are counted."""
    for name in ("a.HEIC", "b.svg", "c.tga", "d.psd", "IMG_1"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("notes.txt", "labels.csv", "film.mp4", "x.xml"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypisom")
    save(tmp_path / "e.nef", "TIFF")  # The first picture in a raw file is its thumbnail.
    (tmp_path / "gone.png").symlink_to("/nowhere/x.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = walk(tmp_path)
    assert found.images == []
    assert dict(found.left_out) == {
        "a.HEIC": "HEIC is not read; convert it to JPEG",
        "IMG_1": "HEIC is not read; convert it to JPEG",
        "b.svg": "SVG is not read; convert it to PNG",
        "c.tga": "TGA is not read; convert it to PNG",
        "d.psd": "PSD is not read; convert it to PNG",
        "e.nef": "a camera's raw format is not read; convert it to JPEG",
        "gone.png": "is a broken link",
        "self.png": "Too many levels of symbolic links",
        "pipe.png": "is no ordinary file",
    }
    assert found.others == ["film.mp4", "labels.csv", "notes.txt", "x.xml"]
    lines = not_used(found)
    assert len(lines) == 10
    assert lines[-1] == "no images, not used: film.mp4, labels.csv, notes.txt and 1 more"


RUBBISH = (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", ".hidden.png", "~$a.png", "Icon\r")
RUBBISH_FOLDERS = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", ".git", "#recycle", "$RECYCLE.BIN")


def test_rubbish_is_passed_over_quietly(tmp_path: Path) -> None:
    """Golden: hidden files and what systems leave are in no list, even where they hold images."""
    for name in RUBBISH:
        save(tmp_path / name)
    for name in RUBBISH_FOLDERS:
        save(tmp_path / name / "a.png")
    save(tmp_path / "in" / "a.png")
    found = walk(tmp_path)
    assert [file.path for file in found.images] == ["in/a.png"]
    assert (found.left_out, found.others) == ([], [])


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """Golden: a linked file and a linked folder count; a folder met twice counts once."""
    save(tmp_path / "elsewhere" / "far.png")
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    found = walk(tmp_path / "in")
    assert [file.path for file in found.images] == ["a.png", "folder/far.png", "link.png"]


def test_paths_count_from_the_root(tmp_path: Path) -> None:
    """Golden: below one folder, not deep, or of one file; sizes and times are those of the files."""
    file = save(tmp_path / "in" / "deep" / "a.png")
    save(tmp_path / "in" / "b.png")
    whole, flat = walk(tmp_path, "in"), walk(tmp_path, "in", deep=False)
    status = file.stat()
    assert whole.images[-1] == File("in/deep/a.png", status.st_size, status.st_ctime_ns)
    assert [image.path for image in flat.images] == ["in/b.png"]
    assert walk(tmp_path, "in/deep/a.png").images == whole.images[-1:]


def test_one_file(tmp_path: Path) -> None:
    """Golden: what `as_image` says of a file, a folder and nothing at all."""
    assert isinstance(as_image(save(tmp_path / "a.png"), "a"), File)
    assert as_image(tmp_path, "a") == "is a folder"
    assert as_image(tmp_path / "no.png", "a") == "no such file"
    (tmp_path / "t").write_text("text")
    assert as_image(tmp_path / "t", "a") == NO_IMAGE
    # An image by its name alone: decoding names what is wrong with it.
    (tmp_path / "t.png").write_bytes(struct.pack(">I", 7))
    assert isinstance(as_image(tmp_path / "t.png", "a"), File)


def test_suffixes_are_pillows() -> None:
    """Invariant: what Pillow may open by its name is known, and what it needs another program for is not."""
    assert {".jpe", ".jfif", ".mpo", ".pgm", ".ppm", ".jp2", ".dib", ".apng", ".tif", ".webp"} <= readable_suffixes()
    assert not {".eps", ".pdf", ".psd", ".h5", ".mpg"} & readable_suffixes()


def test_the_nearest_path(tmp_path: Path) -> None:
    """Golden: one slip in any part is mended, case included; otherwise nothing is said."""
    save(tmp_path / "Photos" / "cats" / "a.png")
    right = f" Did you mean {str(tmp_path / 'Photos' / 'cats')!r}?"
    for wrong in ("Photos/cat", "Phtos/cats", "photos/cats", "photos/CATS"):
        assert nearest_path(tmp_path / wrong, Path.is_dir) == right
    assert nearest_path(tmp_path / "Photos/cat", Path.is_file) == ""
    assert nearest_path(tmp_path / "zebra", Path.exists) == ""
    assert nearest_path(Path("/nope"), Path.exists) == ""
    assert nearest_path(Path("a\0b"), Path.exists) == ""
