"""`run_baseline`: the recipe, a list of stages, from a configuration to a run folder."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kbaseline.config import Config, StageConfig, load_config
from kbaseline.data import ImageData
from kbaseline.data.image_data import default_cache_dir
from kbaseline.data.sources import load_source
from kbaseline.learner import Learner, TTAResult
from kbaseline.lr_finder import LRCurve
from kbaseline.progress import ladder_table
from kbaseline.report import plot_confusion, plot_history, plot_lr_find, plot_schedule
from kbaseline.run_folder import RunFolder


@dataclass(frozen=True)
class BaselineResult:
    """What a run found.

    Attributes:
        accuracy: of the last rung: test-time augmentation where the recipe has it, else the last stage. On the test
            split if the data has one of its own, else on validation.
        stages: validation accuracy after each stage, by name.
        tta_accuracy: validation accuracy with test-time augmentation, or None.
        test_accuracy: figures on a test split of its own, scored once: `plain` and, if asked for, `tta`; or None.
        suggested_lrs: the finder's suggestions, stage -> rule -> rate.
        history: one row an epoch.
        folder: the run folder.
        seconds: each part's wall-clock seconds.
    """

    accuracy: float
    stages: dict[str, float]
    tta_accuracy: float | None
    test_accuracy: dict[str, float] | None
    suggested_lrs: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)


def run_baseline(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> BaselineResult:
    """Runs the whole recipe: data, model, each stage with its learning-rate finder, test-time augmentation, run folder.

        result = run_baseline("quickstart", seed=1)
        result.accuracy, result.stages, result.folder

    Args:
        config: a `Config`, a mapping, a YAML file, the name of a bundled one, or None for the article's recipe.
        out: the run folder; default `runs/<name>`, numbered if there is one already.
        console: where progress goes; default: standard output.
        **overrides: keys of the configuration; a mapping changes only the keys it names, e.g.
            `data={"limit": 500}`; dotted keys can be given as `**{"data.limit": 500}`.

    Raises:
        InputError: the configuration, the data or the model breaks a rule; nothing was written.
        RunError: a download or the training failed.
    """
    settings = load_config(config, _flattened(overrides))
    console = console or Console()
    return _Run(settings, None if out is None else Path(out), console).result()


def enable_compilation_cache() -> None:
    """Keeps JAX's compiled programs in the user's cache folder, unless JAX was told another place already."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "jax"))


