"""Audits a source before training: loads it, computes features, finds what is wrong, and writes a page."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from kbaseline.audit.audit import Audit, all_places, audit_data
from kbaseline.audit.near_duplicates import NearDuplicates
from kbaseline.config.schema import Config
from kbaseline.console.bars import Bar
from kbaseline.console.format import file_name
from kbaseline.data import ImageData
from kbaseline.data.decode import BadImageError, Header, probe, quiet
from kbaseline.data.duplicates import Place
from kbaseline.data.image_data import load_source
from kbaseline.data.pictures import FilePictures
from kbaseline.devices.environment import versions
from kbaseline.feature_extraction import features
from kbaseline.render.images import SMALL, chart, picture
from kbaseline.render.plots import plot_learning_curve
from kbaseline.render.templates import html_template
from kbaseline.storage.run_folder import RunFolder

BACKBONE = "efficientnet_lite0"
"""The network whose features are compared: it comes with kbaseline."""

PHOTO_SIZE, SMALL_SIZE = 224, 128
"""Side of the network's input, in pixels, for photos and for images of at most `SMALL_SIZE` pixels a side."""

_MOST_PAIRS, _MOST_SUSPECTS, _MOST_ODD = 60, 60, 12
"""Most items that the page shows of each kind, to bound its size."""

_EXIF_MAKE, _EXIF_MODEL = 271, 272


def audit_source(config: Config, console: Console | None = None) -> Audit:
    """Loads a source as a run would, and audits all of its images. Unreadable ones are skipped and listed.

    Args:
        config: its `data` section and seed are used.
        console: where to show progress; None shows nothing.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    lenient = config.data.model_copy(update={"on_bad_image": "skip"})
    data = load_source(lenient, config.seed, console)
    if max(data.image_size) <= SMALL_SIZE:
        data = replace(data, size=min(data.size, SMALL_SIZE))
    by_split = features(data, BACKBONE, cache_dir=config.data.cache_folder, console=console)
    headers, cameras = _headers(data, console)
    return audit_data(
        data,
        np.concatenate([by_split[name] for name in data.splits]),
        headers=headers,
        properties=_properties(data, headers, cameras),
        seed=config.seed,
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


def render_audit(audit: Audit, seconds: float) -> str:
    """The page as HTML; it makes no network requests and runs no script."""
    groups = sorted(audit.near_duplicates, key=lambda group: (not group.leaks, not group.contradicts))
    kinds = dict.fromkeys(odd.kind for odd in audit.odd_images)
    figure = plot_learning_curve([(p.images, p.accuracy, p.spread) for p in audit.curve], audit.floor.majority, 4.0)
    return html_template("audit").render(
        data=audit.data,
        backbone=BACKBONE,
        images=sum(map(len, audit.data.splits.values())),
        floor=audit.floor,
        findings=audit.findings,
        seconds=seconds,
        groups=len(groups),
        copies=[_pair(audit, group) for group in groups[:_MOST_PAIRS]],
        suspect_count=len(audit.suspects),
        suspects=[
            {**_shot(audit, one.place), "suggested": audit.label(one.suggested)}
            for one in audit.suspects[:_MOST_SUSPECTS]
        ],
        odd=[
            {
                "name": kind,
                "count": sum(odd.kind == kind for odd in audit.odd_images),
                "shown": [_shot(audit, odd.place) for odd in audit.odd_images if odd.kind == kind][:_MOST_ODD],
            }
            for kind in kinds
        ],
        shortcuts=audit.shortcuts,
        more_images=audit.more_images,
        curve={
            "title": "Learning curve",
            "alt": "accuracy of the probe by number of training images; audit.json has the numbers",
            "image": chart(figure),
        },
        version=versions()["kbaseline"],
    )


def _pair(audit: Audit, group: NearDuplicates) -> dict[str, Any]:
    """What the page shows of a group."""
    kind = "leak between splits" if group.leaks else "within one split"
    return {
        "halves": [_shot(audit, place) for place in group.pair],
        "verdict": f"{kind}, different labels" if group.contradicts else kind,
        "leaks": group.leaks,
        "contradicts": group.contradicts,
        "score": group.score,
        "more": len(group.places) - 2,
    }


def _shot(audit: Audit, place: Place) -> dict[str, Any]:
    """An image's picture, name, split and label."""
    image = np.asarray(audit.data.splits[place.split].images[place.row])
    return {
        "picture": picture(image),
        "small": max(image.shape[:2]) <= SMALL,
        "name": audit.name(place),
        "split": place.split,
        "label": audit.label(place.label),
    }


def _headers(data: ImageData, console: Console | None) -> tuple[dict[Place, Header], dict[Place, str]]:
    """Header and camera of every image that is a file."""
    files = list(_files(data))
    headers: dict[Place, Header] = {}
    cameras: dict[Place, str] = {}
    with quiet(), Bar(console, "Reading headers", len(files)) as bar, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda file: _header(file[1]), files)
        for (place, _, _), known in zip(files, found, strict=True):
            if known is not None:
                headers[place], cameras[place] = known
            bar.advance()
    return headers, cameras


def _files(data: ImageData) -> Iterator[tuple[Place, Path, int]]:
    """Every image that is a file: its place, its path and its bytes."""
    for place in all_places(data):
        provenance = data.splits[place.split].provenance
        if provenance is not None and isinstance(provenance.pictures, FilePictures):
            number = int(provenance.numbers[place.row])
            yield place, provenance.pictures.open(number), provenance.pictures.files[number].size


def _header(file: Path) -> tuple[Header, str] | None:
    try:
        header = probe(file)
    except BadImageError:
        return None  # The file changed since it was decoded; the decoded copy is audited.
    try:
        with Image.open(file) as image:
            exif = image.getexif()
            return header, f"{exif.get(_EXIF_MAKE, '')} {exif.get(_EXIF_MODEL, '')}".strip()
    except Exception:
        return header, ""  # A format that Pillow does not read, or broken tags.


def _properties(
    data: ImageData, headers: Mapping[Place, Header], cameras: Mapping[Place, str]
) -> dict[str, np.ndarray]:
    """What is known of the files, as numbers; empty unless all images are files."""
    files = list(_files(data))
    if len(headers) < sum(map(len, data.splits.values())):
        return {}
    known = [headers[place] for place, _, _ in files]
    sides = np.array([(header.width, header.height) for header in known], float)
    return {
        "file size": np.log1p([size for _, _, size in files]),
        "width and height": sides,
        "aspect": sides[:, 0] / sides[:, 1],
        "format": _numbered([header.format for header in known]),
        "camera": _numbered([cameras[place] for place, _, _ in files]),
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
