"""What a source is: it lists its images by split and class, and says whether they are on this machine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.data.pictures import Pictures
from kbaseline.errors import listed


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a source before any is chosen or decoded.

    Attributes:
        pictures: all its images, numbered through the splits in the order of `labels`: encoded ones, or uint8
            `(number, height, width, 3)` where the source has pixels already.
        labels: `train`, `valid` and `test`, in this order, as far as they exist -> int `(number,)`, a class for every
            image.
        class_names: the name of each label.
        display_name: what the source is called in messages, for instance `folder 'photos'`.
        skipped: one line for whatever was left out already, with the reason.
        groups: int `(number,)`, a number for every image, the same for those that a hold-out must not divide; None
            where every image is for itself.
        untrainable: why nothing can be trained on these images, in one line; empty where something can. They can be
            scored all the same.
    """

    pictures: Pictures | np.ndarray
    labels: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    display_name: str
    skipped: tuple[str, ...] = ()
    untrainable: str = ""
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """One kind of source.

    Attributes:
        form: how to write it, for instance `folder:PATH`.
        open: from what stands behind the prefix, the `data` section and a console for progress (None shows nothing)
            to the listing, whose pictures may be read until the context ends. Raises `DataError` where the data break
            a rule, `DownloadError` where they cannot be fetched, `RunError` where a folder cannot be written.
        status: from what stands behind the prefix and the `data` section to whether the images are on this machine,
            and where they are or what to do; downloads nothing.
    """

    form: str
    open: Callable[[str, DataConfig, Console | None], AbstractContextManager[Listing]]
    status: Callable[[str, DataConfig], tuple[bool, str]]


def alike_but_for_case(names: Sequence[str]) -> tuple[str, ...]:
    """A line for each group of classes whose names differ only in case; single letters may."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    return tuple(
        f"classes {listed(group)}: differ only in case and stay {len(group)} classes; name them alike to make them one"
        for group in groups.values()
        if len(group) > 1 and len(group[0]) > 1
    )


def number_groups(names: Sequence[str | None]) -> np.ndarray:
    """A number for every image, int `(number,)`, the same for groups of one name; None is a group of one image."""
    numbers: dict[str, int] = {}
    own = iter(range(len(names), 2 * len(names)))
    return np.array([next(own) if name is None else numbers.setdefault(name, len(numbers)) for name in names], np.int64)
