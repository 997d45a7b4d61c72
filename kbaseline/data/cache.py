"""Decodes images once, into memory-mapped files that later runs only open."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.data import decode
from kbaseline.data.fit import Resize
from kbaseline.data.pictures import Pictures, pixel_digest
from kbaseline.data.rows import rows
from kbaseline.errors import DataError, RunError, one_line
from kbaseline.storage.cache_folder import delete_leftovers
from kbaseline.storage.npz import read_array

# Rows decoded before they are appended to the file: the RAM a preparation takes, whatever its size.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Decoded:
    """One split, decoded.

    Attributes:
        images: uint8 0-255, `(number, height, width, 3)`, rows of a read-only memory map; see `rows`.
        digests: uint64 `(number,)`, `pixel_digest` of each.
        bad: position among the images asked for -> why it could not be read; these are not in `images`.
    """

    images: np.ndarray
    digests: np.ndarray
    bad: dict[int, str]


@dataclass(frozen=True)
class Target:
    """What the images are fitted to.

    Attributes:
        size: side of the square the network sees, in pixels.
        resize: how an image that is not square becomes square.
        strict: an image that cannot be read is an error.
        image_size: height and width that a run has recorded; None to choose them, see `decoded`.
    """

    size: int
    resize: Resize
    strict: bool
    image_size: tuple[int, int] | None = None


def decoded(
    pictures: Pictures,
    chosen: Mapping[str, np.ndarray],
    target: Target,
    cache_dir: Path,
    console: Console | None = None,
) -> dict[str, Decoded]:
    """Opens the decoded copy of the chosen images, making it first where there is none.

    The copy is a folder that appears complete, by rename. Where two processes make the same copy, the first to finish
    wins and both use its content. It belongs to the images as one set: another split of them decodes nothing.

    If all images have the same height and width, neither above twice `size`, they keep their own pixels (`crop` keeps
    only the centre square), so that the model does resize and augmentation in one resample. Otherwise all are resized
    to `(size, size)`.

    Args:
        pictures: all images of the source.
        chosen: name of split -> int `(number,)`, which images it holds, in order.
        target: what the images are fitted to.
        cache_dir: kbaseline's cache folder.
        console: where to show progress; None shows nothing.

    Raises:
        DataError: an image cannot be read and `target.strict` is set, or none of a split can be read.
        RunError: the cache folder cannot be written.
    """
    numbers = np.unique(np.concatenate(list(chosen.values())))
    folder = cache_dir / "images" / _key(pictures, numbers, target)
    found = _open(folder, len(numbers))
    if found is None:
        with _whole_folder(folder, lambda: _open(folder, len(numbers)) is not None) as unfinished:
            bad = _make(pictures, numbers, target, unfinished, console)
            if len(bad) == len(numbers):
                name, indices = next(iter(chosen.items()))
                raise _none_readable(pictures, name, indices, bad[int(np.searchsorted(numbers, indices[0]))])
        found = _open(folder, len(numbers))
    if found is None:
        raise RunError(f"cache {str(folder)!r}: cannot be read back; delete it, or set data.cache_dir to another disk.")
    splits = {name: _part(found, np.searchsorted(numbers, indices)) for name, indices in chosen.items()}
    for name, split in splits.items():
        for position, reason in split.bad.items():
            if target.strict:
                raise bad_image(pictures.name(int(chosen[name][position])), reason)
            if len(split.bad) == len(chosen[name]):
                raise _none_readable(pictures, name, chosen[name], reason)
    return splits


def _part(whole: Decoded, positions: np.ndarray) -> Decoded:
    """The images at these positions among those asked for, in this order."""
    bad = {at: whole.bad[position] for at, position in enumerate(positions.tolist()) if position in whole.bad}
    kept = np.delete(positions, list(bad))
    numbers = kept - np.searchsorted(np.array(sorted(whole.bad), kept.dtype), kept)
    return Decoded(rows(whole.images, numbers), whole.digests[numbers], bad)


def _none_readable(pictures: Pictures, name: str, indices: np.ndarray, reason: str) -> DataError:
    first = pictures.name(int(indices[0]))
    return DataError(f"{name} images: none of {len(indices):,} can be read; the first is {first!r} ({reason}).")


def bad_image(name: str, reason: str) -> DataError:
    """The error for an image that cannot be read."""
    return DataError(
        f"image {name!r}: cannot be read ({reason}); repair or remove it, or set data.on_bad_image to 'skip'."
    )


def _key(pictures: Pictures, numbers: np.ndarray, target: Target) -> str:
    aim = f"{decode.VERSION} {target.size} {target.resize} {target.image_size}"
    digest = hashlib.blake2b(aim.encode(), digest_size=16)
    for number in numbers.tolist():
        digest.update(f"\n{pictures.fingerprint(number)}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _open(folder: Path, count: int) -> Decoded | None:
    """The finished copy of so many images, or None where there is none or it is damaged."""
    try:
        bad = json.loads((folder / "bad.json").read_text(encoding="utf-8"))
        images = read_array(folder / "images.npy", mapped=True)
        digests = read_array(folder / "digests.npy")
        found = Decoded(images, digests, {int(position): reason for position, reason in bad.items()})
    except (OSError, ValueError, AttributeError):
        return None
    if not len(images) == len(digests) == count - len(found.bad):
        return None
    # When it was last of use, for `kbaseline cache --trim`.
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


@contextmanager
def _whole_folder(folder: Path, finished: Callable[[], bool]) -> Iterator[Path]:
    """Gives a folder with a unique temporary name, and renames it to `folder` if the block succeeds.

    A folder that has the final name already stays if `finished` says that it is good.
    """
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        delete_leftovers(folder.parent)
        # Not `mkdtemp`, whose folders are its user's alone: others may share the cache.
        unfinished = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
        unfinished.mkdir()
        yield unfinished
        _put_in_place(unfinished, folder, finished)
    except OSError as error:
        where = str(folder.parent)
        raise RunError(
            f"cache {where!r}: cannot be written ({one_line(error)}); make room, or set data.cache_dir."
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, folder: Path, finished: Callable[[], bool]) -> None:
    try:
        unfinished.replace(folder)
    except OSError:
        if finished():
            return  # Another process was faster; it may be reading its copy, which holds the same images.
        if not folder.is_dir():
            raise
        spoilt = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            folder.replace(spoilt)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(spoilt, ignore_errors=True)


def _make(
    pictures: Pictures, numbers: np.ndarray, target: Target, folder: Path, console: Console | None
) -> dict[int, str]:
    """Decodes the images into `folder`; gives the position of each that cannot be read, and why."""
    pool = ThreadPoolExecutor(_threads())
    try:
        with decode.quiet(), Bar(console, "Decoding", len(numbers)) as bar:
            height, width = _common_size(pictures, numbers, target, pool)
            bad = _write(_Job(pictures, numbers, height, width, target), folder, pool, bar)
    finally:
        pool.shutdown(cancel_futures=True)
    (folder / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
    return bad


def _threads() -> int:
    """One for each core this process may use."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8)


