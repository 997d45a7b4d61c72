"""The recipe several times: with several seeds, or on every part of the images in turn; one number and its doubt."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from scipy.stats import norm

from kbaseline.baseline import ConfigLike, resume_run, run_baseline
from kbaseline.config.load import dotted, load_config
from kbaseline.config.paths import expand_home
from kbaseline.config.schema import Config
from kbaseline.console.format import interval, percent, plain_table
from kbaseline.devices.multihost import are_several
from kbaseline.errors import ConfigError, InputError, one_line
from kbaseline.metrics import CONFIDENCE, Evaluation, accuracy_interval, evaluate_predictions, final_evaluation
from kbaseline.runs.record import PLAN, PROBE, SUMMARY, RunResult, read_run, same_images
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.places import check_movable, with_absolute_paths


@dataclass(frozen=True, eq=False)
class Repeats:
    """The recipe's accuracy over several runs.

    Attributes:
        kind: `seeds` or `folds`.
        folder: holds one run folder for each of `runs`; of folds, `final` too, trained on all images.
        runs: names of the run folders.
        accuracies: of their last step, 0 to 1.
        mean: over seeds, the mean of `accuracies`; over folds, the share of all images that is right.
        spread: standard deviation of `accuracies`.
        interval: 95 % interval of `mean`: over seeds, of images and seeds together; over folds, of the images.
    """

    kind: Literal["seeds", "folds"]
    folder: Path
    runs: tuple[str, ...]
    accuracies: tuple[float, ...]
    mean: float
    spread: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, for `summary.json`."""
        return {
            "kind": self.kind,
            "runs": dict(zip(self.runs, self.accuracies, strict=True)),
            "mean": self.mean,
            "spread": self.spread,
            "interval": list(self.interval),
        }


