"""Writes the results of a run to its folder: curves, history, predictions, plots, `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from kbaseline.config.schema import Config
from kbaseline.console.format import clock, percent, plain_table
from kbaseline.data import ImageData
from kbaseline.devices.environment import environment
from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import Evaluation, final_evaluation
from kbaseline.render.plots import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.runs.record import DataSummary, RunFloor, RunResult, Step
from kbaseline.storage.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Sweep:
    """A stage's learning-rate sweep.

    Attributes:
        curve: loss against learning rate.
        suggestions: rule -> rate; empty for an unusable curve.
        chosen: the rate used in training, or None.
    """

    curve: LRCurve
    suggestions: Mapping[str, float]
    chosen: float | None = None

    def plot_data(self, title: str) -> dict[str, Any]:
        """The sweep as `plot_lr_find` takes it."""
        return self.curve.plot_data(title, self.suggestions, self.chosen)


def build_result(
    *,
    stages: dict[str, float],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    sweeps: Mapping[str, Sweep],
    history: list[Any],
    seconds: Mapping[str, float],
    data: ImageData,
    config: Config,
    folder: Path,
    floor: RunFloor | None = None,
    leaked: Mapping[str, list[int]] | None = None,
    kept: str | None = None,
    dropped_tta: float | None = None,
) -> RunResult:
    """The result of a finished run.

    Args:
        stages: validation accuracy after each stage, by name.
        evaluations: split -> kind of prediction -> evaluation; `valid`, and `test` if the data has one.
        sweeps: sweeps by stage.
        history: one row per epoch.
        seconds: seconds of each part of the run.
        data: the data of the run.
        config: the configuration of the run.
        folder: the run folder.
        floor: what the run must beat.
        leaked: split -> rows of its images that have a near-duplicate in an earlier split; None if not looked for.
        kept: the step whose model is kept; None for the last.
        dropped_tta: validation accuracy with the test-time augmentation that was left out; None if none was.
    """
    valid, test = evaluations["valid"], evaluations.get("test")
    return RunResult(
        accuracy=final_evaluation(test or valid).accuracy,
        floor=floor,
        leaked=None if leaked is None else dict(leaked),
        kept=kept,
        stages=stages,
        tta_accuracy=valid["tta"].accuracy if "tta" in valid else None,
        dropped_tta=dropped_tta,
        test_accuracy={kind: one.accuracy for kind, one in test.items()} if test else None,
        suggested_lrs={name: dict(sweep.suggestions) for name, sweep in sweeps.items()},
        seconds=dict(seconds),
        seed=config.seed,
        batch_size=config.data.batch,
        data=DataSummary(
            source=data.source,
            class_names=list(data.class_names),
            images={name: len(split) for name, split in data.splits.items()},
            size=data.size,
            image_size=list(data.image_size),
            skipped=list(data.skipped),
            scored={name: data.splits[name].identity for name in evaluations},
        ),
        figures={
            split: {kind: one.to_dict() for kind, one in by_kind.items()} for split, by_kind in evaluations.items()
        },
        history=history,
        environment=environment(),
        folder=folder,
    )


def write_results(
    folder: RunFolder,
    result: RunResult,
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    applied: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `history.csv`, `predictions.npz`, the plots and `result.json`.

    Args:
        folder: the run folder.
        result: the result of the run.
        evaluations: split -> kind of prediction -> evaluation; `valid`, and `test` if the data has one.
        applied: learning rate and momentum, one row per step.
    """
    shown = final_evaluation(evaluations.get("test", evaluations["valid"]))
    arrays: dict[str, np.ndarray] = {"class_names": np.array(shown.class_names)}
    for split, by_kind in evaluations.items():
        arrays[f"{split}_labels"] = by_kind["plain"].labels.astype(np.int32)
        for kind, evaluation in by_kind.items():
            arrays[f"{split}_{kind}_probabilities"] = evaluation.probabilities.astype(np.float32)
    folder.write_csv("history.csv", result.history)
    folder.write_npz("predictions.npz", **arrays)
    folder.write_figure("schedule.png", plot_schedule(applied))
    folder.write_figure("history.png", plot_history(result.history, result.tta_accuracy))
    folder.write_figure("confusion.png", plot_confusion(shown.confusion, shown.class_names))
    result.write(folder)


def write_sweeps(folder: RunFolder, sweeps: Mapping[str, Sweep]) -> None:
    """Writes the sweeps of all stages, by stage name, to `lr_find.csv` and `lr_find.png`."""
    rows = [{"stage": name, **row} for name, sweep in sweeps.items() for row in sweep.curve.rows()]
    folder.write_csv("lr_find.csv", rows)
    folder.write_figure("lr_find.png", plot_lr_find([sweep.plot_data(name) for name, sweep in sweeps.items()]))


def accuracy_table(steps: Sequence[Step], final: Step) -> Table:
    """A run's accuracy by step, as a table for the terminal; the step that counts is bold."""
    table = plain_table("step", figures=("accuracy", "time"))
    for step in steps:
        style = "bold" if step == final else ""
        table.add_row(Text(step.name), percent(step.accuracy), clock(step.seconds), style=style)
    return table
