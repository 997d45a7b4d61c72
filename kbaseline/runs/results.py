"""What a run found, as the files of its run folder: curves, history, predictions, plots, `result.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.table import Table
from rich.text import Text

from kbaseline.config.schema import Config
from kbaseline.console.format import clock, percent, plain_table
from kbaseline.data import ImageData
from kbaseline.devices.xla import environment
from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import Evaluation
from kbaseline.render.plots import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.runs.record import read_run
from kbaseline.storage.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions of one split and their figures.

    Attributes:
        labels: int `(number,)`.
        probabilities: float32 `(number, classes)` by kind: `plain` and, if asked for, `tta`.
        figures: the figures of each.
    """

    labels: np.ndarray
    probabilities: Mapping[str, np.ndarray]
    figures: Mapping[str, Evaluation]

    @property
    def last(self) -> Evaluation:
        """The figures of the last rung."""
        return self.figures.get("tta", self.figures["plain"])


@dataclass(frozen=True, eq=False)
class Sweep:
    """A stage's learning-rate sweep.

    Attributes:
        curve: what it saw.
        suggestions: rule -> rate; empty if the curve is one that suggests nothing.
        chosen: the rate trained at, or None.
    """

    curve: LRCurve
    suggestions: Mapping[str, float]
    chosen: float | None = None

    def panel(self, title: str) -> dict[str, Any]:
        """What `plot_lr_find` draws."""
        return {
            "title": title,
            "lrs": self.curve.lrs,
            "losses": self.curve.losses,
            "smoothed": self.curve.smoothed,
            "suggestions": self.suggestions,
            "chosen": self.chosen,
        }


@dataclass(frozen=True)
class BaselineResult:
    """What a run found; `run_baseline` returns it, and reads it again from the folder of a finished run.

    >>> from rich.console import Console
    >>> from kbaseline import run_baseline
    >>> result = run_baseline(resume="runs/quickstart", console=Console(quiet=True))
    >>> result.accuracy == result.tta_accuracy
    True
    >>> [row["stage"] for row in result.history]
    ['head', 'head', 'head', 'finetune', 'finetune', 'finetune']

    Attributes:
        accuracy: 0 to 1, as every accuracy here, of the last rung: with test-time augmentation where the recipe has
            it, else of the last stage. On the test split if the data has one besides validation, else on validation.
        stages: validation accuracy after each stage, by name, in the order they were trained.
        tta_accuracy: validation accuracy with test-time augmentation, or None.
        test_accuracy: accuracies on a test split of its own, scored once: `plain` and, if asked for, `tta`; or None.
        suggested_lrs: the finder's suggestions, stage -> rule -> rate; no rules where the curve suggests nothing.
        history: one row an epoch: stage, epoch (from 1), train_loss and valid_loss (mean cross-entropy in nats),
            accuracy (on validation), images_per_s (in training), seconds (the epoch's, validation included).
        folder: the run folder.
        seconds: wall-clock seconds of each part: data, model, every sweep, stage and augmented prediction.
    """

    accuracy: float
    stages: dict[str, float]
    tta_accuracy: float | None
    test_accuracy: dict[str, float] | None
    suggested_lrs: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    folder: Path
    seconds: dict[str, float]

    @classmethod
    def of(
        cls,
        stages: dict[str, float],
        outcomes: Mapping[str, Outcome],
        sweeps: Mapping[str, Sweep],
        history: list[dict[str, Any]],
        folder: Path,
        seconds: dict[str, float],
    ) -> Self:
        """Draws up the result; `outcomes` is by split, `valid` and perhaps `test`, `sweeps` by stage."""
        valid, test = outcomes["valid"], outcomes.get("test")
        return cls(
            accuracy=(test or valid).last.accuracy,
            stages=stages,
            tta_accuracy=valid.figures["tta"].accuracy if "tta" in valid.figures else None,
            test_accuracy={kind: figures.accuracy for kind, figures in test.figures.items()} if test else None,
            suggested_lrs={name: dict(sweep.suggestions) for name, sweep in sweeps.items()},
            history=history,
            folder=folder,
            seconds=seconds,
        )


