"""A finished run judged: on the predictions it kept, or on the labelled images of another source."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config, DataConfig
from kbaseline.config.splits import ALL
from kbaseline.console.format import file_name
from kbaseline.data.prepare import load_labelled
from kbaseline.data.sources.csv_table import column_names
from kbaseline.data.sources.registry import full_source
from kbaseline.devices.xla import environment
from kbaseline.errors import InputError
from kbaseline.metrics import Evaluation, PairedComparison, compare_paired, evaluate_predictions, final
from kbaseline.render.plots import plot_confusion
from kbaseline.runs.record import RunRecord, read_run, temperatures
from kbaseline.storage.run_folder import RunFolder

READING = ("image_column", "label_column", "split_column", "on_bad_image", "data_dir", "cache_dir")
"""Keys of `data` that may be set for another source; the others belong to the network."""


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What a run is worth on some images.

    Attributes:
        run: the run's folder.
        source: where the images came from.
        split: which of its images they are.
        figures: by kind of prediction: `plain`, `tta` or both.
        seconds: what each kind of prediction took; empty where they were kept by the run.
        skipped: one line for each unreadable image that was left out.
        seen: whether the network was trained on some of these images, as far as is known.
    """

    run: Path
    source: str
    split: str
    figures: Mapping[str, Evaluation]
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seen: bool = False

    @property
    def last(self) -> Evaluation:
        """The figures with test-time augmentation, or the plain ones if there are no others."""
        return final(self.figures)

    @property
    def paired(self) -> PairedComparison | None:
        """Test-time augmentation against plain, or None where there is only one of them."""
        if len(self.figures) < 2:
            return None
        return compare_paired(self.figures["plain"], self.figures["tta"])

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, for `evaluation.json`."""
        return {
            "run": str(self.run),
            "source": self.source,
            "split": self.split,
            "class_names": list(self.last.class_names),
            "figures": {kind: found.to_dict() for kind, found in self.figures.items()},
            "tta_against_plain": asdict(self.paired) if self.paired else None,
            "seconds": dict(self.seconds),
            "skipped": list(self.skipped),
            "seen_in_training": self.seen,
            "environment": environment(),
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
    """Judges a finished run, and writes what it found if it predicted something or `out` says where to.

    Args:
        folder: the run's.
        source, split, tta, console, overrides: see `evaluate_kept` where there is no source, else `evaluate_source`.
        out: see `write_evaluation`.

    Returns:
        What was found, and the folder it was written to or None.

    Raises:
        InputError, RunError: as those three.
    """
    RunFolder.check(out)
    run = read_run(folder)
    if source is None:
        if overrides:
            raise InputError(f"--set {next(iter(overrides))}: changes how a source is read; name the source too.")
        found = evaluate_kept(run, split, tta)
    else:
        found = evaluate_source(run, source, split, tta, console, overrides)
    return found, write_evaluation(found, out) if source or out else None


def evaluate_kept(run: RunRecord, split: str | None = None, tta: bool | None = None) -> EvaluationReport:
    """Scores the predictions a run kept; needs no model.

    Args:
        run: the run.
        split: `valid` or `test`; None for test if the run had one besides validation, else valid.
        tta: with test-time augmentation beside plain, or plain alone; None for what there is.

    Raises:
        InputError: the run did not keep these predictions.
    """
    chosen = split or run.splits[-1]
    if chosen not in run.splits:
        raise InputError(
            f"run {str(run.folder)!r}: kept its predictions of {' and '.join(run.splits)}, not of {chosen}; to "
            f"predict others name their source: kbaseline evaluate {run.folder} {run.config.data.source} "
            f"--split {chosen}."
        )
    kept = run.evaluations[chosen]
    if tta and "tta" not in kept:
        raise InputError(f"run {str(run.folder)!r}: kept no predictions with test-time augmentation; leave --tta out.")
    wanted = {kind: found for kind, found in kept.items() if kind == "plain" or tta is not False}
    return EvaluationReport(run.folder, run.config.data.source, chosen, wanted)


def evaluate_source(
    run: RunRecord,
    source: str,
    split: str | None = None,
    tta: bool | None = None,
    console: Console | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EvaluationReport:
    """Has a run's network predict the images of a source, and scores that.

    Args:
        run: the run.
        source: `folder:PATH`, `tfds:NAME` or the like, with classes of the run's names.
        split: see `load_labelled`.
        tta: with test-time augmentation beside plain, or plain alone; None for what the run did.
        console: where to show progress; None shows nothing.
        overrides: dotted key -> value, of the keys in `READING`. The run's columns count where the source has them.

    Raises:
        DataError, DownloadError, RunError: as `load_labelled`.
        InputError: the model cannot be loaded, or test-time augmentation is asked for and the run had none.
    """
    if tta and run.config.tta is None:
        raise InputError(f"run {str(run.folder)!r}: its configuration has no test-time augmentation; leave --tta out.")
    images = load_labelled(_settings(run.config, source, overrides or {}), run.class_names, split, console)
    # Keras takes seconds to import; kept predictions are scored without.
    from kbaseline.runs.run import load

    saved = load(run.folder)
    fitted, seconds, figures = temperatures(run.evaluations["valid"]), {}, {}
    for kind in ("plain", "tta") if tta is not False and run.config.tta else ("plain",):
        begin = time.perf_counter()
        probabilities = saved.predict(images.images, tta=kind == "tta")
        seconds[kind] = time.perf_counter() - begin
        figures[kind] = evaluate_predictions(
            probabilities, images.labels, run.class_names, temperature=fitted.get(kind)
        )
    seen = images.split in (ALL, "train") and _same_source(source, run.config.data.source)
    return EvaluationReport(run.folder, source, images.split, figures, seconds, images.skipped, seen)


def write_evaluation(found: EvaluationReport, out: Path | None) -> Path:
    """Writes `evaluation.json` and `confusion.png` into a folder of their own and returns it.

    Args:
        found: what to write.
        out: the folder, absent or empty; None for a new one in `evaluations/` of the run.

    Raises:
        InputError: the folder holds something already, or cannot be made.
        RunError: it cannot be written to.
    """
    name = file_name(f"{found.source.rstrip('/')}-{found.split}")
    folder = RunFolder.create(out, name, under=found.run / "evaluations")
    folder.write_figure("confusion.png", plot_confusion(found.last.confusion, found.last.class_names))
    folder.write_json("evaluation.json", found.to_dict())
    return folder.path


def _settings(config: Config, source: str, overrides: Mapping[str, Any]) -> DataConfig:
    """How the images of a source are read: as the run's own, but for the columns of another table."""
    if others := sorted(set(overrides) - {f"data.{key}" for key in READING}):
        raise InputError(f"--set {others[0]}: the run decides it; set nothing but data.{', data.'.join(READING)}.")
    changes: dict[str, Any] = {"data.source": source}
    if not _same_source(source, config.data.source):
        there = column_names(Path(full_source(source).removeprefix("csv:")).expanduser())
        columns = ("image_column", "label_column", "split_column")
        changes |= {f"data.{key}": None for key in columns if getattr(config.data, key) not in there}
    return load_config(config, {**changes, **overrides}).data


def _same_source(one: str, other: str) -> bool:
    """Whether two sources are the same; a folder is, however its path is written."""
    kind, _, path = full_source(one).partition(":")
    if kind in ("folder", "csv") and full_source(other).startswith(f"{kind}:"):
        return Path(path).expanduser().resolve() == Path(full_source(other).partition(":")[2]).expanduser().resolve()
    return one == other
