"""What a run found, as the files of its run folder: curves, history, predictions, plots, `result.json`."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import Evaluation
from kbaseline.report import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.run_folder import RunFolder


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


def write_curves(folder: RunFolder, curves: Mapping[str, tuple[LRCurve, float | None]]) -> None:
    """`lr_find.csv` and `lr_find.png`: every stage's sweep, and the rate that was trained at."""
    folder.write_csv(
        "lr_find.csv", [{"stage": name, **row} for name, (curve, _) in curves.items() for row in curve.rows()]
    )
    panels = [
        {
            "title": name,
            "lrs": curve.lrs,
            "losses": curve.losses,
            "smoothed": curve.smoothed,
            "suggestions": curve.suggestions(),
            "chosen": chosen,
        }
        for name, (curve, chosen) in curves.items()
    ]
    folder.write_figure("lr_find.png", plot_lr_find(panels))


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


def environment() -> dict[str, Any]:
    """Versions, device and processor count that figures were measured with."""
    import jax

    packages = ("kbaseline", "keras", "jax", "jaxlib", "numpy", "tensorflow-datasets")
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
    }