def accuracy_by_step(
    stages: Mapping[str, float], outcomes: Mapping[str, Outcome], seconds: Mapping[str, float]
) -> list[tuple[str, float, float | None]]:
    """The ladder as (rung, accuracy 0 to 1, seconds or None): stages and TTA on validation, then the test split.

    Args:
        stages: validation accuracy after each stage.
        outcomes: by split, `valid` and perhaps `test`.
        seconds: of each stage and of each split's TTA, by the names they have in `result.json`.
    """
    rungs: list[tuple[str, float, float | None]] = [(name, stages[name], seconds[name]) for name in stages]
    for split, outcome in outcomes.items():
        prefix = "" if split == "valid" else f"{split} "
        if prefix:
            rungs.append((f"{prefix}plain", outcome.figures["plain"].accuracy, None))
        if "tta" in outcome.figures:
            rungs.append((f"{prefix}tta", outcome.figures["tta"].accuracy, seconds[f"{split} tta"]))
    return rungs


def accuracy_table(rungs: Sequence[tuple[str, float, float | None]]) -> Table:
    """The ladder of a run for the terminal.

    Args:
        rungs: (stage, accuracy 0 to 1, seconds or None), in the order they were accuracy_by_step; TTA last.
    """
    table = plain_table("stage", figures=("accuracy", "time"))
    for position, (stage, accuracy, seconds) in enumerate(rungs):
        style = "bold" if position == len(rungs) - 1 else ""
        table.add_row(Text(stage), percent(accuracy), clock(seconds), style=style)
    return table


def write_sweeps(folder: RunFolder, sweeps: Mapping[str, Sweep]) -> None:
    """`lr_find.csv` and `lr_find.png`: every stage's sweep, by the stage's name."""
    rows = [{"stage": name, **row} for name, sweep in sweeps.items() for row in sweep.curve.rows()]
    folder.write_csv("lr_find.csv", rows)
    folder.write_figure("lr_find.png", plot_lr_find([sweep.panel(name) for name, sweep in sweeps.items()]))


def read_result(folder: RunFolder) -> BaselineResult:
    """The result of a run that is finished. Raises `InputError` as `read_run` does."""
    stored = read_run(folder.path).result
    found = {name: stored[name] for name in BaselineResult.__dataclass_fields__ if name != "folder"}
    return BaselineResult(**found, folder=folder.path)


def summary(result: BaselineResult, data: ImageData, config: Config) -> dict[str, Any]:
    """What `result.json` says first: the result's figures, and the seed, batch and images they come from."""
    names = ("accuracy", "stages", "tta_accuracy", "test_accuracy", "suggested_lrs", "seconds")
    return {
        **{name: getattr(result, name) for name in names},
        "seed": config.seed,
        "batch_size": config.data.batch,
        "data": {
            "source": data.source,
            "class_names": list(data.class_names),
            "images": {name: len(split) for name, split in data.splits.items()},
            "size": data.size,
            "image_size": list(data.valid.images.shape[1:3]),
            "skipped": list(data.skipped),
        },
    }


def write_results(
    folder: RunFolder,
    outcomes: Mapping[str, Outcome],
    history: list[dict[str, Any]],
    applied: list[dict[str, Any]],
    summary: Mapping[str, Any],
) -> None:
    """`history.csv`, `predictions.npz`, the plots and `result.json`.

    Args:
        folder: where to.
        outcomes: by split, `valid` and perhaps `test`.
        history: one row an epoch.
        applied: one row a step.
        summary: what `result.json` holds besides figures, history and environment.
    """
    folder.write_csv("history.csv", history)
    names = outcomes["valid"].last.class_names
    arrays = {f"{split}_labels": outcome.labels for split, outcome in outcomes.items()}
    arrays |= {
        f"{split}_{kind}_probabilities": probabilities
        for split, outcome in outcomes.items()
        for kind, probabilities in outcome.probabilities.items()
    }
    folder.write_npz("predictions.npz", class_names=np.array(names), **arrays)
    folder.write_figure("schedule.png", plot_schedule(applied))
    tta = outcomes["valid"].figures.get("tta")
    folder.write_figure("history.png", plot_history(history, tta.accuracy if tta else None))
    folder.write_figure("confusion.png", plot_confusion(outcomes.get("test", outcomes["valid"]).last.confusion, names))
    figures = {
        split: {kind: evaluation.to_dict() for kind, evaluation in outcome.figures.items()}
        for split, outcome in outcomes.items()
    }
    folder.write_json("result.json", {**summary, "figures": figures, "history": history, "environment": environment()})
