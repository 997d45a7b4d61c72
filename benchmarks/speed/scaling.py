"""Seconds an image and memory, from a folder of small JPEGs to batches out of the memory-mapped cache, by folder size.

Run as a program, `python scaling.py FOLDER` is the process that is measured.
"""

import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

CLASSES = 10
WIDTH, HEIGHT = 64, 48
MIB = 2**20


def section(counts: Sequence[int]) -> str:
    """A row for each number of images."""
    from speed.measure import table

    rows = []
    with TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        write_images(pool, max(counts))
        for count in sorted(counts):
            images = link_images(pool, Path(folder) / f"{count}", count)
            place = {**os.environ, "KBASELINE_CACHE": f"{folder}/cache-{count}"}
            command = [sys.executable, __file__, str(images)]
            done = subprocess.run(command, env=place, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - ours
            found = json.loads(done.stdout.splitlines()[-1])
            each = [f"{1e6 * found[name] / count:.1f}" for name in ("list", "decode", "open", "feed")]
            faster = found["decode"] / found["feed"]
            rows.append([f"{count:,}", *each, f"{faster:.0f}", *(f"{found[name]:,.0f}" for name in MEMORY)])
    header = ["images", "list, µs each", "decode, µs each", "open again, µs each", "an epoch's batches, µs each"]
    header += ["decode ÷ epoch", *MEMORY.values()]
    return (
        f"JPEGs of {WIDTH}x{HEIGHT} pixels in {CLASSES} class folders, each folder size in a separate process: list "
        "the folder, decode it into the memory-mapped cache, open the cache a second time as the next run does, and "
        "read one epoch of shuffled batches of 64.\n\n" + table(header, rows)
    )


MEMORY = {"before": "imports alone, MiB", "peak": "peak, MiB", "cache": "cache on disk, MiB"}
"""What a child measures of memory -> its column; resident memory, mapped files included."""


def write_images(folder: Path, count: int) -> None:
    """Writes `count` JPEGs, each of other pixels, into class folders, on all cores."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool() as workers:
        for _ in workers.imap_unordered(_write_some, [(folder, at, count) for at in range(0, count, 1000)]):
            pass


def _write_some(job: tuple[Path, int, int]) -> None:
    folder, first, count = job
    for number in range(first, min(first + 1000, count)):
        rng = np.random.default_rng(number)
        # Blurred noise, about as hard to decode as a photo.
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(content, "JPEG", quality=85)
        _path(folder, number).write_bytes(content.getvalue())


def _path(folder: Path, number: int) -> Path:
    return folder / f"class{number % CLASSES}" / f"{number:06}.jpg"


def link_images(pool: Path, folder: Path, count: int) -> Path:
    """A folder of the pool's first `count` images, as hard links."""
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        _path(folder, number).hardlink_to(_path(pool, number))
    return folder


def measure(folder: str) -> dict[str, float]:
    """Seconds of each step over all images, and MiB."""
    from kbaseline.config.schema import DataConfig
    from kbaseline.data.batches import ImageBatches
    from kbaseline.data.image_data import ImageData
    from kbaseline.data.sources.folder import open_folder

    before = _peak()
    times = [time.perf_counter()]

    def clock() -> float:
        times.append(time.perf_counter())
        return times[-1] - times[-2]

    with open_folder(folder, DataConfig()):
        pass
    listing = clock()
    ImageData.from_source(f"folder:{folder}", size=WIDTH)
    decoding = clock() - listing
    data = ImageData.from_source(f"folder:{folder}", size=WIDTH)
    opening = clock()
    batches = ImageBatches(data.train.images, data.train.labels, 64, shuffle=True)
    for index in range(len(batches)):
        batches[index]
    # Of the training images alone; the others are fed as fast.
    feeding = clock() * (len(data.train) + len(data.valid)) / (64 * len(batches))
    size = sum(file.stat().st_size for file in DataConfig().cache_folder.rglob("*.npy"))
    return {
        "list": listing,
        "decode": decoding,
        "open": opening,
        "feed": feeding,
        "before": before,
        "peak": _peak(),
        "cache": size / MIB,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.path.pop(0)
    print(json.dumps(measure(sys.argv[1])))
