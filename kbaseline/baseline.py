"""`run_baseline`: runs the recipe, a list of stages, from a configuration to a run folder."""

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from rich.console import Console

from kbaseline.config.load import dotted, load_config
from kbaseline.config.schema import Config, StageConfig
from kbaseline.console.format import interval, percent
from kbaseline.data import ImageData
from kbaseline.data.duplicates import leak_warning
from kbaseline.data.image_data import load_source
from kbaseline.devices.multihost import barrier, fail_together, init_distributed, is_first, rank0_console, rank0_first
from kbaseline.devices.settings import check_settings
from kbaseline.devices.xla import start_jax
from kbaseline.doubt import FILE as DOUBT
from kbaseline.errors import ConfigError, InputError, LRFinderError, RunError, did_you_mean
from kbaseline.learner import Learner
from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import Evaluation, final_evaluation, without_harm
from kbaseline.models.backbones import read_model
from kbaseline.models.classifier import set_linear_head, soften_logits
from kbaseline.models.probe import TEMPERATURE
from kbaseline.runs.copies import FILE as COPIES
from kbaseline.runs.copies import copies_of_run
from kbaseline.runs.floor import Measured, below_floor, floor_line, measure_floor
from kbaseline.runs.forecast import forecast_line
from kbaseline.runs.leaks import find_leaked, leak_line
from kbaseline.runs.record import PROBE, RunFloor, RunResult, fitted_temperatures, read_run
from kbaseline.runs.report import ReportData, write_report
from kbaseline.runs.results import Sweep, accuracy_table, build_result, write_results, write_sweeps
from kbaseline.runs.timing import Planner
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import is_finished
from kbaseline.training.places import check_movable, with_absolute_paths
from kbaseline.training.session import Session
from kbaseline.training.trackers import require_trackers, tracking

ConfigLike = Config | Mapping[str, Any] | str | Path | None
T = TypeVar("T")


