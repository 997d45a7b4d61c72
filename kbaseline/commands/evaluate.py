"""A finished run judged: on the predictions it kept, or on the labelled images of another source."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kbaseline.console.format import file_name
from kbaseline.data.labelled import ALL
from kbaseline.data.sources.registry import load_labelled
from kbaseline.devices.xla import environment
from kbaseline.errors import InputError
from kbaseline.metrics import Evaluation, PairedComparison, compare_paired, evaluate_predictions, final_evaluation
from kbaseline.render.plots import plot_confusion
from kbaseline.runs.record import RunRecord, read_run, fitted_temperatures
from kbaseline.storage.run_folder import RunFolder


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
    evaluations: Mapping[str, Evaluation]
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    seen: bool = False

    @property
    def last(self) -> Evaluation:
        """The figures with test-time augmentation, or the plain ones if there are no others."""
        return final_evaluation(self.evaluations)

    @property
    def paired(self) -> PairedComparison | None:
        """Test-time augmentation against plain, or None where there is only one of them."""
        if len(self.evaluations) < 2:
            return None
        return compare_paired(self.evaluations["plain"], self.evaluations["tta"])

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python, for `evaluation.json`."""
        return {
            "run": str(self.run),
            "source": self.source,
            "split": self.split,
            "class_names": list(self.last.class_names),
            "figures": {kind: found.to_dict() for kind, found in self.evaluations.items()},
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
) -> tuple[EvaluationReport, Path | None]:
    """Judges a finished run, and writes what it found if it predicted something or `out` says where to.

    Args:
        folder: the run's.
        source, split, tta, console: see `evaluate_kept` where there is no source, else `evaluate_source`.
        out: see `write_evaluation`.

    Returns:
        What was found, and the folder it was written to or None.

    Raises:
        InputError, RunError: as those three.
    """
    RunFolder.check(out)
    run = read_run(folder)
    found = evaluate_kept(run, split, tta) if source is None else evaluate_source(run, source, split, tta, console)
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
    run: RunRecord, source: str, split: str | None = None, tta: bool | None = None, console: Console | None = None
) -> EvaluationReport:
    """Has a run's network predict the images of a source, and scores that.

    Args:
        run: the run.
        source: `folder:PATH`, `tfds:NAME` or the like, with classes of the run's names.
        split: see `load_labelled`.
        tta: with test-time augmentation beside plain, or plain alone; None for what the run did.
        console: where to show progress; None shows nothing.

    Raises:
        DataError, DownloadError, RunError: as `load_labelled`.
        InputError: the model cannot be loaded, or test-time augmentation is asked for and the run had none.
    """
    if tta and run.config.tta is None:
        raise InputError(f"run {str(run.folder)!r}: its configuration has no test-time augmentation; leave --tta out.")
    settings = run.config.data.model_copy(update={"source": source})
    images = load_labelled(settings, run.class_names, split, console)
    # Keras takes seconds to import; kept predictions are scored without.
    from kbaseline.runs.run import load

    saved = load(run.folder)
    fitted, seconds, evaluations = fitted_temperatures(run.evaluations["valid"]), {}, {}
    for kind in ("plain", "tta") if tta is not False and run.config.tta else ("plain",):
        begin = time.perf_counter()
        probabilities = saved.predict(images.images, tta=kind == "tta")
        seconds[kind] = time.perf_counter() - begin
        evaluations[kind] = evaluate_predictions(
            probabilities, images.labels, run.class_names, temperature=fitted.get(kind)
        )
    seen = images.split in (ALL, "train") and _same_source(source, run.config.data.source)
    return EvaluationReport(run.folder, source, images.split, evaluations, seconds, images.skipped, seen)


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


def _same_source(one: str, other: str) -> bool:
    """Whether two sources are the same; a folder is, however its path is written."""
    kind, _, path = one.partition(":")
    if kind in ("folder", "csv") and other.startswith(f"{kind}:"):
        return Path(path).expanduser().resolve() == Path(other.partition(":")[2]).expanduser().resolve()
    return one == other