class _Run:
    """One run of the recipe; what it writes becomes visible file by file, each whole."""

    def __init__(self, config: Config, out: Path | None, console: Console) -> None:
        self.config, self.console = config, console
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, tuple[LRCurve, float | None]] = {}
        self.accuracy: dict[str, float] = {}
        if config.runtime.compilation_cache:
            enable_compilation_cache()
        keras.utils.set_random_seed(config.seed)
        self.data = self._timed("data", lambda: load_source(config.data, config.seed, console))
        self._say_data()
        self.learner = self._timed("model", lambda: Learner(self.data, config=config, console=console))
        # Made only now: a run that cannot begin leaves no folder.
        self.folder = RunFolder.create(out, config.name)
        self.folder.write_text("config.yaml", config.to_yaml())
        console.print(f"run folder: {self.folder.path}", highlight=False)

    def result(self) -> BaselineResult:
        """Trains, predicts, writes."""
        for stage in self.config.stages:
            self._stage(stage)
        self.folder.write_csv("history.csv", self.learner.history)
        with self.folder.atomic("model.keras") as path:
            self.learner.save(path)
        outcomes = {split: self._predict(split) for split in ("valid", "test") if split in self.data.splits}
        result = self._summary(outcomes)
        self._write(outcomes, result)
        self._say_ladder(outcomes, result)
        return result

    def _timed(self, name: str, work: Any) -> Any:
        begin = time.perf_counter()
        done = work()
        self.seconds[name] = time.perf_counter() - begin
        return done

    def _stage(self, stage: StageConfig) -> None:
        learner = self.learner
        if learner.frozen != stage.freeze:
            (learner.freeze if stage.freeze else learner.unfreeze)()
        max_lr: Any = stage.max_lr
        if stage.lr_find:
            curve = self._timed(f"{stage.name} lr_find", lambda: learner.lr_find(f"{stage.name} lr_find"))
            max_lr = curve.suggest(self.config.lr_find.suggestion) if max_lr == "auto" else max_lr
            self.curves[stage.name] = (curve, max_lr if isinstance(max_lr, float) else max_lr[-1])
            self._write_curves()
        self._timed(stage.name, lambda: self._fit(stage, max_lr))
        self.accuracy[stage.name] = learner.history[-1]["accuracy"]
        self.folder.write_csv("history.csv", learner.history)

    def _fit(self, stage: StageConfig, max_lr: Any) -> None:
        if stage.schedule == "constant":
            self.learner.fit(stage.epochs, max_lr, title=stage.name)
        else:
            self.learner.fit_one_cycle(
                stage.epochs,
                max_lr,
                pct_start=stage.pct_start,
                div=stage.div,
                final_div=stage.final_div,
                title=stage.name,
            )

    def _predict(self, split: str) -> dict[str, Any]:
        """Labels, probabilities and figures of a split, plain and, if asked for, augmented."""
        labels = self.data.splits[split].labels
        if self.config.tta is None:
            probabilities = self.learner.predict(self.data.splits[split].images)
            evaluation = self.learner.evaluate(split)
            return {"labels": labels, "plain_probabilities": probabilities, "plain": evaluation}
        found: TTAResult = self._timed(f"{split} tta", lambda: self.learner.tta(split))
        return {
            "labels": labels,
            "plain_probabilities": found.plain_probabilities,
            "tta_probabilities": found.probabilities,
            "plain": found.plain,
            "tta": found.tta,
        }

    def _summary(self, outcomes: dict[str, dict[str, Any]]) -> BaselineResult:
        valid, test = outcomes["valid"], outcomes.get("test")
        last = test or valid
        kinds = [kind for kind in ("plain", "tta") if kind in valid]
        return BaselineResult(
            accuracy=last[kinds[-1]].accuracy,
            stages=self.accuracy,
            tta_accuracy=valid["tta"].accuracy if "tta" in valid else None,
            test_accuracy={kind: test[kind].accuracy for kind in kinds} if test else None,
            suggested_lrs={name: curve.suggestions() for name, (curve, _) in self.curves.items()},
            history=self.learner.history,
            folder=self.folder.path,
            seconds=self.seconds,
        )

    def _write(self, outcomes: dict[str, dict[str, Any]], result: BaselineResult) -> None:
        learner, folder = self.learner, self.folder
        arrays = {
            f"{split}_{name}": outcome[name]
            for split, outcome in outcomes.items()
            for name in ("labels", "plain_probabilities", "tta_probabilities")
            if name in outcome
        }
        folder.write_npz("predictions.npz", class_names=np.array(self.data.class_names), **arrays)
        folder.write_figure("schedule.png", plot_schedule(learner.applied))
        folder.write_figure("history.png", plot_history(learner.history, result.tta_accuracy))
        best = outcomes.get("test", outcomes["valid"])
        shown = best.get("tta", best["plain"])
        folder.write_figure("confusion.png", plot_confusion(shown.confusion, self.data.class_names))
        figures = {
            split: {kind: outcome[kind].to_dict() for kind in ("plain", "tta") if kind in outcome}
            for split, outcome in outcomes.items()
        }
        folder.write_json(
            "result.json",
            {
                "accuracy": result.accuracy,
                "stages": result.stages,
                "tta_accuracy": result.tta_accuracy,
                "test_accuracy": result.test_accuracy,
                "suggested_lrs": result.suggested_lrs,
                "figures": figures,
                "history": result.history,
                "seconds": result.seconds,
                "seed": self.config.seed,
                "data": _facts(self.data),
                "environment": environment(),
            },
        )

    def _write_curves(self) -> None:
        rows = [{"stage": name, **row} for name, (curve, _) in self.curves.items() for row in curve.rows()]
        self.folder.write_csv("lr_find.csv", rows)
        panels = [
            {
                "title": name,
                "lrs": curve.lrs,
                "losses": curve.losses,
                "smoothed": curve.smoothed,
                "suggestions": curve.suggestions(),
                "chosen": chosen,
            }
            for name, (curve, chosen) in self.curves.items()
        ]
        self.folder.write_figure("lr_find.png", plot_lr_find(panels))

    def _say_data(self) -> None:
        self.console.print(repr(self.data), highlight=False, markup=False)
        for line in self.data.skipped[:5]:
            self.console.print(f"skipped: {line}", highlight=False, markup=False)
        if len(self.data.skipped) > 5:
            self.console.print(f"skipped: {len(self.data.skipped)} images in all", highlight=False)

    def _say_ladder(self, outcomes: dict[str, dict[str, Any]], result: BaselineResult) -> None:
        rungs: list[tuple[str, float, float | None]] = [
            (name, accuracy, self.seconds[name]) for name, accuracy in result.stages.items()
        ]
        for split, outcome in outcomes.items():
            if split == "test":
                rungs.append(("test", outcome["plain"].accuracy, None))
            if "tta" in outcome:
                name = "tta" if split == "valid" else "test tta"
                rungs.append((name, outcome["tta"].accuracy, self.seconds[f"{split} tta"]))
        self.console.print(ladder_table(rungs))
        for split, outcome in outcomes.items():
            if "tta" in outcome and outcome["tta"].accuracy < outcome["plain"].accuracy:
                self.console.print(
                    f"[yellow]test-time augmentation is worse than the plain prediction on {split}: "
                    f"{outcome['tta'].accuracy:.2%} against {outcome['plain'].accuracy:.2%}; "
                    "look at tta.flip and tta.scale.[/]"
                )


def environment() -> dict[str, Any]:
    """Versions, device and processor count a figure was measured with."""
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


def _facts(data: ImageData) -> dict[str, Any]:
    return {
        "source": data.source,
        "class_names": list(data.class_names),
        "images": {name: len(split) for name, split in data.splits.items()},
        "size": data.size,
        "skipped": list(data.skipped),
    }


def _flattened(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"limit": 5}}` -> `{"data.limit": 5}`, so that a mapping changes only the keys it names."""
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
