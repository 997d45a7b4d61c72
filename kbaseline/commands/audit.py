"""Audits a source before training: loads it, computes features, finds what is wrong, and writes a page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from kbaseline.audit.audit import Audit, audit_data
from kbaseline.audit.copies import BACKBONE, find_copies, network_features
from kbaseline.audit.page import render_audit
from kbaseline.commands.headers import image_files, read_headers
from kbaseline.config.schema import Config
from kbaseline.console.format import file_name
from kbaseline.data import ImageData
from kbaseline.data.decode import Header
from kbaseline.data.duplicates import Place
from kbaseline.data.image_data import load_source
from kbaseline.storage.run_folder import RunFolder


def audit_source(config: Config, console: Console | None = None) -> Audit:
    """Loads a source as a run would, and audits all of its images. Unreadable ones are skipped and listed.

    Args:
        config: its `data` section and seed are used.
        console: where to show progress; None shows nothing.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    lenient = config.data.model_copy(update={"on_bad_image": "skip"})
    data = load_source(lenient, config.seed, console, copies=find_copies(lenient, console))
    return audit_images(data, seed=config.seed, cache_dir=config.data.cache_folder, console=console)


def audit_images(
    data: ImageData, *, seed: int = 42, cache_dir: Path | None = None, console: Console | None = None
) -> Audit:
    """Audits images before training: near-duplicates, leaks, label suspects, odd images, shortcuts, and a floor.

    >>> from kbaseline import ImageData, audit_images
    >>> found = audit_images(ImageData.from_source("digits", size=32, limit=200))
    >>> found.floor.folds, found.floor.accuracy > found.floor.majority
    (5, True)

    Args:
        data: the images; those of all splits are looked at.
        seed: fixes folds and draws.
        cache_dir: kbaseline's cache folder, where the features are kept; default: as `data.cache_dir`.
        console: where to show progress; None shows nothing.

    Returns:
        What was found. It shows itself in a notebook; `to_dict()` is what `audit.json` holds.

    Raises:
        RunError: the cache folder cannot be written, or the accelerator runs out of memory.
    """
    found = network_features(data, cache_dir, console)
    headers = read_headers(data, console)
    return audit_data(
        data,
        found,
        backbone=BACKBONE,
        headers=headers,
        properties=_properties(data, headers),
        seed=seed,
        console=console,
    )


def write_audit(audit: Audit, out: Path | None, seconds: float) -> Path:
    """Writes `audit.html` and `audit.json` to a new folder and returns it.

    Args:
        audit: what was found.
        out: the folder, new or empty; None for a new one in `runs/`, named after the source.
        seconds: how long the audit took.

    Raises:
        InputError: the folder is not empty, or cannot be created.
        RunError: it cannot be written to.
    """
    folder = RunFolder.create(out, f"audit-{file_name(audit.data.source, 70)}")
    folder.write_json("audit.json", audit.to_dict())
    folder.write_text("audit.html", render_audit(audit, seconds))
    return folder.path


def _properties(data: ImageData, headers: Mapping[Place, Header]) -> dict[str, np.ndarray]:
    """What is known of the files, as numbers; empty unless all images are files."""
    if len(headers) < sum(map(len, data.splits.values())):
        return {}
    files = list(image_files(data))
    known = [headers[place] for place, _, _ in files]
    sides = np.array([(header.width, header.height) for header in known], float)
    return {
        "file size": np.log1p([size for _, _, size in files]),
        "width and height": sides,
        "aspect": sides[:, 0] / sides[:, 1],
        "format": _numbered([header.format for header in known]),
        "camera": _numbered([header.camera for header in known]),
    }


def _numbered(texts: Sequence[str]) -> np.ndarray:
    """Texts as columns of 0 and 1, one for each."""
    columns: np.ndarray = (np.array(texts)[:, None] == np.unique(texts)).astype(float)
    return columns


def timed_audit(config: Config, console: Console | None) -> tuple[Audit, float]:
    """`audit_source`, and the seconds it took."""
    began = time.monotonic()
    found = audit_source(config, console)
    return found, time.monotonic() - began
