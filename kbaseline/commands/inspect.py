"""Inspects a data source before training: class counts, image sizes, bad files, duplicate images."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from kbaseline.audit.copies import find_copies
from kbaseline.commands.headers import read_headers
from kbaseline.config.schema import Config
from kbaseline.console.format import file_name
from kbaseline.data import ImageData
from kbaseline.data.decode import Header
from kbaseline.data.duplicates import EARLIER, Duplicates, Place, find_duplicates
from kbaseline.data.image_data import load_source
from kbaseline.storage.run_folder import RunFolder

IMBALANCE = 3.0
"""Ratio of training images, largest class to smallest, from which on the imbalance is noted; a convention."""

_SAME_FORMAT = {"MPO": "JPEG"}
"""Formats that may bear the suffix of another: some phones store several images in one .jpg, which Pillow calls MPO."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """The content of a data source.

    Attributes:
        config: the configuration the images were loaded with.
        data: the images, split as for a run.
        headers: image header of every file; empty if the source does not consist of files.
        duplicates: groups of images with identical pixels.
    """

    config: Config
    data: ImageData
    headers: Mapping[Place, Header]
    duplicates: Duplicates

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> number of images."""
        splits, names = self.data.splits, self.data.class_names
        counts = {name: np.bincount(split.labels, minlength=len(names)).tolist() for name, split in splits.items()}
        return {name: {split: counts[split][label] for split in splits} for label, name in enumerate(names)}

    @cached_property
    def files(self) -> dict[str, Any] | None:
        """Width and height (min, median and max, in pixels) and formats of the image files; None without files."""
        if not self.headers:
            return None
        headers = self.headers.values()
        formats = Counter(header.format for header in headers)
        return {
            "width": _spread(header.width for header in headers),
            "height": _spread(header.height for header in headers),
            "formats": dict(formats.most_common()),
        }

    @cached_property
    def misnamed(self) -> dict[str, str]:
        """File -> its format, where that contradicts the file's suffix."""
        formats = Image.registered_extensions()
        return {
            name: header.format
            for name, header in ((self.name(place), header) for place, header in self.headers.items())
            if formats.get(Path(name).suffix.lower()) not in (None, _SAME_FORMAT.get(header.format, header.format))
        }

    @cached_property
    def repeats(self) -> dict[str, int]:
        """Split -> number of images that repeat another one of the split; only splits that have some."""
        repeats: Counter[str] = Counter()
        for group in self.duplicates.groups:
            for split, number in Counter(place.split for place in group).items():
                repeats[split] += number - 1
        return {split: number for split, number in repeats.items() if number}

    @property
    def leaking(self) -> tuple[tuple[Place, ...], ...]:
        """Groups of identical images that appear in more than one split."""
        return tuple(group for group in self.duplicates.groups if len({place.split for place in group}) > 1)

    def warnings(self) -> list[str]:
        """Problems that make a run's accuracy too optimistic or its labels wrong."""
        lines = [
            f"LEAK: {count:,} of {len(self.data.splits[split]):,} {split} images are also in {EARLIER[split]}, pixel "
            "for pixel. Accuracy on them proves nothing; remove one copy of each."
            for split, count in self.duplicates.leaks.items()
        ]
        if wrong := len(self.duplicates.contradictions):
            lines.append(f"LABELS: identical images have different classes ({wrong:,} times); correct the labels.")
        return lines

    def notes(self) -> list[str]:
        """Observations that need no correction."""
        lines = [
            f"Repeats: {count:,} of {len(self.data.splits[split]):,} {split} images repeat another, pixel for pixel."
            for split, count in self.repeats.items()
        ]
        if self.misnamed:
            name, kind = next(iter(self.misnamed.items()))
            lines.append(
                f"Formats: {len(self.misnamed):,} of {len(self.headers):,} files differ in format from their suffix: "
                f"{name} ({kind}), ... They may be placeholders that a site sent in place of a removed photo."
            )
        train = {name: row["train"] for name, row in self.counts.items() if row["train"]}
        rare, common = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
        if train[common] >= IMBALANCE * train[rare] and self.config.data.class_weights == "none":
            lines.append(
                f"Imbalance: {common!r} has {train[common]:,} training images, {rare!r} {train[rare]:,}. Try --set "
                "data.class_weights=auto, and check balanced accuracy as well as accuracy."
            )
        return lines

    def label(self, place: Place) -> str:
        """Class name of an image."""
        return self.data.class_names[place.label]

    def name(self, place: Place) -> str:
        """Name of an image: its file, or its split and number."""
        split = self.data.splits[place.split]
        return split.name(place.row) if split.provenance else f"{place.split} {split.name(place.row)}"

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain Python, for `data.json`."""
        groups = [
            [{"image": self.name(place), "split": place.split, "class": self.label(place)} for place in group]
            for group in self.duplicates.groups
        ]
        return {
            "source": self.data.source,
            "images": {name: len(split) for name, split in self.data.splits.items()},
            "classes": self.counts,
            "files": self.files,
            "misnamed": self.misnamed,
            "skipped": list(self.data.skipped),
            "leaks": self.duplicates.leaks,
            "repeats": self.repeats,
            "duplicates": groups,
            "warnings": self.warnings(),
            "remarks": self.notes(),
        }


def inspect_source(config: Config, console: Console | None = None) -> Inspection:
    """Loads a source as a run would and inspects it. Unreadable images are always skipped and listed.

    Args:
        config: its `data` section and seed are used.
        console: where to show progress; None shows nothing.

    Raises:
        DataError, DownloadError, RunError: as `load_source`.
    """
    lenient = config.data.model_copy(update={"on_bad_image": "skip"})
    data = load_source(lenient, config.seed, console, copies=find_copies(lenient, console))
    return Inspection(config, data, read_headers(data, console), find_duplicates(data))


def write_inspection(inspection: Inspection, out: Path | None) -> Path:
    """Writes `data.json` and `samples.png`, the contact sheet, to a new folder and returns it.

    Args:
        inspection: the inspection to write.
        out: the folder, new or empty; None for a new one in `runs/`, named after the source.

    Raises:
        InputError: the folder is not empty, or cannot be created.
        RunError: it cannot be written to.
    """
    # Keras takes seconds to import, and only the contact sheet needs it.
    from kbaseline.commands.contact_sheet import plot_contact_sheet

    folder = RunFolder.create(out, f"data-{file_name(inspection.data.source, 70)}")
    folder.write_json("data.json", inspection.to_dict())
    folder.write_figure(
        "samples.png", plot_contact_sheet(inspection.data, inspection.config.transforms, inspection.config.seed)
    )
    return folder.path


def _spread(values: Iterable[int]) -> dict[str, int]:
    numbers = np.fromiter(values, int)
    return {"min": int(numbers.min()), "median": int(np.median(numbers)), "max": int(numbers.max())}
