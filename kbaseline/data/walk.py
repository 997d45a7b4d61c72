"""Finds the image files below a folder, and says what else lies there and why it is not used."""

import difflib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from kbaseline.data.decode import FORMATS, SUFFIXES, BadImageError, kind, probe, quiet
from kbaseline.data.pictures import File, shown
from kbaseline.errors import one_line

NO_IMAGE = "is no image"
"""Why a file is left out that does not look like one."""

NO_FILE = "no such file"
"""Why a path that a table names is left out where nothing is there."""

_RUBBISH = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"),
        *("@eadir", "#recycle", "@recycle", "@__thumb", "$recycle.bin", "system volume information"),
        *("lost+found", "__pycache__"),
    }
)
"""Names, in lower case, of what systems leave in folders."""

_RAW = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "mrw", "nef"),
        *("nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
_OTHER_FORMATS = (
    *("ai", "cur", "dcm", "dds", "emf", "eps", "exr", "hdr", "icns", "ico", "jxl", "jxr", "pcx", "psb"),
    *("psd", "qoi", "ras", "sgi", "svg", "svgz", "tga", "wmf", "xbm", "xcf", "xpm"),
)
_NOT_READ = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC is not read; convert it to JPEG"),
    **dict.fromkeys(_RAW, "a camera's raw format is not read; convert it to JPEG"),
    **{f".{name}": f"{name.upper()} is not read; convert it to PNG" for name in _OTHER_FORMATS},
}
"""Ending of an image's name that cannot be read -> why it is left out."""


@dataclass(frozen=True)
class Found:
    """What lies below a folder, each part sorted by path. Hidden files and what systems leave there is in none.

    Attributes:
        images: the image files.
        left_out: path and reason, of images that cannot be used and of folders that cannot be listed.
        others: paths of files that are no images.
    """

    images: list[File] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def walk(root: Path, below: str = "", *, deep: bool = True) -> Found:
    """Finds the image files of a folder.

    Links are followed, but not to a folder around it; a folder met twice, as in a loop of links, counts once.

    Args:
        root: paths count from here.
        below: the folder, or one file, as a path from `root`.
        deep: with all folders in it, to any depth.
    """
    found, seen = Found(), set()
    with quiet():
        waiting = [below] if (root / below).is_dir() else []
        around = _around(root / below) if waiting else set()
        if not waiting:
            _sort_in(found, root / below, below)
        while waiting:
            here = waiting.pop()
            try:
                status = (root / here).stat()
                if _identity(status) in around:
                    found.left_out.append((here, "a link to a folder around it is not followed"))
                    continue
                entries = scan(root / here) if _identity(status) not in seen else []
            except OSError as error:
                found.left_out.append((here, f"cannot be listed ({one_line(error)}); check its rights"))
                continue
            seen.add(_identity(status))
            for entry in entries:
                path = os.path.join(here, entry.name)  # noqa: PTH118 - a Path for each of a million files takes seconds
                if not is_folder(entry):
                    _sort_in(found, root / path, path)
                elif deep:
                    waiting.append(path)
    found.images.sort(key=lambda file: file.path)
    found.left_out.sort()
    found.others.sort()
    return found


def _around(folder: Path) -> set[tuple[int, int]]:
    """The folders that a folder is in."""
    found = set()
    for parent in folder.resolve().parents:
        with suppress(OSError):
            found.add(_identity(parent.stat()))
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder shows, sorted by name: no hidden files, and nothing that a system left there. Raises `OSError`."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_rubbish(entry.name)), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_rubbish(name: str) -> bool:
    """Whether a file or folder is hidden, or was left by a system or a program: `.DS_Store`, `Thumbs.db`, `@eaDir`."""
    return name.startswith((".", "~$")) or name.lower() in _RUBBISH


def as_image(file: Path, path: str) -> File | str:
    """A file that is an image, or why it cannot be used; `NO_IMAGE` where it does not look like one.

    Where its name does not tell, its header does.

    Args:
        file: where it is.
        path: what to call it.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        return "is a broken link" if file.is_symlink() else NO_FILE
    except (OSError, ValueError) as error:
        return one_line(error)
    # Reading a pipe or a device would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        return "is a folder" if stat.S_ISDIR(status.st_mode) else "is no ordinary file"
    reason = _refusal(file)
    return reason or File(path, status.st_size, status.st_ctime_ns)


@cache
def readable_suffixes() -> frozenset[str]:
    """Endings, in lower case, of the names of images that can be read."""
    known = Image.registered_extensions()
    # A telephone writes several JPEGs into one file.
    return SUFFIXES | {suffix for suffix, name in known.items() if name in (*FORMATS, "MPO")}


def nearest_path(wrong: Path, fits: Callable[[Path], bool]) -> str:
    """` Did you mean 'x'?` for a path that exists, fits and is spelt much like `wrong`, else an empty string."""
    right = Path(wrong.anchor)
    try:
        for part in wrong.parts[len(right.parts) :]:
            if not (right / part).exists():
                names = {entry.name.lower(): entry.name for entry in right.iterdir()}
                close = difflib.get_close_matches(part.lower(), names, n=1, cutoff=0.75)
                if not close:
                    return ""
                part = names[close[0]]
            right /= part
        return f" Did you mean {str(right)!r}?" if fits(right) else ""
    except (OSError, ValueError):
        return ""


def not_used(found: Found) -> tuple[str, ...]:
    """A line for each image that was left out, and one for all files that are no images."""
    lines = [f"{shown(path)}: {reason}" for path, reason in found.left_out]
    if count := len(found.others):
        names = ", ".join(shown(path) for path in found.others[:3])
        more = f" and {count - 3:,} more" if count > 3 else ""
        lines.append(f"no images, not used: {names}{more}")
    return tuple(lines)


def _sort_in(found: Found, file: Path, path: str) -> None:
    image = as_image(file, path)
    if isinstance(image, File):
        found.images.append(image)
    elif image == NO_IMAGE:
        found.others.append(path)
    else:
        found.left_out.append((path, image))


def _refusal(file: Path) -> str:
    """Why a file cannot be used; an empty string where it can, or where decoding will tell."""
    suffix = file.suffix.lower()
    if suffix in readable_suffixes():
        return ""
    try:
        held = probe(file).format
    except BadImageError:
        return _NOT_READ.get(suffix) or (_NOT_READ[".heic"] if _is_heic(file) else NO_IMAGE)
    # The first picture in a raw file is a thumbnail.
    return _NOT_READ[suffix] if suffix in _RAW and held == "TIFF" else ""


def _is_heic(file: Path) -> bool:
    """Whether a file holds HEIC, whatever its name."""
    try:
        return kind(file) == "HEIC"
    except OSError:
        return False
