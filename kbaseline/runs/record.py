"""A finished run, read back from its folder: configuration, figures and predictions, but not the model.

Loads neither Keras nor JAX.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config
from kbaseline.config.splits import SPLITS
from kbaseline.errors import InputError, one_line
from kbaseline.storage.npz import read_arrays

_Share = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0, le=1e12)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Epoch(_Part):
    stage: str
    accuracy: _Share
    images_per_s: _Amount
    seconds: _Amount


class _Data(_Part):
    source: str
    images: dict[str, Annotated[int, Field(ge=1, le=10**12)]]
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=10**5)]], Field(min_length=2, max_length=2)] | None = None
    skipped: list[str]


class _Result(_Part):
    """What is read of `result.json`; it may hold more."""

    accuracy: _Share
    stages: dict[str, _Share]
    tta_accuracy: _Share | None
    test_accuracy: dict[Literal["plain", "tta"], _Share] | None
    suggested_lrs: dict[str, dict[str, _Amount]]
    seconds: dict[str, _Amount]
    history: Annotated[list[_Epoch], Field(min_length=1)]
    seed: int
    data: _Data
    environment: dict[str, str | int | None]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not set(self.stages) <= {row.stage for row in self.history}:
            raise ValueError("a stage has no epoch in its history")
        if not {"valid", *(["test"] if self.test_accuracy else [])} <= set(self.data.images):
            raise ValueError("a split that was scored has no images")
        return self


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
    display_name = f"run {str(folder)!r}"
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{display_name}: no such folder; give the folder of a finished run, for instance runs/baseline."
        )
    for name in ("config.yaml", "result.json", "predictions.npz"):
        if not (folder / name).is_file():
            raise InputError(f"{display_name}: holds no {name}, so it is no run folder, or its run has not finished.")
    config = load_config(folder / "config.yaml")
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        _Result.model_validate(result)
        names, predictions = _read_predictions(folder / "predictions.npz")
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        missing = sorted({".".join(map(str, one["loc"])) for one in found if one["type"] == "missing"})
        if missing:
            raise InputError(
                f"{display_name}: result.json lacks {', '.join(missing)}; another version wrote it. Run again."
            ) from None
        where = ".".join(map(str, found[0]["loc"])) or "it"
        raise InputError(
            f"{display_name}: result.json is damaged ({where}: {found[0]['msg'].removeprefix('Value error, ')}). Run "
            "it again."
        ) from None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        reason = one_line(error)
        raise InputError(
            f"{display_name}: its files cannot be read ({reason}); they are damaged. Run it again."
        ) from None
    return FinishedRun(folder, config, result, names, predictions)


def _read_predictions(path: Path) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    arrays = read_arrays(path)
    names = tuple(str(name) for name in np.atleast_1d(arrays["class_names"]))
    predictions = {
        split: Predictions(
            arrays[f"{split}_labels"],
            {kind: arrays[key] for kind in ("plain", "tta") if (key := f"{split}_{kind}_probabilities") in arrays},
        )
        for split in SPLITS
        if f"{split}_labels" in arrays
    }
    if "valid" not in predictions or any("plain" not in found.probabilities for found in predictions.values()):
        raise ValueError("predictions.npz lacks the plain predictions of a split")
    return names, predictions