def run_baseline(
    config: ConfigLike = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> RunResult:
    """Runs the whole recipe: data, model, all stages with the learning-rate finder, test-time augmentation, results.

    >>> from rich.console import Console
    >>> from kbaseline import run_baseline
    >>> result = run_baseline("quickstart", seed=1, console=Console(quiet=True))
    >>> print(*result.stages, result.folder)
    head finetune runs/quickstart

    Args:
        config: a `Config`, a mapping, a YAML file, the name of a bundled one, or None for the article's recipe.
        out: the run folder; default: `runs/<name>`, numbered if it exists.
        resume: deprecated; call `resume_run(folder)`.
        console: where progress is printed; default: standard output.
        **overrides: configuration keys: `data={"limit": 500}` or `**{"data.limit": 500}` changes only that key.

    Raises:
        InputError: the configuration, data or model is invalid, or another process is using the folder; nothing was
            written.
        RunError: a download, the training, or the finder for a rate of `auto` failed.
        KeyboardInterrupt: SIGINT or SIGTERM; `resume_run` continues the run.
    """
    if resume is not None:
        warnings.warn("run_baseline(resume=folder) is now resume_run(folder).", DeprecationWarning, stacklevel=2)
        if config is not None or out is not None:
            raise InputError("resume: the run folder holds the configuration; omit config and out.")
        return resume_run(resume, console=console, **overrides)
    return _run_new(config, out, console, overrides)


@fail_together()
def _run_new(
    config: ConfigLike, out: str | Path | None, console: Console | None, overrides: Mapping[str, Any]
) -> RunResult:
    settings = load_config(config, dotted(overrides))
    require_trackers(settings.runtime.log)
    return _Run(settings, out, console).run_recipe()


@fail_together()
def resume_run(folder: str | Path, *, console: Console | None = None, **overrides: Any) -> RunResult:
    """Continues a run that was killed or stopped; of a finished run, reads the result.

    The result equals that of an uninterrupted run. On a CPU with the same versions and devices it is bitwise equal,
    except for times.

    >>> from rich.console import Console
    >>> from kbaseline import resume_run
    >>> result = resume_run("runs/quickstart", console=Console(quiet=True))  # left by run_baseline("quickstart")
    >>> print(*result.stages)
    head finetune

    Args:
        folder: the run folder. It holds the configuration.
        console: where progress is printed; default: standard output.
        **overrides: where the run continues: `runtime.devices`, `coordinator`, `num_processes`, `process_id`; and where
            its images lie now: `data.source`, `data_dir`, `cache_dir`. No other key may change.

    Raises:
        InputError: the folder holds no run, another process is using it, or the configuration changed, or an image or
            a label, even of a file with the same name.
        RunError, KeyboardInterrupt: as `run_baseline`.
    """
    changes = dotted(overrides)
    check_movable(changes)
    run_folder = RunFolder.reopen(Path(folder))
    settings = load_config(run_folder.path / "config.yaml", changes)
    init_distributed(settings.runtime, console)
    run_folder.writable = is_first()
    if is_finished(run_folder):
        run_folder.tidy()
        rank0_console(console).print(f"{run_folder.path}: this run is finished", markup=False, highlight=False)
        return read_run(run_folder.path).result
    require_trackers(settings.runtime.log)
    return _Run(settings, None, console, run_folder).run_recipe()


@fail_together()
def find_learning_rate(
    config: ConfigLike = None,
    *,
    stage: str | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> LRCurve:
    """Runs the learning-rate finder of one stage of the recipe, without training.

    Args:
        config, out, console, **overrides: as for `run_baseline`. `lr_find.csv` and `lr_find.png` go to the folder.
        stage: name of the stage, which decides what is frozen; default: the first that trains.

    Returns:
        The curve; `curve.suggest("valley")` suggests a rate.

    Raises:
        InputError: as for `run_baseline`, or the stage does not exist.
        LRFinderError: there are too few points, or the loss never falls or is not finite.
    """
    settings = load_config(config, dotted(overrides))
    stages = {item.name: item for item in settings.stages}
    if stage is not None and stage not in stages:
        raise ConfigError(f"stage {stage!r}: must be one of {', '.join(stages)}.{did_you_mean(stage, stages)}")
    chosen = stages[stage] if stage else next((one for one in settings.stages if one.epochs), settings.stages[0])
    # Nothing is trained, so there is nothing to keep.
    changes = {"name": f"{settings.name}-find-lr", "minutes": None, "keep": "last"}
    return _Run(settings.model_copy(update=changes), out, console).run_sweep(chosen)


class _Run:
    """One run of the recipe. Its files are written atomically, one by one."""

    def __init__(
        self, config: Config, out: str | Path | None, console: Console | None, resumed: RunFolder | None = None
    ) -> None:
        check_settings()
        init_distributed(config.runtime, console)
        # What is written to the folder must not depend on the directory that the run was started in.
        config = with_absolute_paths(config)
        start_jax(deterministic=config.runtime.deterministic)  # before the data: what is missing is said at once
        self.config, self.console = config, rank0_console(console)
        self.seconds: dict[str, float] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.accuracy: dict[str, float] = {}
        self.copies: np.ndarray | None = None
        self.floor: RunFloor | None = None
        self.leaked: dict[str, list[int]] | None = None
        self.kept: str | None = None
        self.planner: Planner | None = None
        self._kept_accuracy = 0.0
        if is_first():
            RunFolder.check(None if out is None else Path(out))
        # An existing folder is locked first. A new one is created last, so that a run that fails to start leaves none.
        session = Session(resumed, config, self._print, resumed=True) if resumed else None
        try:
            if config.minutes is not None:
                plan = partial(Planner, config, self.console, Learner)
                self.planner = self._timed("planning", plan)
                config = self.planner.config
            load = partial(self._load, config, resumed)
            self.data: ImageData = self._timed("data", lambda: rank0_first("data", load))
            self._print_data()
            if self.planner is not None:
                config = self.planner.finish(self.data)
                for line in self.planner.lines:
                    self._print(line)
            self.learner = self._timed("model", lambda: Learner(self.data, config=config, console=self.console))
            config = self.config = self.learner.config  # `data.batch_size: auto` is now a number
            if session is None:
                folder = RunFolder.create(None if out is None else Path(out), config.name, writable=is_first())
                session = Session(folder, config, self._print, resumed=False)
            self.learner.session = self.session = session
            self.folder = session.folder
            session.begin(self.data, self.seconds)
            if self.copies is not None:
                self.folder.write_npz(COPIES, copies=self.copies)
            barrier("begun")  # every process has read the folder before the first one writes to it
        except BaseException:
            if session is not None:
                session.close()
            raise

    def _load(self, config: Config, resumed: RunFolder | None) -> ImageData:
        self.copies = copies_of_run(None if resumed is None else resumed.path, config.data, self.console)
        return load_source(config.data, config.seed, self.console, copies=self.copies)

    def run_sweep(self, stage: StageConfig) -> LRCurve:
        """Runs a stage's learning-rate sweep and writes its files."""
        self.session.interrupts.hint = "nothing was trained"
        with self.session:
            if self.config.stages[0].init == "probe":
                self._measure_floor()
                soften_logits(self.learner.model, TEMPERATURE)
            self._set_frozen(stage)
            try:
                self._sweep(stage, needed=True)
            finally:
                self.session.finish()
        return self.sweeps[stage.name].curve

    def run_recipe(self) -> RunResult:
        """Trains every stage, scores and writes the results, and logs them to the trackers."""
        with self.session, tracking(self.folder.path, self.config, self.console) as trackers:
            self.learner.callbacks += trackers
            earlier = self.session.start.record["history"] if self.session.start else []
            for tracker in trackers:
                tracker.epochs = sum(row["epoch"] > 0 for row in earlier)
            evaluations, result = self._train_and_score()
            logged = {"final_accuracy": result.accuracy, "tta_accuracy": result.tta_accuracy}
            for tracker in trackers:
                tracker.log({name: value for name, value in logged.items() if value is not None})
        split = "test" if "test" in evaluations else "valid"
        self._print_accuracies(split, final_evaluation(evaluations[split]), result)
        return result

    def _train_and_score(self) -> tuple[dict[str, dict[str, Evaluation]], RunResult]:
        if self.session.start is None:
            line = forecast_line(self.config, self.data, lambda n: self.learner.predict(self.data.valid.images[:n]))
            if line:
                self._print(line, "yellow")
        # Without images that are not trained on, a floor says nothing.
        if self.config.probe and (self.config.data.holds_out or self.config.stages[0].init == "probe"):
            self._measure_floor()
        for number, stage in enumerate(self.config.stages):
            self._stage(stage, trained=self.session.start is not None and number < self.session.start.stage)
        self._restore_kept()
        valid = self._evaluate("valid", {}, tta=self.config.tta is not None)
        dropped = None
        if self.config.chooses_best and len(better := without_harm(valid)) < len(valid):
            dropped, valid = valid["tta"].accuracy, better
            self._print("kept: plain predictions, which are better on validation than test-time augmentation")
        evaluations = {"valid": valid}
        if "test" in self.data.splits:
            fitted = fitted_temperatures(valid, self.config.data)
            evaluations["test"] = self._evaluate("test", fitted, tta="tta" in valid)
        learner, data, config = self.learner, self.data, self.config
        doubt = None
        # Of images that were trained on, nothing can be learnt about others.
        if config.data.holds_out:
            doubt = self._timed("doubt", lambda: learner.doubt(evaluations["valid"]))
            self.folder.write_npz(DOUBT, **doubt.arrays())
        result = build_result(
            stages=self.accuracy,
            evaluations=evaluations,
            sweeps=self.sweeps,
            history=learner.history,
            seconds=self.seconds,
            data=data,
            config=config,
            folder=self.folder.path,
            floor=self.floor if self.config.data.holds_out else None,
            leaked=self.leaked,
            kept=self.kept if config.chooses_best else None,
            dropped_tta=dropped,
        )
        write_results(self.folder, result, evaluations, learner.applied)
        report = ReportData(result, config, data, learner.model, evaluations, self.sweeps, learner.applied, doubt)
        write_report(self.folder, report, self.console)
        self.session.finish()
        return evaluations, result

    def _measure_floor(self) -> None:
        """Measures or restores the floor, and starts the head from the probe if the first stage does."""
        found: Measured | None = None

        def measure() -> dict[str, Any]:
            nonlocal found
            work = partial(measure_floor, self.data, self.config, self.console)
            found = self._timed(PROBE, lambda: rank0_first("floor", work))
            return found.floor.model_dump()

        floor = self.floor = RunFloor.model_validate(self.session.once("floor", measure))
        images = {name: len(split) for name, split in self.data.splits.items()}
        if self.config.data.holds_out:
            self._print(floor_line(floor, images, self.seconds[PROBE]))
        features = found.features if found is not None and self.config.data.holds_out else {}
        seek = partial(find_leaked, self.data, features, self.console)
        self.leaked = self.session.once("leaked", lambda: self._timed("near-duplicates", seek) if features else None)
        if self.config.stages[0].init != "probe":
            return
        if found is not None and found.probe is not None:  # else the checkpoint holds what became of it
            set_linear_head(self.learner.model, found.probe.weights, found.probe.bias)
        if floor.probe is not None and self.config.stages[0].epochs:
            self._keep(PROBE, floor.probe, save=self.config.chooses_best and found is not None)

    def _keep(self, step: str, accuracy: float, *, save: bool) -> None:
        """Makes a step's model the one that is kept, unless it is to be the best and is not; `save` writes it."""
        if self.config.chooses_best and self.kept is not None and accuracy <= self._kept_accuracy:
            return
        self.kept, self._kept_accuracy = step, accuracy
        if save and self.folder.writable:
            # Saved after every stage, so that a failure in a later one loses only that stage.
            with self.folder.atomic("model.keras") as path:
                self.learner.save(path)

    def _restore_kept(self) -> None:
        """Gives the network the weights of the best step, if that is not the last."""
        if self.kept == self.config.stages[-1].name:
            return
        barrier("kept")
        saved = read_model(self.folder.path / "model.keras", f"run {str(self.folder.path)!r}: model.keras")
        self.learner.model.set_weights(saved.get_weights())
        self._print(f"kept: {self.kept}, {percent(self._kept_accuracy)} on validation, the best of the steps")

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begin
        return result

    def _set_frozen(self, stage: StageConfig) -> None:
        if self.learner.frozen != stage.freeze:
            (self.learner.freeze if stage.freeze else self.learner.unfreeze)()

    def _sweep(self, stage: StageConfig, *, needed: bool) -> None:
        """Sweeps and writes the curve; a curve without a suggestion ends the run only if one is `needed`."""
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
        rates = ", ".join(f"{rule} {value:.2e}" for rule, value in suggestions.items())
        self._print(
            f"{title}: suggested rates: {rates}" if rates else f"{title}: {problem}", None if rates else "yellow"
        )

    def _stage(self, stage: StageConfig, *, trained: bool) -> None:
        """Sweeps and trains; if an earlier process `trained` the stage, the learner only restores its history."""
        learner, before = self.learner, len(self.learner.history)
        self._set_frozen(stage)
        if not stage.epochs:
            learner.skip_stage(self._probe_row(stage))
        else:
            first = next(each for each in self.config.stages if each.epochs)
            if stage is first and self.config.stages[0].init == "probe":
                soften_logits(learner.model, TEMPERATURE)  # A checkpoint's state is restored after it.
            self._train(stage, trained=trained)
        self.seconds[stage.name] = sum(row["seconds"] for row in learner.history[before:])
        self.accuracy[stage.name] = learner.history[-1]["accuracy"]
        self._keep(stage.name, self.accuracy[stage.name], save=not trained)

    def _probe_row(self, stage: StageConfig) -> dict[str, Any]:
        """The line of the history for a stage whose head is the probe, scored with its features."""
        floor = self.floor
        if floor is None or floor.probe is None:
            note = floor.note if floor else ""
            raise RunError(f"{stage.name}: there is no probe to start from; {note}.")
        self._print(f"{stage.name}: the head is the linear probe")
        row = {"stage": stage.name, "epoch": 0, "train_loss": None, "valid_loss": floor.probe_loss}
        return {**row, "accuracy": floor.probe, "images_per_s": 0.0, "seconds": 0.0}

    def _train(self, stage: StageConfig, *, trained: bool) -> None:
        learner = self.learner
        steps, stage_steps = self.config.lr_find.steps, stage.epochs * (len(self.data.train) // self.config.data.batch)
        if stage.sweeps(steps, stage_steps, accelerator=jax.default_backend() != "cpu"):
            self._sweep(stage, needed=stage.max_lr == "auto")
        elif stage.lr_find == "auto":
            self._print(
                f"{stage.name} lr_find: left out, for its {steps} steps are more than half of the stage's "
                f"{stage_steps} and the rate is given; lr_find: true in the stage runs it"
            )
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

    def _evaluate(self, split: str, temperatures: Mapping[str, float], *, tta: bool) -> dict[str, Evaluation]:
        """Evaluations of a split by kind of prediction; `temperatures` by kind were fitted on another split."""
        if not tta:
            return {"plain": self.learner.evaluate(split, temperature=temperatures.get("plain"))}
        result = self._timed(f"{split} tta", lambda: self.learner.tta(split, temperatures=temperatures))
        return {"plain": result.plain, "tta": result.tta}

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _print_data(self) -> None:
        self._print(repr(self.data))
        lines = [f"skipped: {line}" for line in self.data.skipped[:5]]
        if len(self.data.skipped) > 5:
            lines.append(f"skipped: {len(self.data.skipped)} in all; result.json has every line")
        leak = leak_warning(self.data) if self.config.data.holds_out else ""
        for line in filter(None, [*lines, leak]):
            self._print(line, "yellow")

    def _print_accuracies(self, split: str, last: Evaluation, result: RunResult) -> None:
        self.console.print(accuracy_table(result.steps, result.final_step))
        self._print(
            f"{result.final_step.name}: 95 % interval {interval(last.interval)}, on {len(last.labels):,} images"
        )
        if self.config.data.trains_on(split):
            self._print(f"{split}: these images were trained on, too, so their accuracy proves nothing", "yellow")
        leak = leak_line(split, (result.leaked or {}).get(split, []), last)
        for line in filter(None, [leak, below_floor(result)]):
            self._print(line, "yellow")
        self._print(f"model, plots and report.html: {self.folder.path}")
        if self.planner is not None:
            self._print(self.planner.end_line())
