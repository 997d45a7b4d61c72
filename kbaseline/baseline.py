"""`run_baseline`: the recipe, a list of stages, from a configuration to a run folder."""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import keras
from rich.console import Console

from kbaseline.config.load import dotted, load_config
from kbaseline.config.schema import Config, StageConfig
from kbaseline.console.format import interval
from kbaseline.data import ImageData
from kbaseline.data.duplicates import leak_warning
from kbaseline.data.image_data import load_source
from kbaseline.devices.multihost import barrier, fail_together, init_distributed, is_first, rank0_console, rank0_first
from kbaseline.devices.parallel import device_summary
from kbaseline.errors import ConfigError, InputError, LRFinderError, did_you_mean
from kbaseline.learner import Learner
from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import Evaluation, final
from kbaseline.runs.record import RunResult, read_run, temperatures
from kbaseline.runs.report import ReportData, write_report
from kbaseline.runs.results import Sweep, accuracy_table, draw_up_result, write_results, write_sweeps
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import finished
from kbaseline.training.session import PLACE, Session
from kbaseline.training.trackers import require_trackers, tracking

ConfigLike = Config | Mapping[str, Any] | str | Path | None
Found = TypeVar("Found")


def run_baseline(
    config: ConfigLike = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> RunResult:
    """Runs the whole recipe: data, model, each stage with its learning-rate finder, test-time augmentation, run folder.

    >>> from rich.console import Console
    >>> from kbaseline import run_baseline
    >>> result = run_baseline("quickstart", seed=1, console=Console(quiet=True))
    >>> print(*result.stages, result.folder)
    head finetune runs/quickstart

    Args:
        config: a `Config`, a mapping, a YAML file, the name of a bundled one, or None for the article's recipe.
        out: the run folder; default `runs/<name>`, numbered if there is one already.
        resume: deprecated; call `resume_run(folder)`.
        console: where progress goes; default: standard output.
        **overrides: keys of the configuration: `data={"limit": 500}` or `**{"data.limit": 500}` changes that key alone.

    Raises:
        InputError: configuration, data or model break a rule, or another process is in the folder; nothing was written.
        RunError: a download, the training, or the finder behind a rate of `auto` failed.
        KeyboardInterrupt: SIGINT or SIGTERM; `resume_run` continues it.
    """
    if resume is not None:
        warnings.warn("run_baseline(resume=folder) is now resume_run(folder).", DeprecationWarning, stacklevel=2)
        if config is not None or out is not None:
            raise InputError("resume: the run folder holds the configuration; leave out config and out.")
        return resume_run(resume, console=console, **overrides)
    return _run_new(config, out, console, overrides)


@fail_together()
def _run_new(
    config: ConfigLike, out: str | Path | None, console: Console | None, overrides: Mapping[str, Any]
) -> RunResult:
    settings = load_config(config, dotted(overrides))
    require_trackers(settings.runtime.log)
    return _Run(settings, out, console).whole_recipe()


@fail_together()
def resume_run(folder: str | Path, *, console: Console | None = None, **overrides: Any) -> RunResult:
    """Continues a run that was killed, stopped or cut short; of a finished one, reads the result.

    The result is that of a run never interrupted: on a CPU with the same versions and devices bit by bit, times apart.

    >>> from rich.console import Console
    >>> from kbaseline import resume_run
    >>> result = resume_run("runs/quickstart", console=Console(quiet=True))  # left by run_baseline("quickstart")
    >>> print(*result.stages)
    head finetune

    Args:
        folder: the run folder. It holds the configuration.
        console: where progress goes; default: standard output.
        **overrides: where the run goes on: `runtime.devices`, `coordinator`, `num_processes`, `process_id`. No other
            key may change.

    Raises:
        InputError: no run has begun there, another process is in the folder, or the configuration or data changed.
        RunError, KeyboardInterrupt: as `run_baseline`.
    """
    places = dotted(overrides)
    if not places.keys() <= {f"runtime.{name}" for name in PLACE}:
        raise InputError(
            f"resume: the run folder holds the configuration; change nothing but runtime.{', '.join(PLACE)}."
        )
    there = RunFolder.reopen(Path(folder))
    settings = load_config(there.path / "config.yaml", places)
    init_distributed(settings.runtime, console)
    there.written = is_first()
    if finished(there):
        there.tidy()
        rank0_console(console).print(f"{there.path}: this run is finished", markup=False, highlight=False)
        return read_run(there.path).result
    require_trackers(settings.runtime.log)
    return _Run(settings, None, console, there).whole_recipe()


@fail_together()
def find_learning_rate(
    config: ConfigLike = None,
    *,
    stage: str | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> LRCurve:
    """Sweeps the learning rate as a stage of the recipe would, and trains nothing.

    Args:
        config, out, console, **overrides: as for `run_baseline`. The folder gets `lr_find.csv` and `lr_find.png`.
        stage: the stage whose frozen layers are used; default: the first.

    Returns:
        The curve; `curve.suggest("valley")` reads a rate off it.

    Raises:
        InputError: as for `run_baseline`, or there is no such stage.
        LRFinderError: too few points, or a loss that never falls or is not finite.
    """
    settings = load_config(config, dotted(overrides))
    stages = {item.name: item for item in settings.stages}
    if stage is not None and stage not in stages:
        raise ConfigError(f"stage {stage!r}: must be one of {', '.join(stages)}.{did_you_mean(stage, stages)}")
    chosen = stages[stage] if stage else settings.stages[0]
    name = f"{settings.name}-find-lr"
    return _Run(settings.model_copy(update={"name": name}), out, console).only_sweep(chosen)


class _Run:
    """One run of the recipe; what it writes becomes visible file by file, each whole."""

    def __init__(
        self, config: Config, out: str | Path | None, console: Console | None, resumed: RunFolder | None = None
    ) -> None:
        init_distributed(config.runtime, console)
        self.config, self.console = config, rank0_console(console)
        self.seconds: dict[str, float] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.accuracy: dict[str, float] = {}
        if is_first():
            RunFolder.check(None if out is None else Path(out))
        # Locked first where there is a folder, which is made last where there is none: a run that cannot begin leaves
        # none.
        session = Session(resumed, config, self._say, resumed=True) if resumed else None
        try:
            keras.utils.set_random_seed(config.seed)
            load = partial(load_source, config.data, config.seed, self.console)
            self.data: ImageData = self._timed("data", lambda: rank0_first("data", load))
            self._say_data()
            self.learner = self._timed("model", lambda: Learner(self.data, config=config, console=self.console))
            config = self.config = self.learner.config  # `data.batch_size: auto` is a number from here on.
            if line := device_summary(self.learner.distribution, config.data.batch):
                self._say(line)
            if session is None:
                folder = RunFolder.create(None if out is None else Path(out), config.name, written=is_first())
                session = Session(folder, config, self._say, resumed=False)
            self.learner.session = self.session = session
            self.folder = session.folder
            session.begin(self.data, self.seconds)
            barrier("begun")  # all have read what an earlier process left before the first writes more
        except BaseException:
            if session is not None:
                session.close()
            raise

    def only_sweep(self, stage: StageConfig) -> LRCurve:
        """A stage's learning-rate sweep, and its files."""
        self.session.interrupts.advice = "nothing was trained"
        with self.session:
            self._set_frozen(stage)
            try:
                self._sweep(stage, needed=True)
            finally:
                self.session.finish()
        return self.sweeps[stage.name].curve

    def whole_recipe(self) -> RunResult:
        """Trains every stage, predicts, writes, and tells the trackers."""
        with self.session, tracking(self.folder.path, self.config, self.console) as trackers:
            self.learner.callbacks += trackers
            for tracker in trackers:
                tracker.epochs = len(self.session.start.record["history"]) if self.session.start else 0
            evaluations, result = self._train_and_score()
            logged = {"final_accuracy": result.accuracy, "tta_accuracy": result.tta_accuracy}
            for tracker in trackers:
                tracker.log({name: value for name, value in logged.items() if value is not None})
        self._say_accuracies(final(evaluations.get("test") or evaluations["valid"]), result)
        return result

    def _train_and_score(self) -> tuple[dict[str, dict[str, Evaluation]], RunResult]:
        for number, stage in enumerate(self.config.stages):
            self._stage(stage, trained=self.session.start is not None and number < self.session.start.stage)
        evaluations = {"valid": self._predict("valid", {})}
        if "test" in self.data.splits:
            evaluations["test"] = self._predict("test", temperatures(evaluations["valid"]))
        learner, data, config = self.learner, self.data, self.config
        result = draw_up_result(
            self.accuracy, evaluations, self.sweeps, learner.history, self.seconds, data, config, self.folder.path
        )
        write_results(self.folder, result, evaluations, learner.applied)
        report = ReportData(result, config, data, learner.model, evaluations, self.sweeps, learner.applied)
        write_report(self.folder, report, self.console)
        self.session.finish()
        return evaluations, result

    def _timed(self, name: str, work: Callable[[], Found]) -> Found:
        begin = time.perf_counter()
        done = work()
        self.seconds[name] = time.perf_counter() - begin
        return done

    def _set_frozen(self, stage: StageConfig) -> None:
        if self.learner.frozen != stage.freeze:
            (self.learner.freeze if stage.freeze else self.learner.unfreeze)()

    def _sweep(self, stage: StageConfig, *, needed: bool) -> None:
        """Sweeps and writes the curve; one that suggests nothing ends the run only if a suggestion is needed."""
        title = f"{stage.name} lr_find"
        curve = self.session.curve(stage.name, lambda: self._timed(title, self.learner.lr_sweep))
        suggestions: dict[str, float] = {}
        problem: LRFinderError | None = None
        try:
            suggestions = curve.suggestions()
        except LRFinderError as error:
            problem = error
        rate = stage.max_lr if stage.max_lr != "auto" else suggestions.get(self.config.lr_find.suggestion)
        self.sweeps[stage.name] = Sweep(curve, suggestions, rate[-1] if isinstance(rate, tuple) else rate)
        write_sweeps(self.folder, self.sweeps)
        if problem is not None and needed:
            raise problem
        found = ", ".join(f"{rule} {value:.2e}" for rule, value in suggestions.items())
        self._say(f"{title}: suggested rates: {found}" if found else f"{title}: {problem}", None if found else "yellow")

    def _stage(self, stage: StageConfig, *, trained: bool) -> None:
        """Sweeps and trains; of a stage that an earlier process `trained`, the learner takes what it needs."""
        learner, before = self.learner, len(self.learner.history)
        self._set_frozen(stage)
        if stage.lr_find:
            self._sweep(stage, needed=stage.max_lr == "auto")
        max_lr: Any = self.sweeps[stage.name].chosen if stage.max_lr == "auto" else stage.max_lr
        shape = {"pct_start": stage.pct_start, "div": stage.div, "final_div": stage.final_div}
        try:
            if stage.schedule == "constant":
                learner.fit(stage.epochs, max_lr, title=stage.name)
            else:
                learner.fit_one_cycle(stage.epochs, max_lr, **shape, title=stage.name)
        finally:
            if not trained:
                self.folder.write_csv("history.csv", learner.history)
        self.seconds[stage.name] = sum(row["seconds"] for row in learner.history[before:])
        self.accuracy[stage.name] = learner.history[-1]["accuracy"]
        if not trained and self.folder.written:
            # After every stage, so that what a later one loses is only its own.
            with self.folder.atomic("model.keras") as path:
                learner.save(path)

    def _predict(self, split: str, fitted: Mapping[str, float]) -> dict[str, Evaluation]:
        """Predictions of a split, scored by kind; calibrated by temperatures `fitted` elsewhere if there are any."""
        if self.config.tta is None:
            return {"plain": self.learner.evaluate(split, temperature=fitted.get("plain"))}
        found = self._timed(f"{split} tta", lambda: self.learner.tta(split, temperatures=fitted))
        return {"plain": found.plain, "tta": found.tta}

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _say_data(self) -> None:
        self._say(repr(self.data))
        lines = [f"skipped: {line}" for line in self.data.skipped[:5]]
        if len(self.data.skipped) > 5:
            lines.append(f"skipped: {len(self.data.skipped)} in all; result.json has every line")
        for line in filter(None, [*lines, leak_warning(self.data)]):
            self._say(line, "yellow")

    def _say_accuracies(self, last: Evaluation, result: RunResult) -> None:
        self.console.print(accuracy_table(result.steps))
        self._say(f"{result.steps[-1].name}: 95 % interval {interval(last.interval)}, on {len(last.labels):,} images")
        self._say(f"model, figures and report.html: {self.folder.path}")
