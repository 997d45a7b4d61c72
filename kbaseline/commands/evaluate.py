"""Evaluates a finished run on its saved predictions, or on the labelled images of another source."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config, DataConfig
from kbaseline.config.splits import ALL
from kbaseline.console.format import file_name
from kbaseline.data.prepare import load_labelled
from kbaseline.data.sources.csv_table import column_names
from kbaseline.data.sources.registry import absolute_source
from kbaseline.devices.environment import environment, versions
from kbaseline.errors import InputError
from kbaseline.metrics import Evaluation, PairedComparison, compare_paired, evaluate_predictions, final_evaluation
from kbaseline.render.plots import plot_confusion
from kbaseline.runs.leaks import accuracy_without
from kbaseline.runs.record import RunRecord, fitted_temperatures, read_run
from kbaseline.storage.run_folder import RunFolder

EVALUATIONS = "evaluations"
"""Folder in a run folder for its evaluations of other sources."""

READING = ("image_column", "label_column", "split_column", "on_bad_image", "data_dir", "cache_dir")
"""Keys of `data` that may be set for another source; the others belong to the network."""


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The evaluation of a run on a set of images.

    Attributes:
        run: the run folder.
        source: source of the images.
        split: split of the source.
        evaluations: by kind of prediction: `plain`, `tta` or both.
        seconds: duration of each kind of prediction; empty for predictions saved by the run.
        skipped: one line for each unreadable image.
        environment: versions, and the devices if images were predicted.
        leaked: rows of the images that are known to have a near-duplicate in an earlier split of the run.
        seen_in_training: whether some of these images are known to have been used for training.
    """

    run: Path
    source: str
    split: str
    evaluations: Mapping[str, Evaluation]
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=versions)
    seen_in_training: bool = False
    leaked: Sequence[int] = ()

    @property
    def last(self) -> Evaluation:
        """The evaluation with test-time augmentation if there is one, else the plain one."""
        return final_evaluation(self.evaluations)

    @property
    def paired(self) -> PairedComparison | None:
        """Test-time augmentation against plain, or None if only one was evaluated."""
        if len(self.evaluations) < 2:
            return None
        return compare_paired(self.evaluations["plain"], self.evaluations["tta"])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python, for `evaluation.json`."""
        return {
            "run": str(self.run),
            "source": self.source,
            "split": self.split,
            "class_names": list(self.last.class_names),
            "figures": {kind: one.to_dict() for kind, one in self.evaluations.items()},
            "tta_against_plain": asdict(self.paired) if self.paired else None,
            "seconds": dict(self.seconds),
            "skipped": list(self.skipped),
            "seen_in_training": self.seen_in_training,
            "near_duplicates": {
                "images": len(self.leaked),
                "accuracy_without": {
                    kind: accuracy_without(one, self.leaked) for kind, one in self.evaluations.items()
                },
            },
            "environment": dict(self.environment),
        }


def evaluate_run(
    folder: Path,
    source: str | None = None,
    split: str | None = None,
    tta: bool | None = None,
    out: Path | None = None,
    console: Console | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[EvaluationReport, Path | None]:
    """Evaluates a finished run, and writes the report if a source or `out` is given.

    Args:
        folder: the run folder.
        source, split, tta, console, overrides: see `evaluate_source`; without a source, see `evaluate_kept`.
        out: see `write_evaluation`.

    Returns:
        The report, and the folder it was written to or None.

    Raises:
        InputError, RunError: as those three functions.
    """
    run = read_run(folder)
    if source or out:
        RunFolder.check(out, run.folder / EVALUATIONS)
    if source is None:
        if overrides:
            raise InputError(f"--set {next(iter(overrides))}: changes how a source is read; name the source too.")
        report = evaluate_kept(run, split, tta)
    else:
        report = evaluate_source(run, source, split, tta, console, overrides)
    return report, write_evaluation(report, out) if source or out else None


def evaluate_kept(run: RunRecord, split: str | None = None, tta: bool | None = None) -> EvaluationReport:
    """Scores the predictions that a run saved, without its model.

    Args:
        run: the run.
        split: `valid` or `test`; None for test if the run has it besides validation, else valid.
        tta: True for plain and augmented predictions, False for plain only; None for all that were saved.

    Raises:
        InputError: the run did not save these predictions.
    """
    chosen = split or run.splits[-1]
    if chosen not in run.splits:
        words = ["kbaseline", "evaluate", str(run.folder), run.config.data.source, "--split", chosen]
        remedy = f"to predict it, name the source: {shlex.join(words)}"
        if chosen not in (ALL, "train", *run.result.data.images):
            remedy = "the run had no such split; name a source that has one"
        raise InputError(
            f"run {str(run.folder)!r}: has saved predictions of {' and '.join(run.splits)}, not of {chosen}; {remedy}."
        )
    kept = run.evaluations[chosen]
    if tta and "tta" not in kept:
        raise InputError(f"run {str(run.folder)!r}: has no predictions with test-time augmentation; omit --tta.")
    wanted = {kind: evaluation for kind, evaluation in kept.items() if kind == "plain" or tta is not False}
    leaked = (run.result.leaked or {}).get(chosen, [])
    seen = run.config.data.trains_on(chosen)
    return EvaluationReport(run.folder, run.config.data.source, chosen, wanted, seen_in_training=seen, leaked=leaked)


def evaluate_source(
    run: RunRecord,
    source: str,
    split: str | None = None,
    tta: bool | None = None,
    console: Console | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EvaluationReport:
    """Predicts the images of a source with a run's network, and scores the predictions.

    Args:
        run: the run.
        source: `folder:PATH`, `tfds:NAME` or the like, with the class names of the run.
        split: see `load_labelled`.
        tta: True for plain and augmented predictions, False for plain only; None as the run was configured.
        console: where to show progress; None shows nothing.
        overrides: dotted key -> value, of the keys in `READING`. The run's columns count where the source has them.

    Raises:
        DataError, DownloadError, RunError: as `load_labelled`.
        InputError: the model cannot be loaded, or `tta` is true and the run's configuration turns it off.
    """
    if tta and run.config.tta is None:
        raise InputError(f"run {str(run.folder)!r}: is without test-time augmentation; omit --tta.")
    settings = _settings(run.config, source, overrides or {})
    images = load_labelled(settings, run.class_names, split, console, image_size=run.result.image_size)
    # Keras takes seconds to import, and saved predictions are scored without it.
    from kbaseline.runs.run import load

    # Scores are of the probabilities as predicted, like those that the run saved; calibration is one of them.
    saved = replace(load(run.folder), doubt=None)
    fitted = fitted_temperatures(run.evaluations["valid"], run.config.data)
    seconds, evaluations = {}, {}
    for kind in ("plain", "tta") if tta is not False and run.config.tta else ("plain",):
        begin = time.perf_counter()
        probabilities = saved.predict(images.images, tta=kind == "tta")
        seconds[kind] = time.perf_counter() - begin
        evaluations[kind] = evaluate_predictions(
            probabilities, images.labels, run.class_names, temperature=fitted.get(kind)
        )
    seen = images.split in (ALL, "train") and absolute_source(source) == absolute_source(run.config.data.source)
    return EvaluationReport(run.folder, source, images.split, evaluations, seconds, images.skipped, environment(), seen)


def write_evaluation(report: EvaluationReport, out: Path | None) -> Path:
    """Writes `evaluation.json` and `confusion.png` to a new folder and returns it.

    Args:
        report: the report to write.
        out: the folder, new or empty; None for a new one in `evaluations/` of the run folder.

    Raises:
        InputError: the folder is not empty, or cannot be created.
        RunError: it cannot be written to.
    """
    name = file_name(f"{report.source.rstrip('/')}-{report.split}")
    folder = RunFolder.create(out, name, under=report.run / EVALUATIONS)
    folder.write_figure("confusion.png", plot_confusion(report.last.confusion, report.last.class_names))
    folder.write_json("evaluation.json", report.to_dict())
    return folder.path


def _settings(config: Config, source: str, overrides: Mapping[str, Any]) -> DataConfig:
    """How the images of a source are read: as the run's own, but for the columns of another table."""
    if others := sorted(set(overrides) - {f"data.{key}" for key in READING}):
        raise InputError(f"--set {others[0]}: the run decides it; set nothing but data.{', data.'.join(READING)}.")
    changes: dict[str, Any] = {"data.source": source}
    if (full := absolute_source(source)) != absolute_source(config.data.source):
        there = column_names(Path(full.removeprefix("csv:")))
        columns = ("image_column", "label_column", "split_column")
        changes |= {f"data.{key}": None for key in columns if getattr(config.data, key) not in there}
    return load_config(config, {**changes, **overrides}).data
