"""Plots of a run: the finder's curves, the schedule, the history, the confusion matrix.

Figures are Matplotlib `Figure` objects, without pyplot and its global state, that a notebook shows by itself. They are
6.9 inches (900 pixels) wide unless a `width` in inches is given; below `NARROW`, as on a phone, panels are stacked. The
colours are the colour-blind-safe palette of Okabe and Ito; lines that could still be confused have different markers.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from kbaseline.console.format import percent, shortened
from kbaseline.render.images import svg
from kbaseline.render.notebook import chart_html, fragment

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
INK, GREY, LIGHT = "#333333", "#808080", "#E6E6E6"

NARROW = 5.0
"""Width in inches below which panels are stacked."""

_WIDTH = 6.9
_MARKS = {"valley": (ORANGE, "o"), "steep": (GREEN, "s"), "slide": (PINK, "D"), "minimum": (SKY, "^")}
_SHARE = LinearSegmentedColormap.from_list("share", [f"{BLUE}00", BLUE])
"""From transparent, so that 0 shows the background, light or dark."""

_MOST_MARKERS = 60
"""Most epochs that are marked one by one."""

_MOST_NUMBERS = 20
"""Most classes for which a confusion matrix shows its counts, with 0.35 inches per cell."""


class Plot(Figure):
    """A Matplotlib figure that a notebook shows by itself, without pyplot."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        # A bundle, because IPython's own picture of a figure, which knows no dark theme, gives way to it.
        axes = [(one.get_ylabel(), one.get_xlabel()) for one in self.axes]
        alt = "; ".join(f"{y} against {x}" if x else y for y, x in axes if y)
        return {"text/plain": repr(self), "text/html": fragment(chart_html(svg(self), alt))}


def plot_lr_find(curves: Sequence[Mapping[str, Any]], width: float = _WIDTH) -> Plot:
    """Plots the finder's sweeps, one panel per stage.

    Args:
        curves: for each stage `title`, `lrs`, `losses` and `smoothed` (float arrays of equal length; NaN is not
            drawn), `suggestions` (rule -> rate; may be empty) and `chosen` (the rate used in training, or None).
        width: width of the figure, in inches.
    """
    columns = 1 if width < NARROW else min(len(curves), 2)
    rows = math.ceil(len(curves) / columns)
    figure = _figure(3.9 * rows, width)
    for number, curve in enumerate(curves):
        axes = figure.add_subplot(rows, columns, number + 1)
        _curve(axes, curve)
        if number % columns == 0:
            axes.set_ylabel("loss")
    return figure


def plot_schedule(rows: Sequence[Mapping[str, Any]], width: float = _WIDTH) -> Plot:
    """Plots learning rate and momentum at every step of the run.

    Args:
        rows: one per step: `stage`, `step` (from 0, over all stages), `lr` (of the last layer group),
            `momentum`, and `lr_0`, `lr_1`, ... if the groups differ.
        width: width of the figure, in inches.
    """
    figure = _figure(4.4, width)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    steps = [row["step"] for row in rows]
    head = _column(rows, "lr")
    for number, values in enumerate(_earlier_groups(rows)):
        if not np.array_equal(values[np.isfinite(values)], head[np.isfinite(values)]):
            _stages_line(
                upper, rows, steps, values, color=(GREEN, PINK, SKY)[number % 3], label=f"layer group {number + 1}"
            )
    if upper.lines:
        _stages_line(upper, rows, steps, head, color=BLUE, label="last layer group")
        figure.legend(**_LEGEND, loc="outside lower center", ncols=2 if width < NARROW else 4)
    else:
        _stages_line(upper, rows, steps, head, color=BLUE)
    _stages_line(lower, rows, steps, _column(rows, "momentum"), color=ORANGE)
    upper.set_ylabel("learning rate")
    upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else f"{value:.1e}"))
    upper.set_ylim(bottom=0)
    lower.set_ylabel("momentum")
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(rows) == 1:
        lower.set_xlim(steps[0] - 0.5, steps[0] + 0.5)
    for axes in (upper, lower):
        _mark_stages(axes, rows, steps, named=axes is upper)
    return figure