def _common_size(pictures: Pictures, indices: np.ndarray, target: Target, pool: ThreadPoolExecutor) -> tuple[int, int]:
    """Height and width to decode to; see `_fitted`."""

    def size(index: int) -> tuple[int, int] | None:
        try:
            return decode.probe(pictures.open(index))[:2]
        except decode.BadImageError:
            return None

    if target.image_size is not None:
        return target.image_size
    seen: set[tuple[int, int]] = set()
    # Photos differ within the first few, so most are never probed.
    for start in range(0, len(indices), 256):
        seen.update(shape for shape in pool.map(size, indices[start : start + 256].tolist()) if shape)
        if len(seen) > 1 or any(max(shape) > 2 * target.size for shape in seen):
            break
    return _fitted(seen, target)


def _fitted(sizes: set[tuple[int, int]], target: Target) -> tuple[int, int]:
    """Height and width for images of these sizes: their own where all agree and it is small, else the network's."""
    if len(sizes) != 1 or any(max(shape) > 2 * target.size for shape in sizes):
        return target.size, target.size
    ((height, width),) = sizes
    return (min(height, width),) * 2 if target.resize == "crop" else (height, width)


_Row = tuple[bytes, int]
"""An image's pixels and their digest."""


@dataclass(frozen=True)
class _Job:
    """The images to decode, and to what."""

    pictures: Pictures
    indices: np.ndarray
    height: int
    width: int
    target: Target

    def rows(self, indices: list[int]) -> list[_Row | str]:
        """Each image, or why there is none."""
        return [self._row(index) for index in indices]

    def _row(self, index: int) -> _Row | str:
        try:
            image = decode.decode(self.pictures.open(index), self.height, self.width, self.target.resize)
        except decode.BadImageError as error:
            return str(error)
        pixels = image.tobytes()
        return pixels, pixel_digest(pixels)


def _write(job: _Job, folder: Path, pool: ThreadPoolExecutor, bar: Bar) -> dict[int, str]:
    """Decodes images into .npy files, chunk by chunk, and returns those that it could not read."""
    row_shape = (job.height, job.width, 3)
    chunk = max(64, CHUNK_BYTES // int(np.prod(row_shape)))
    bad: dict[int, str] = {}
    digests: list[int] = []
    with (folder / "images.npy").open("wb") as file:
        _write_header(file, (len(job.indices), *row_shape))
        for start in range(0, len(job.indices), chunk):
            waiting = job.indices[start : start + chunk].tolist()
            # Handing a thread one tiny image at a time would cost more than decoding it.
            few = max(1, min(32, len(waiting) // (4 * _threads())))
            groups = pool.map(job.rows, [waiting[at : at + few] for at in range(0, len(waiting), few)])
            position = start
            for group in groups:
                _append(job, file, position, group, digests, bad)
                position += len(group)
                bar.advance(len(group))
        file.seek(0)
        _write_header(file, (len(job.indices) - len(bad), *row_shape))
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "digests.npy", np.array(digests, np.uint64))
    return bad


def _append(
    job: _Job, file: BinaryIO, start: int, group: list[_Row | str], digests: list[int], bad: dict[int, str]
) -> None:
    """Writes the rows that are images and records the others in `bad`; the first row has the position `start`."""
    for position, row in enumerate(group, start):
        if not isinstance(row, str):
            file.write(row[0])
            digests.append(row[1])
        elif job.target.strict:
            raise bad_image(job.pictures.name(int(job.indices[position])), row)
        else:
            bad[position] = row


def _write_header(file: Any, shape: Sequence[int]) -> None:
    """Writes a .npy header; numpy pads it, so that a header with another number of rows has the same length."""
    layout = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, layout)