def run_seeds(
    config: ConfigLike = None,
    seeds: int = 3,
    *,
    out: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> Repeats:
    """Runs the recipe with several seeds, from the configuration's own upwards.

    The interval adds two doubts: that of other images, of which each run saw the same number, and that of other seeds.

    Args:
        config, console, **overrides: as for `run_baseline`.
        seeds: number of runs, at least 2.
        out: the folder of all runs; default: `runs/<name>-seeds`, numbered.

    Raises:
        InputError, RunError, KeyboardInterrupt: as `run_baseline`; `resume_repeats` continues.
    """
    return _start(config, "seeds", seeds, out, console, overrides)


def run_folds(
    config: ConfigLike = None,
    folds: int = 5,
    *,
    out: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> Repeats:
    """Runs the recipe on every part of the training images in turn, and at last on all of them.

    Every image is predicted once, by the run that did not train on it. The final model is trained on all images, so
    that nothing can measure it; the folds say what to expect of it, or a little more: each had fewer images. With
    `keep: best` it is what most folds kept; each chose on the part that it is scored on, which flatters a little.

    Args:
        config, console, **overrides: as for `run_baseline`.
        folds: number of parts, at least 2; a patient, video or series is not divided, see `data.group`.
        out: the folder of all runs; default: `runs/<name>-folds`, numbered.

    Raises:
        InputError, RunError, KeyboardInterrupt: as `run_baseline`; `resume_repeats` continues.
    """
    return _start(config, "folds", folds, out, console, overrides)


def is_repeats(folder: Path) -> bool:
    """Whether a folder was made by `run_seeds` or `run_folds`."""
    return (expand_home(folder) / PLAN).is_file()


def resume_repeats(folder: str | Path, *, console: Console | None = None, **overrides: Any) -> Repeats:
    """Continues `run_seeds` or `run_folds` after it was stopped; what is finished is not repeated.

    Args:
        folder: the folder of all runs.
        console, **overrides: as for `resume_run`.

    Raises:
        InputError: the folder holds no such runs, or see `resume_run`.
        RunError, KeyboardInterrupt: as `run_baseline`.
    """
    changes = dotted(overrides)
    check_movable(changes)
    kept = RunFolder.reopen(Path(folder))
    if not is_repeats(kept.path):
        raise InputError(f"folder {str(folder)!r}: has no {PLAN}; it was not made by --seeds or --folds.")
    try:
        plan = json.loads((kept.path / PLAN).read_text(encoding="utf-8"))
        kind, count = plan["kind"], plan["count"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder {str(folder)!r}: {PLAN} cannot be read ({one_line(error)}). Start anew.") from None
    return _run(kept, load_config(kept.path / "config.yaml", changes), kind, count, console or Console(), changes)


def _start(
    config: ConfigLike,
    kind: Literal["seeds", "folds"],
    count: int,
    out: str | Path | None,
    console: Console | None,
    overrides: dict[str, Any],
) -> Repeats:
    # A resume, from another directory perhaps, starts runs that were not begun.
    settings = with_absolute_paths(load_config(config, dotted(overrides)))
    if settings.minutes is not None:
        raise InputError(f"minutes {settings.minutes:g}: plans one run; leave it out of several.")
    if count < 2:
        raise ConfigError(f"{kind}: must be at least 2; got {count}. For a single run leave it out.")
    if (settings.runtime.num_processes or 1) > 1 or are_several():
        raise InputError(f"{kind}: repeats the run of one process; with several, run each configuration by itself.")
    if kind == "folds":
        _with_fold(settings, 1, count)
    folder = RunFolder.create(None if out is None else Path(out), f"{settings.name}-{kind}")
    folder.write_text("config.yaml", settings.to_yaml())
    folder.write_json(PLAN, {"kind": kind, "count": count})
    return _run(folder, settings, kind, count, console or Console(), {})


def _run(
    folder: RunFolder,
    config: Config,
    kind: Literal["seeds", "folds"],
    count: int,
    console: Console,
    changes: Mapping[str, Any],
) -> Repeats:
    configs = {f"seed-{config.seed + k}": config.model_copy(update={"seed": config.seed + k}) for k in range(count)}
    if kind == "folds":
        configs = {f"fold-{k}": _with_fold(config, k, count) for k in range(1, count + 1)}
    names = list(configs)
    with _hint(folder.path):
        for name in names:
            console.rule(name)
            _once(configs[name], folder.path / name, console, changes)
        if kind == "folds":
            console.rule("final")
            final = as_chosen(config, [read_run(folder.path / name).result for name in names])
            if final != config:
                console.print(
                    f"as most folds kept: stages {', '.join(stage.name for stage in final.stages)}; "
                    f"{'with' if final.tta else 'without'} test-time augmentation",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            _once(_with_fold(final, 0, count), folder.path / "final", console, changes)
    found = _summary(kind, folder.path, names)
    folder.write_json(SUMMARY, found.to_dict())
    _show(found, console)
    return found


def _with_fold(config: Config, number: int, folds: int) -> Config:
    if config.data.valid_fraction is not None:
        raise ConfigError("data.valid_fraction: with folds each part is held out once; leave it out.")
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": (number, folds)})})


def as_chosen(config: Config, folds: Sequence[RunResult]) -> Config:
    """The recipe for all images: what most folds kept, where `keep` is `best`, for it has no images to choose on.

    Args:
        config: of all runs.
        folds: the results of the folds.

    Returns:
        The configuration without the stages after the one that most folds kept, the earlier of equals, and without
        test-time augmentation if most left it out.
    """
    if config.keep != "best":
        return config
    names = [PROBE, *(stage.name for stage in config.stages)]
    kept = [run.kept_step.name for run in folds]
    chosen = max(names, key=kept.count)
    stages = config.stages[: max(1, names.index(chosen))]
    if chosen == PROBE:
        stages = (stages[0].model_copy(update={"epochs": 0}),)
    dropped = sum(run.dropped_tta is not None for run in folds)
    return config.model_copy(update={"stages": stages, "tta": None if 2 * dropped > len(folds) else config.tta})


@contextmanager
def _hint(folder: Path) -> Iterator[None]:
    """A stop says how to continue all runs, not the one that was stopped."""
    try:
        yield
    except KeyboardInterrupt as stop:
        text = f"Stopped; continue with: kbaseline fit --resume {shlex.quote(str(folder))}"
        stop.args = (text,)
        raise


def _once(config: Config, folder: Path, console: Console, changes: Mapping[str, Any]) -> None:
    """Runs one run, continues it with `changes` of where its images lie, or only reads it."""
    if (folder / "config.yaml").is_file():
        resume_run(folder, console=console, **changes)
    else:
        run_baseline(config, out=folder, console=console)


def _summary(kind: Literal["seeds", "folds"], folder: Path, names: Sequence[str]) -> Repeats:
    records = [read_run(folder / name) for name in names]
    # Of seeds the last split counts, of folds the part that was held out.
    split = records[0].splits[-1] if kind == "seeds" else "valid"
    last = [final_evaluation(record.evaluations[split]) for record in records]
    accuracies = tuple(one.accuracy for one in last)
    spread = float(np.std(accuracies, ddof=1))
    if kind == "folds":
        every = evaluate_predictions(
            np.concatenate([one.probabilities for one in last]),
            np.concatenate([one.labels for one in last]),
            last[0].class_names,
        )
        mean, doubt = every.accuracy, every.interval
    else:
        paired = all(same_images(records[0], record, split) for record in records)
        mean, doubt = float(np.mean(accuracies)), seeds_interval(last, paired=paired)
    return Repeats(kind, folder, tuple(names), accuracies, mean, spread, doubt)


def seeds_interval(runs: Sequence[Evaluation], *, paired: bool) -> tuple[float, float]:
    """95 % interval of the mean accuracy over images and seeds: the two variances add.

    Where all runs scored the same images, the variance over images is that of the share of runs that are right on each;
    otherwise that of a single run. The variance over seeds is that of the accuracies, divided by their number. Where no
    image is wrong it is Wilson's interval.

    Args:
        runs: one evaluation for each seed, at least 2.
        paired: whether all scored the same images, in the same order.
    """
    accuracies = np.array([run.accuracy for run in runs])
    right = [run.probabilities.argmax(axis=1) == run.labels for run in runs]
    shares = np.mean(right, axis=0) if paired else right[0].astype(float)
    variance = shares.var(ddof=1) / len(shares) + accuracies.var(ddof=1) / len(runs)
    mean = float(accuracies.mean())
    if not variance:
        return accuracy_interval(round(mean * len(shares)), len(shares))
    half = float(norm.ppf(1 - (1 - CONFIDENCE) / 2) * variance**0.5)
    return max(0.0, mean - half), min(1.0, mean + half)


def _show(found: Repeats, console: Console) -> None:
    table = plain_table("run", figures=("accuracy",))
    for name, accuracy in zip(found.runs, found.accuracies, strict=True):
        table.add_row(name, percent(accuracy))
    console.print(table)
    over = "images and seeds" if found.kind == "seeds" else "all images, each predicted once"
    console.print(
        f"{found.kind}: {percent(found.mean)}, spread {100 * found.spread:.2f} points, 95 % interval "
        f"{interval(found.interval)} over {over}; {found.folder / SUMMARY}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if found.kind == "folds":
        console.print(
            f"final model, trained on all of them: {found.folder / 'final'} (its own accuracy proves nothing)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