def plot_history(rows: Sequence[Mapping[str, Any]], tta: float | None = None, width: float = _WIDTH) -> Plot:
    """Plots loss and validation accuracy by epoch, over all stages.

    Args:
        rows: one per epoch: `stage`, `train_loss`, `valid_loss`, `accuracy` (0 to 1); None and NaN are not drawn.
        tta: accuracy with test-time augmentation, 0 to 1.
        width: width of the figure, in inches.
    """
    figure = _figure(4.9 if width < NARROW else 3.4, width)
    left, right = figure.subplots(2, 1) if width < NARROW else figure.subplots(1, 2)
    epochs = list(range(1, len(rows) + 1))
    circle, square = ("o", "s") if len(rows) <= _MOST_MARKERS else ("", "")
    for key, name, colour, marker in (
        ("train_loss", "train", BLUE, circle),
        ("valid_loss", "validation", ORANGE, square),
    ):
        values = _column(rows, key)
        if np.isfinite(values).any():
            left.plot(epochs, values, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)
    left.set_ylabel("loss")
    if left.lines:
        left.legend(**_LEGEND, loc="best")
    accuracy = _column(rows, "accuracy")
    right.plot(epochs, accuracy, color=ORANGE, marker=square, markersize=4, linewidth=1.8)
    right.set_ylabel("validation accuracy")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    if tta is not None and math.isfinite(tta):
        right.axhline(tta, color=GREEN, linewidth=1.5, linestyle=(0, (5, 2)), label=f"with TTA {percent(tta)}")
        right.legend(**_LEGEND, loc="best")
        right.margins(y=0.2)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(len(rows), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _mark_stages(axes, rows, epochs, named=True)
    return figure


def plot_confusion(confusion: ArrayLike, class_names: Sequence[str], width: float = _WIDTH) -> Plot:
    """Plots images by actual class (row) and predicted class (column), coloured by their share of the row.

    Args:
        confusion: integers (classes, classes).
        class_names: a name for each class.
        width: width of the figure, in inches.
    """
    counts = np.asarray(confusion)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    figure = _figure(0.93 * width, width)
    axes = figure.add_subplot()
    # The square root makes a share of 1 % visible beside the diagonal.
    image = axes.imshow(share, cmap=_SHARE, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    few = len(class_names) <= _MOST_NUMBERS
    if few:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if share[row, column] > 0.35 else INK
            size = 9 if len(class_names) <= 12 else 7
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=size)
    # At most 40 names fit side by side.
    shown = range(0, len(class_names), max(1, math.ceil(len(class_names) / 40)))
    names = [shortened(class_names[i], 18) for i in shown]
    size = 9 if few else 7
    # At most 60 characters fit side by side in the default width.
    turned = 90 if sum(map(len, names)) > 60 * width / _WIDTH else 0
    axes.set_xticks(list(shown), names, rotation=turned, fontsize=size, parse_math=False)
    axes.set_yticks(list(shown), names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    style_axes(axes)
    axes.tick_params(labelsize=size)
    axes.grid(visible=False)
    if few and width < NARROW:
        return figure
    bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    bar.set_label("share of the actual class", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def plot_learning_curve(points: Sequence[tuple[int, float, float]], majority: float, width: float = _WIDTH) -> Figure:
    """Plots accuracy by number of training images.

    Args:
        points: (images, accuracy, standard deviation over repeats), accuracy 0 to 1, by number of images.
        majority: share of the most frequent class, drawn as a line.
        width: width of the figure, in inches.
    """
    figure = _figure(3.2, width)
    axes = figure.subplots()
    images, accuracy, spread = np.array(points, float).reshape(-1, 3).T
    axes.errorbar(images, accuracy, spread, color=BLUE, marker="o", capsize=3)
    axes.axhline(majority, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.annotate(
        "most frequent class",
        (1, majority),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=INK,
        fontsize=9,
    )
    axes.set_xscale("log")
    axes.set_xticks(images, [f"{int(number):,}" for number in images], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set(xlabel="training images", ylabel="accuracy")
    style_axes(axes)
    return figure


_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 1.6}


def _figure(height: float, width: float = _WIDTH) -> Plot:
    return Plot(figsize=(width, height), layout="constrained", facecolor="white")


def style_axes(axes: Axes) -> None:
    """Sets a light grid, no box and dark grey text."""
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=9)
    axes.tick_params(which="minor", color=GREY)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=10)
    axes.title.set(color=INK, fontsize=11)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """A column as float64, NaN where a row has no value."""
    values = [row.get(key) for row in rows]
    return np.array([math.nan if value is None else float(value) for value in values])


def _earlier_groups(rows: Sequence[Mapping[str, Any]]) -> list[NDArray[np.float64]]:
    """Rates of all layer groups but the last, in order; NaN at steps without that group."""
    groups, number = [], 0
    # A stage may train fewer groups than another, so that its last group has a smaller number.
    while any(f"lr_{number + 1}" in row for row in rows):
        own = [row if f"lr_{number + 1}" in row else {} for row in rows]
        groups.append(_column(own, f"lr_{number}"))
        number += 1
    return groups


def _boundaries(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Index of the first row of every stage."""
    return [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]


def _stages_line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], x: Sequence[float], y: NDArray[np.float64], **style: Any
) -> None:
    """Draws one line per stage, without connecting them."""
    starts = _boundaries(rows)
    for begin, end in pairwise([*starts, len(rows)]):
        # A single point is drawn as a marker.
        if np.isfinite(y[begin:end]).any():
            axes.plot(x[begin:end], y[begin:end], linewidth=1.8, marker="." if end - begin == 1 else "", **style)
            style.pop("label", None)


def _mark_stages(axes: Axes, rows: Sequence[Mapping[str, Any]], x: Sequence[float], named: bool) -> None:
    """Marks the start of every stage with a line, and its name above, if there are several stages."""
    style_axes(axes)
    starts = _boundaries(rows)
    if len(starts) < 2:
        return
    low, high = axes.get_xlim()
    edges = [low, *((x[i - 1] + x[i]) / 2 for i in starts[1:]), high]
    for begin, end, start in zip(edges, edges[1:], starts, strict=False):
        if begin != low:
            axes.axvline(begin, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
        if named:
            axes.annotate(
                str(rows[start]["stage"]),
                ((begin + end) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=GREY,
                fontsize=9,
            )
    axes.set_xlim(low, high)


def _curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Draws one sweep."""
    lrs, losses, smoothed = (np.asarray(curve[key], dtype=np.float64) for key in ("lrs", "losses", "smoothed"))
    axes.set_xscale("log")
    axes.plot(lrs, losses, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(lrs, smoothed, color=BLUE, linewidth=2)
    known = np.isfinite(smoothed)
    for rule, lr in curve["suggestions"].items():
        colour, marker = _MARKS.get(rule, (INK, "v"))
        height = np.interp(np.log(lr), np.log(lrs[known]), smoothed[known]) if known.any() else 0.0
        axes.plot(
            [lr], [height], marker, color=colour, markersize=7, markeredgecolor="white", label=f"{rule}  {lr:.1e}"
        )
    if curve.get("chosen") is not None:
        chosen = float(curve["chosen"])
        axes.axvline(chosen, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label=f"chosen  {chosen:.1e}", zorder=1)
    limits = _loss_limits(losses, smoothed)
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlabel("learning rate")
    axes.set_title(str(curve["title"]), parse_math=False)
    style_axes(axes)
    if curve["suggestions"] or curve.get("chosen") is not None:
        # Below the panel, where it covers nothing.
        axes.legend(**_LEGEND, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.5)


def _loss_limits(losses: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float, float] | None:
    """Limits that show the path to the lowest loss and the beginning of the divergence after it."""
    finite = smoothed[np.isfinite(smoothed)]
    if not finite.size:
        return None
    # At least the first half is shown: a loss that only rises has its minimum at the first step.
    path = finite[: max(int(finite.argmin()) + 1, math.ceil(finite.size / 2))]
    low, high = float(path.min()), float(np.quantile(path, 0.98))
    raw = losses[: path.size][np.isfinite(losses[: path.size])]
    low = min(low, float(raw.min())) if raw.size else low
    height = max(high - low, 0.05 * abs(high), 1e-6)
    return low - 0.08 * height, high + 0.35 * height
