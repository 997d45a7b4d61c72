"""The record of a finished run: `result.json` and the predictions, without importing Keras or JAX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic refuses those of typing before Python 3.12
    Self,
)

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

from kbaseline.config.load import load_config
from kbaseline.config.paths import expand_home
from kbaseline.config.schema import Config, DataConfig
from kbaseline.config.splits import SPLITS
from kbaseline.console.format import interval, percent, shortened
from kbaseline.errors import InputError, one_line
from kbaseline.metrics import Evaluation, accuracy_interval, evaluate_predictions
from kbaseline.render.notebook import Rates, Table, fragment, page_html, paragraphs
from kbaseline.storage.npz import read_arrays
from kbaseline.storage.run_folder import RunFolder

KINDS = ("plain", "tta")
"""Kinds of prediction: of the plain image, and with test-time augmentation."""

PLAN = "repeats.json"
"""File that says that a folder holds the runs of `run_seeds` or `run_folds`, which of the two, and how many."""

SUMMARY = "summary.json"
"""File beside the runs of `run_seeds` or `run_folds`, with their one number."""

MAJORITY, PROBE = "majority class", "linear probe"
"""Names of the steps before training."""

_Fraction = Annotated[float, Field(ge=0, le=1)]
_NonNegative = Annotated[float, Field(ge=0, le=1e12)]
_Kind = Annotated[str, Field(pattern="^(plain|tta)$")]
_Loss = Annotated[float, Field(allow_inf_nan=True)] | None


class Epoch(TypedDict):
    """One epoch: `epoch` counts from 1, losses are mean cross-entropy in nats, accuracy is on validation.

    A stage without training has one row, of epoch 0.
    """

    __pydantic_config__ = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # type: ignore[misc]

    stage: str
    epoch: NotRequired[int]
    train_loss: NotRequired[_Loss]
    valid_loss: NotRequired[_Loss]
    accuracy: _Fraction
    images_per_s: _NonNegative
    seconds: _NonNegative


class RunFloor(BaseModel):
    """What a run must beat, measured on validation before training.

    Attributes:
        majority: accuracy of the most frequent training class as the answer to every image, 0 to 1.
        probe: accuracy of a linear probe on the frozen backbone's features, or None if there is none.
        probe_loss: its mean cross-entropy, in nats.
        train_images: images it was fitted to, all or a stratified part of them.
        valid_images: images it was scored on, likewise.
        note: why there is no probe.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    majority: _Fraction
    probe: _Fraction | None = None
    probe_loss: _NonNegative | None = None
    train_images: int = 0
    valid_images: int = 0
    note: str = ""

    @property
    def best(self) -> tuple[str, float]:
        """Name and accuracy of the better of the two."""
        found = [(MAJORITY, self.majority)] + ([] if self.probe is None else [(PROBE, self.probe)])
        return max(found, key=lambda one: one[1])


class DataSummary(BaseModel):
    """The data of a run: `source`, `class_names`, `images` by split, sizes, and one line per skipped image.

    `scored` holds `Split.identity` by split, of those that were scored; runs of earlier versions lack it.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    source: str
    class_names: list[str] = []
    images: dict[str, Annotated[int, Field(ge=1, le=10**12)]]
    size: int | None = None
    image_size: Annotated[list[Annotated[int, Field(ge=1, le=10**5)]], Field(min_length=2, max_length=2)] | None = None
    skipped: list[str]
    scored: dict[str, str] = {}


@dataclass(frozen=True)
class Step:
    """One line of a run's accuracy by step: the floor, a stage, test-time augmentation, a score on the test split.

    Attributes:
        name: name of the stage, or `majority class`, `linear probe`, `tta`, `test plain`, `test tta`.
        accuracy: 0 to 1.
        images: number of images scored.
        seconds: duration of the step, or None if it was measured with another step.
        images_per_s: training speed, median over the stage's epochs; None for a prediction.
    """

    name: str
    accuracy: float
    images: int
    seconds: float | None = None
    images_per_s: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy; see `metrics.accuracy_interval`."""
        return accuracy_interval(round(self.accuracy * self.images), self.images)


