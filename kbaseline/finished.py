"""A finished run, read back from its folder: configuration, figures and predictions, but not the model.

Loads neither Keras nor JAX.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kbaseline.config import Config, load_config
from kbaseline.errors import InputError, one_line

SPLITS = ("valid", "test")
"""The splits whose predictions a run keeps, if it has them."""

_NEEDED = {"stages", "tta_accuracy", "test_accuracy", "seconds", "history", "data.images", "data.flip_safe"}
"""What is read of `result.json`."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a run predicted on one of its splits.

    Attributes:
        labels: int `(number,)`.
        probabilities: float32 `(number, classes)` by kind: `plain` and, if the run had it, `tta`.
    """

    labels: np.ndarray
    probabilities: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder whose run has come to its end.

    Attributes:
        folder: where it is.
        config: what it ran with.
        result: what `result.json` holds.
        class_names: the name of each label.
        predictions: by split.
    """

    folder: Path
    config: Config
    result: dict[str, Any]
    class_names: tuple[str, ...]
    predictions: dict[str, Predictions]


def read_run(folder: Path) -> FinishedRun:
    """Reads a run folder.

    Raises:
        InputError: there is no such folder, it is no finished run's, or one of its files cannot be read.
    """
    noun = f"run {str(folder)!r}"
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"{noun}: no such folder; give the folder of a finished run, for instance runs/baseline.")
    for name in ("config.yaml", "result.json", "predictions.npz"):
        if not (folder / name).is_file():
            raise InputError(f"{noun}: holds no {name}, so it is no run folder, or its run has not finished.")
    config = load_config(folder / "config.yaml")
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        names, predictions = _read_predictions(folder / "predictions.npz")
        missing = _NEEDED - {*result, *(f"data.{name}" for name in result.get("data", {}))}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise InputError(f"{noun}: its files cannot be read ({reason}); they are damaged. Run it again.") from None
    if missing:
        raise InputError(
            f"{noun}: result.json lacks {', '.join(sorted(missing))}; another version wrote it. Run again."
        )
    return FinishedRun(folder, config, result, names, predictions)


def _read_predictions(path: Path) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    with np.load(path) as arrays:
        predictions = {
            split: Predictions(
                arrays[f"{split}_labels"],
                {
                    kind: arrays[key]
                    for kind in ("plain", "tta")
                    if (key := f"{split}_{kind}_probabilities") in arrays.files
                },
            )
            for split in SPLITS
            if f"{split}_labels" in arrays.files
        }
        return tuple(str(name) for name in arrays["class_names"]), predictions
