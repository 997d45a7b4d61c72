"""Everything that can be known of a set of images before training on it, from its pixels, files and features."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.console import Console

from kbaseline.audit.copies import kept_together
from kbaseline.audit.floor import CurvePoint, Floor, cross_validate, learning_curve
from kbaseline.audit.near_duplicates import NearDuplicates, find_near_duplicates, leaked_rows, nearest
from kbaseline.audit.odd_images import Odd, find_odd_images
from kbaseline.audit.page import render_audit
from kbaseline.audit.shortcuts import Shortcut, find_shortcuts
from kbaseline.audit.suspects import Suspect, find_suspects
from kbaseline.console.format import interval, percent, shortened
from kbaseline.data import ImageData
from kbaseline.data.decode import Header
from kbaseline.data.duplicates import EARLIER, Place, all_places
from kbaseline.render.notebook import fragment, page_html, paragraphs


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found in a set of images.

    Attributes:
        data: the images.
        near_duplicates: groups of copies, most certain first.
        suspects: images with a doubtful label, most suspect first.
        odd_images: dark, bright, blank, blurred or oddly shaped images and those far from all others, by kind.
        shortcuts: properties outside the picture that tell the class, the best first.
        floor: cross-validated accuracy of a linear probe on all images: what a trained network must beat.
        curve: accuracy of the probe by number of training images.
        backbone: the network whose features were compared.
    """

    data: ImageData
    near_duplicates: tuple[NearDuplicates, ...]
    suspects: tuple[Suspect, ...]
    odd_images: tuple[Odd, ...]
    shortcuts: tuple[Shortcut, ...]
    floor: Floor
    curve: tuple[CurvePoint, ...]
    backbone: str = "features"

    def __repr__(self) -> str:
        floor = self.floor
        lines = [
            repr(self.data).splitlines()[0],
            f"floor: a linear probe gets {percent(floor.accuracy)} right (95 % interval {interval(floor.interval)})",
            *(self.findings or ["nothing found"]),
        ]
        return "\n".join(shortened(line, 160) for line in lines[:5])

    def _repr_html_(self) -> str:
        said = "\n".join([repr(self).splitlines()[1], *self.findings, self.more_images])
        return fragment(paragraphs(said) + page_html(render_audit(self), "the whole audit, with its pictures"))

    @property
    def leaks(self) -> dict[str, int]:
        """Split -> number of its images that have a copy in an earlier split: train, or for test, train or valid."""
        found = leaked_rows(self.near_duplicates, list(self.data.splits))
        return {split: len(rows) for split, rows in found.items()}

    def name(self, place: Place) -> str:
        """Name of an image: its file, from the source's folder, or its split and number."""
        split = self.data.splits[place.split]
        return split.name(place.row) if split.provenance else f"{place.split} {split.name(place.row)}"

    def label(self, label: int) -> str:
        """Name of a class."""
        return self.data.class_names[label]

    @cached_property
    def findings(self) -> list[str]:
        """One line for everything to look at before training, the most serious first."""
        lines = [
            f"Leak: {count:,} of {len(self.data.splits[split]):,} {split} images have a copy in {EARLIER[split]}; "
            "accuracy on them proves nothing."
            for split, count in self.leaks.items()
        ]
        lines += [
            f"Shortcut: {one.property} alone tells the class in {one.accuracy:.1%} of the images "
            f"(the most frequent class: {one.majority:.1%}); the network may learn that instead of the picture."
            for one in self.shortcuts
            if one.property != "mean colour"
        ][:1]
        if wrong := sum(group.contradicts for group in self.near_duplicates):
            lines.append(f"Labels: {_groups(wrong)} of copies with different labels; one of them is wrong.")
        if self.suspects:
            lines.append(
                f"Labels: {len(self.suspects):,} suspect (of such candidates about half are wrong in the literature)."
            )
        if self.near_duplicates:
            lines.append(f"Copies: {_groups(len(self.near_duplicates))} of near-duplicates; keep each on one side.")
        if self.odd_images:
            kinds = dict.fromkeys(odd.kind for odd in self.odd_images)
            counts = ", ".join(f"{sum(odd.kind == kind for odd in self.odd_images):,} {kind}" for kind in kinds)
            lines.append(f"Odd images: {counts}.")
        return lines

    @property
    def more_images(self) -> str:
        """One sentence on whether more images would help; it says nothing beyond twice as many."""
        if len(self.curve) < 2 or self.curve[-1].images < 1.5 * self.curve[-2].images:
            return "Too few images to say whether more would help."
        before, now = self.curve[-2:]
        gain, doubt = (100 * part for part in now.gain(before))
        last = (
            f"From {before.images:,} to {now.images:,} training images the probe gained {gain:.1f} ± {doubt:.1f} points"
        )
        if gain <= doubt:
            return f"{last}: more images of this kind would bring little."
        # Learning curves flatten: a doubling brings no more than the one before it.
        return f"{last}. Twice as many would bring between nothing and about {gain:.1f} points more."

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain Python, for `audit.json`."""
        floor = self.floor
        return {
            "source": self.data.source,
            "images": {name: len(split) for name, split in self.data.splits.items()},
            "classes": list(self.data.class_names),
            "skipped": list(self.data.skipped),
            "findings": self.findings,
            "leaks": self.leaks,
            "near_duplicates": [
                {
                    "files": [self.name(place) for place in group.places],
                    "splits": [place.split for place in group.places],
                    "labels": [self.label(place.label) for place in group.places],
                    "score": group.score,
                }
                for group in self.near_duplicates
            ],
            "label_suspects": [
                {
                    "file": self.name(one.place),
                    "split": one.place.split,
                    "label": self.label(one.place.label),
                    "suggested": self.label(one.suggested),
                    "score": one.score,
                }
                for one in self.suspects
            ],
            "odd_images": [
                {"file": self.name(odd.place), "split": odd.place.split, "kind": odd.kind, "score": odd.score}
                for odd in self.odd_images
            ],
            "shortcuts": [asdict(one) for one in self.shortcuts],
            "probe": {
                "accuracy": floor.accuracy,
                "interval": list(floor.interval),
                "folds": floor.folds,
                "majority": floor.majority,
            },
            "learning_curve": [
                {"images": point.images, "accuracy": point.accuracy, "spread": point.spread} for point in self.curve
            ],
            "more_images": self.more_images,
        }


def audit_data(
    data: ImageData,
    features: np.ndarray,
    *,
    backbone: str = "features",
    headers: Mapping[Place, Header] | None = None,
    properties: Mapping[str, np.ndarray] | None = None,
    seed: int = 42,
    console: Console | None = None,
) -> Audit:
    """Looks for everything that `Audit` holds.

    Args:
        data: the images; those of all splits are looked at.
        features: float `(images, any)`, pooled features of a frozen network, of all splits in their order.
        backbone: name of that network.
        headers: what is known of the files.
        properties: of the files, for `find_shortcuts`: name -> float `(images, ...)`.
        seed: fixes folds and draws.
        console: where to show progress; None shows nothing.
    """
    places = all_places(data)
    labels = np.array([place.label for place in places])
    classes = data.num_classes
    near = nearest(features, console)
    copies = find_near_duplicates(data, near, console)
    groups = kept_together(data, copies)
    floor = cross_validate(features, labels, classes, groups, seed, console)
    colour = {"mean colour": _mean_colours(data)}
    return Audit(
        data,
        copies,
        find_suspects(places, floor.probabilities),
        find_odd_images(data, places, near.cosines.mean(axis=1), headers or {}, console),
        find_shortcuts({**(properties or {}), **colour}, labels, groups, seed),
        floor,
        learning_curve(features, labels, classes, groups, seed, console, floor.strength),
        backbone,
    )


def _mean_colours(data: ImageData) -> np.ndarray:
    return np.stack([np.asarray(image).mean(axis=(0, 1)) for split in data.splits.values() for image in split.images])


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count:,} groups"