class RunResult(BaseModel):
    """The result of a run, returned by `run_baseline`; `resume_run` reads it from the folder of a finished run.

    >>> from rich.console import Console
    >>> from kbaseline import resume_run
    >>> result = resume_run("runs/quickstart", console=Console(quiet=True))
    >>> result.accuracy == result.tta_accuracy
    True
    >>> [row["stage"] for row in result.history]
    ['head', 'head', 'head', 'finetune', 'finetune', 'finetune']

    Attributes:
        accuracy: final accuracy, 0 to 1 as every accuracy here: with test-time augmentation if the recipe has it,
            else of the model that is kept. On the test split if the data has one besides validation, else on
            validation.
        floor: what the run must beat, or None if it was not measured.
        leaked: split -> rows of its images that have a near-duplicate in an earlier split; None if not looked for.
        kept: the step after which the model was kept, with `keep: best`; None for the last stage's.
        stages: validation accuracy after each stage, by name, in training order.
        tta_accuracy: validation accuracy with test-time augmentation, or None.
        dropped_tta: what it was where `keep: best` left test-time augmentation out, because plain predictions are
            better; else None.
        test_accuracy: accuracy on a separate test split, scored once: `plain` and, if configured, `tta`; or None.
        suggested_lrs: the finder's suggestions, stage -> rule -> rate; empty for an unusable curve.
        seconds: wall-clock seconds of each part: data, model, every sweep, stage and augmented prediction.
        seed: the random seed.
        batch_size: images per step, over all devices.
        data: the source, its classes, and the number of images in each split.
        figures: scores, split -> kind of prediction -> `Evaluation.to_dict()`.
        history: one row per epoch: stage, epoch (from 1), train_loss and valid_loss (mean cross-entropy in nats),
            accuracy (on validation), images_per_s (in training), seconds (of the epoch, including validation).
        environment: versions, device and processor count.
        folder: the run folder.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    accuracy: _Fraction
    floor: RunFloor | None = None
    leaked: dict[str, list[Annotated[int, Field(ge=0)]]] | None = None
    kept: str | None = None
    stages: dict[str, _Fraction]
    tta_accuracy: _Fraction | None
    dropped_tta: _Fraction | None = None
    test_accuracy: dict[_Kind, _Fraction] | None
    suggested_lrs: dict[str, dict[str, _NonNegative]]
    seconds: dict[str, _NonNegative]
    seed: int
    batch_size: int | None = None
    data: DataSummary
    figures: dict[str, dict[str, Any]] = {}
    history: Annotated[list[Epoch], Field(min_length=1)]
    environment: dict[str, str | int | None]
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if not set(self.stages) <= {row["stage"] for row in self.history}:
            raise ValueError("a stage has no epoch in the history")
        if not {"valid", *(["test"] if self.test_accuracy else [])} <= set(self.data.images):
            raise ValueError("a split that was scored has no images")
        if any(row >= self.data.images.get(split, 0) for split, rows in (self.leaked or {}).items() for row in rows):
            raise ValueError("a near-duplicate is no image of its split")
        return self

    @property
    def final_valid_accuracy(self) -> float:
        """Validation accuracy of the kept model, with test-time augmentation if the recipe has it."""
        return self.kept_step.accuracy if self.tta_accuracy is None else self.tta_accuracy

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that every image is fitted to before the network, in training and after."""
        if self.data.image_size is None:
            raise InputError(f"run {str(self.folder)!r}: result.json has no data.image_size; read it with read_run.")
        height, width = self.data.image_size
        return height, width

    @property
    def steps(self) -> list[Step]:
        """Accuracy by step: floor, stages and test-time augmentation on validation, then the test split."""
        images, seconds = self.data.images, self.seconds
        steps = []
        if self.floor is not None:
            steps.append(Step(MAJORITY, self.floor.majority, images["valid"]))
            if self.floor.probe is not None:
                steps.append(Step(PROBE, self.floor.probe, self.floor.valid_images, seconds.get(PROBE)))
        for stage, accuracy in self.stages.items():
            speed = median(row["images_per_s"] for row in self.history if row["stage"] == stage)
            steps.append(Step(stage, accuracy, images["valid"], seconds.get(stage), speed or None))
        if self.tta_accuracy is not None:
            steps.append(Step("tta", self.tta_accuracy, images["valid"], seconds.get("valid tta")))
        for kind, accuracy in (self.test_accuracy or {}).items():
            spent = seconds.get("test tta") if kind == "tta" else None
            steps.append(Step(f"test {kind}", accuracy, images["test"], spent))
        return steps

    @property
    def kept_step(self) -> Step:
        """The step on validation whose network is the run's: the kept one, or else the last stage."""
        steps = {step.name: step for step in self.steps}
        return steps.get(self.kept or "") or steps[list(self.stages)[-1]]

    @property
    def final_step(self) -> Step:
        """The step whose accuracy is the run's: of the test split, of test-time augmentation, or else the kept one."""
        return self.steps[-1] if self.test_accuracy or self.tta_accuracy is not None else self.kept_step

    def __repr__(self) -> str:
        last, counts = self.final_step, self.data.images
        reached = ", ".join(f"{step.name} {percent(step.accuracy)}" for step in self.steps[:8])
        rates = "; ".join(f"{name}: {Rates(found)!r}" for name, found in list(self.suggested_lrs.items())[:4])
        return "\n".join(
            [
                f"BaselineResult of {shortened(str(self.folder), 120)}: accuracy {percent(self.accuracy)} "
                f"(95 % interval {interval(last.interval)}) on {last.images:,} images",
                f"by step: {shortened(reached, 300)}",
                f"suggested rates: {shortened(rates or 'none', 300)}",
                f"data: {shortened(self.data.source, 120)}, {', '.join(f'{k} {n:,}' for k, n in counts.items())}",
            ]
        )

    __str__ = __repr__

    def steps_table(self) -> Table:
        """Accuracy by step, with its interval, as a table that shows itself."""
        return Table(
            {"step": step.name, "accuracy": step.accuracy, "95 % interval": interval(step.interval)}
            | {"images": step.images, "seconds": step.seconds}
            for step in self.steps
        )

    def _repr_html_(self) -> str:
        first, *_, last = repr(self).split("\n")
        rates = [{"stage": stage, **Rates(found).texts()} for stage, found in self.suggested_lrs.items()]
        try:
            page = page_html((self.folder / "report.html").read_text(encoding="utf-8"), "report.html")
        except OSError:
            page = ""
        found = f"<p>suggested rates</p>{Table(rates).html()}" if rates else ""
        return fragment(paragraphs(f"{first}\n{last}"), self.steps_table().html(), found, page)

    def write(self, folder: RunFolder) -> None:
        """Writes `result.json`. Raises `RunError` as `RunFolder.atomic` does."""
        folder.write_json("result.json", self.model_dump())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads `result.json`.

        Raises:
            InputError: it was written by another version, or is damaged.
            OSError, ValueError, RecursionError: it cannot be read or is not JSON.
        """
        stored = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        try:
            return cls.model_validate({**stored, "folder": folder} if isinstance(stored, dict) else stored)
        except ValidationError as error:
            raise InputError(_damage_message(folder, error)) from None


BaselineResult = RunResult
"""Public name of `RunResult`."""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run, read from its folder.

    Attributes:
        folder: the run folder.
        config: its configuration.
        result: its result.
        class_names: names by label.
        arrays: the arrays of `predictions.npz`.
    """

    folder: Path
    config: Config
    result: RunResult
    class_names: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Evaluation]]:
        """Evaluations of the saved predictions: split -> kind -> `Evaluation`.

        The test split is calibrated with the temperatures fitted on validation, if that was not trained on.
        """
        scored: dict[str, dict[str, Evaluation]] = {}
        for split in self.splits:
            fitted = fitted_temperatures(scored["valid"], self.config.data) if scored else {}
            labels = self.arrays[f"{split}_labels"]
            scored[split] = {
                kind: evaluate_predictions(self.arrays[name], labels, self.class_names, temperature=fitted.get(kind))
                for kind in KINDS
                if (name := f"{split}_{kind}_probabilities") in self.arrays
            }
        return scored

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with saved predictions: `valid`, and `test` if the run had one."""
        return tuple(split for split in SPLITS if f"{split}_labels" in self.arrays)


def same_images(first: RunRecord, second: RunRecord, split: str) -> bool:
    """Whether two runs scored the same images of a split, in the same order."""
    if not all(split in run.splits for run in (first, second)):
        return False
    one, other = (run.arrays[f"{split}_labels"] for run in (first, second))
    if not np.array_equal(one, other):
        return False
    digests = [run.result.data.scored.get(split) for run in (first, second)]
    if None not in digests:
        return digests[0] == digests[1]
    # Of an earlier version: a hold-out sorted by class has equal labels, whichever images it has.
    return first.result.data.source == second.result.data.source and first.result.seed == second.result.seed


def accuracy_of_folds(folder: Path, config: Config) -> tuple[float, tuple[float, float]] | None:
    """What to expect of a run that trained on all images: accuracy and 95 % interval of the folds beside it, if any."""
    if config.data.holds_out:
        return None
    try:
        found = json.loads((folder.resolve().parent / SUMMARY).read_text(encoding="utf-8"))
        low, high = map(float, found["interval"])
        return (float(found["mean"]), (low, high)) if found["kind"] == "folds" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fitted_temperatures(by_kind: Mapping[str, Evaluation], data: DataConfig) -> dict[str, float]:
    """Temperature fitted on each kind of prediction of the validation images; none if they are trained on."""
    if not data.holds_out:
        return {}
    return {kind: evaluation.calibration.temperature for kind, evaluation in by_kind.items()}


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        InputError: the folder does not exist, holds no finished run, or one of its files cannot be read.
    """
    display_name = f"run {str(folder)!r}"
    folder = expand_home(folder)
    if not folder.is_dir():
        raise InputError(
            f"{display_name}: no such folder; give the folder of a finished run, for instance runs/baseline."
        )
    if (folder / PLAN).is_file():
        runs = sorted(file.parent.name for file in folder.glob("*/result.json"))
        shown = str(folder / ("final" if "final" in runs else runs[0])) if runs else ""
        remedy = f"give one of them, for instance {shown!r}" if runs else "none is finished"
        raise InputError(f"{display_name}: holds several runs; {remedy}.")
    for name in ("config.yaml", "result.json", "predictions.npz"):
        if not (folder / name).is_file():
            raise InputError(f"{display_name}: has no {name}; it is not a run folder, or the run is not finished.")
    config = load_config(folder / "config.yaml")
    try:
        result = RunResult.read(folder)
        arrays = _read_predictions(folder / "predictions.npz")
        names = tuple(str(name) for name in np.atleast_1d(arrays["class_names"]))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{display_name}: its files cannot be read ({one_line(error)}). Run it again.") from None
    if result.data.image_size is None:  # written by the first versions, which fitted to a square
        data = result.data.model_copy(update={"image_size": [config.data.size] * 2})
        result = result.model_copy(update={"data": data})
    if result.tta_accuracy is None:  # also where `keep: best` left it out
        config = config.model_copy(update={"tta": None})
    return RunRecord(folder, config, result, names, arrays)


def _read_predictions(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)
    kept = [split for split in SPLITS if f"{split}_labels" in arrays]
    if "valid" not in kept or any(f"{split}_plain_probabilities" not in arrays for split in kept):
        raise ValueError("predictions.npz lacks the plain predictions of a split")
    return arrays


def _damage_message(folder: Path, error: ValidationError) -> str:
    """The first defect of a `result.json`, in one line."""
    display_name = f"run {str(folder)!r}"
    problems = error.errors(include_url=False, include_input=False)
    missing = sorted({".".join(map(str, one["loc"])) for one in problems if one["type"] == "missing"})
    if missing:
        return f"{display_name}: result.json lacks {', '.join(missing)}; it is from another version. Run it again."
    where = ".".join(map(str, problems[0]["loc"])) or "it"
    reason = problems[0]["msg"].removeprefix("Value error, ")
    return f"{display_name}: result.json is damaged ({where}: {reason}). Run it again."
