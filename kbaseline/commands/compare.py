"""Compares finished runs: accuracy by step, differences between their configurations, one plot."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kbaseline.config.keys import flattened
from kbaseline.config.paths import expand_home
from kbaseline.console.format import clock, interval, percent, plain_table, rate, shortened
from kbaseline.errors import InputError
from kbaseline.metrics import compare_paired, final_evaluation
from kbaseline.render.plots import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, style_axes
from kbaseline.runs.record import RunRecord, same_images
from kbaseline.storage.run_folder import RunFolder

_MOST_PAIRS = 15
"""Most pairs of runs that the table shows; `--json` has all."""

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, GREY)


def comparison(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The results of runs as plain Python, for JSON.

    Returns:
        `runs`: for each run its `run` (name), `folder`, `backbone`, `size`, `seed`, `seconds` (of all its parts),
            `images_per_s` (median of its epochs) and `steps`: `name` and `accuracy` of each stage, of test-time
            augmentation and of the test split, with the 95 % `interval`, `images` scored, `seconds` and
            `images_per_s`, each None if unknown.
        `differences`: dotted configuration key -> its value in each run, for the keys that differ.
        `trained_on`: names of the runs whose last step was scored on images that they were trained on.
        `same_images`: whether all runs were scored on the same validation images.
        `pairs`: for each two runs that were, at their last step, `first`, `second` (names), `difference` (accuracy of
            the second less that of the first), `only_first`, `only_second` (images that only one gets right), `p_value`
            of McNemar's exact test, and `images_to_settle`, see `PairedComparison`.
    """
    settings = [flattened(run.config.model_dump(mode="json", exclude={"name"})) for run in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    columns = {key: [values.get(key) for values in settings] for key in keys}
    names = _names(runs)
    return {
        "runs": [_summary(run, name) for run, name in zip(runs, names, strict=True)],
        "differences": {key: values for key, values in columns.items() if any(v != values[0] for v in values)},
        "trained_on": [
            name for name, run in zip(names, runs, strict=True) if run.config.data.trains_on(run.splits[-1])
        ],
        "same_images": all(same_images(runs[0], run, "valid") for run in runs),
        "pairs": _pairs(runs, names),
    }


def print_comparison(result: dict[str, Any], console: Console) -> None:
    """Prints the result of `comparison` as tables that fit 80 columns."""
    console.print(_accuracies(result["runs"]))
    if result["differences"]:
        console.print()
        console.print(_differences(result))
    if result["pairs"]:
        console.print()
        console.print(_pair_table(result["pairs"]))
    for name in result["trained_on"]:
        line = f"{name}: was trained on these images, too, so its accuracy proves nothing."
        console.print(Text(line, style="yellow"), soft_wrap=True)
    if not result["same_images"]:
        console.print("The runs were scored on different images, so part of every difference is chance; see intervals.")


def plot_comparison(result: dict[str, Any], runs: Sequence[RunRecord]) -> Figure:
    """Plots the final accuracy of every run with its interval, and accuracy against seconds of training.

    Args:
        result: the result of `comparison`.
        runs: the same runs.
    """
    figure = Figure(figsize=(6.9, max(3.4, 1.6 + 0.4 * len(runs))), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for number, (summary, run) in enumerate(zip(result["runs"], runs, strict=True)):
        colour, marker = _COLOURS[number % len(_COLOURS)], "osD^v"[number % 5]
        last = summary["steps"][-1]
        low, high = last["interval"]
        left.plot([low, high], [number] * 2, color=colour, linewidth=2)
        left.plot([last["accuracy"]], [number], marker, color=colour)
        left.annotate(
            f"{last['name']}  {percent(last['accuracy'])}",
            (last["accuracy"], number),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=8,
        )
        seconds = np.cumsum([row["seconds"] for row in run.result.history])
        accuracy = [row["accuracy"] for row in run.result.history]
        right.plot(seconds, accuracy, color=colour, marker=marker, markersize=4, linewidth=1.8)
    names = [shortened(summary["run"], 18) for summary in result["runs"]]
    left.set_yticks(range(len(runs)), names, parse_math=False)
    left.set_ylim(len(runs) - 0.5, -0.7)
    left.margins(x=0.25)
    left.set_xlabel("last step, 95 % interval")
    right.set_xlabel("seconds of training")
    right.set_ylabel("validation accuracy")
    right.set_xlim(left=0)
    shown = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
    left.xaxis.set_major_formatter(shown)
    right.yaxis.set_major_formatter(shown)
    for axes in (left, right):
        style_axes(axes)
    return figure


def write_plot(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG, atomically.

    Raises:
        InputError: the file name does not end in .png, or its folder does not exist.
        RunError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {str(path)!r}: must end in .png.")
    folder = expand_home(path).parent
    if not folder.is_dir():
        raise InputError(f"--out {str(path)!r}: there is no folder {str(folder)!r}; make it, or name another.")
    RunFolder(folder).write_figure(path.name, figure)


def _pairs(runs: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every two runs whose last step scored the same images, compared image by image."""
    pairs = []
    for (one, a), (other, b) in combinations(zip(names, runs, strict=True), 2):
        split = a.splits[-1]
        if split == b.splits[-1] and a.class_names == b.class_names and same_images(a, b, split):
            found = compare_paired(*(final_evaluation(run.evaluations[split]) for run in (a, b)))
            pair = {"first": one, "second": other, **asdict(found), "images_to_settle": found.images_to_settle}
            pairs.append(pair)
    return pairs


def _pair_table(pairs: Sequence[dict[str, Any]]) -> Table:
    """Differences at the last step; at most as many as fit a screen, the clearest first."""
    table = plain_table("last step, same images", figures=("points", "only one right", "p", "images to settle"))
    for pair in sorted(pairs, key=lambda pair: pair["p_value"])[:_MOST_PAIRS]:
        needed = pair["images_to_settle"]
        table.add_row(
            Text(f"{pair['second']} - {pair['first']}"),
            f"{100 * pair['difference']:+.2f}",
            f"{pair['only_second']:,} / {pair['only_first']:,}",
            f"{pair['p_value']:.2g}",
            "-" if needed is None else f"{needed:,}",
        )
    return table


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names if they are unique, else full paths."""
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _summary(run: RunRecord, name: str) -> dict[str, Any]:
    speeds = [row["images_per_s"] for row in run.result.history if row["images_per_s"]] or [0.0]
    return {
        "run": name,
        "folder": str(run.folder),
        "backbone": run.config.model.backbone,
        "size": run.config.data.size,
        "seed": run.config.seed,
        "seconds": sum(run.result.seconds.values()),
        "images_per_s": median(speeds),
        "steps": [{**asdict(step), "interval": list(step.interval)} for step in run.result.steps],
    }


def _accuracies(runs: Sequence[dict[str, Any]]) -> Table:
    table = plain_table("run", "step", figures=("accuracy", "95 % interval", "time", "images/s"))
    for number, run in enumerate(runs):
        if number:
            table.add_row()
        about = (
            Text(run["run"], style="bold"),
            Text(f"{Path(run['backbone']).name}, {run['size']} px", style="dim"),
            Text(f"seed {run['seed']}, {clock(run['seconds'])} in all", style="dim"),
        )
        for line, step in zip_longest(about, run["steps"]):
            cells = _cells(step) if step else ("",) * 5
            table.add_row(line or "", *cells)
    return table


def _cells(step: dict[str, Any]) -> tuple[Text | str, ...]:
    speed = step["images_per_s"]
    return (
        Text(step["name"]),
        percent(step["accuracy"]),
        interval(step["interval"]),
        clock(step["seconds"]),
        "" if speed is None else rate(speed),
    )


def _differences(result: dict[str, Any]) -> Table:
    table = plain_table("what differs")
    for run in result["runs"]:
        table.add_column(Text(run["run"]), overflow="fold")
    for key, values in result["differences"].items():
        table.add_row(key, *(Text("-" if value is None else str(value)) for value in values))
    return table
