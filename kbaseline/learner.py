"""`Learner`: data, model and optimizer, with methods named as in the article: lr_find, fit_one_cycle, unfreeze, tta."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.config.paths import expand_home
from kbaseline.config.schema import FEW_IMAGES, Config
from kbaseline.console.format import shortened
from kbaseline.console.training import StageTable, SweepBar
from kbaseline.data import ImageData, Split
from kbaseline.data.batches import ImageBatches
from kbaseline.data.class_weights import class_weights
from kbaseline.data.fit import fit_batch
from kbaseline.data.image_data import checked_images
from kbaseline.data.splits import stratified_sample
from kbaseline.devices.auto_batch import resolve_batch_size
from kbaseline.devices.multihost import are_several, init_distributed, is_first, rank0_console, rank0_first
from kbaseline.devices.parallel import available_devices, data_parallel, device_summary, on_all_devices
from kbaseline.devices.predict import prediction_batch_size
from kbaseline.devices.settings import check_settings
from kbaseline.devices.xla import explain_oom, set_compilation_cache, start_jax, with_precision
from kbaseline.doubt import IMAGES, Doubt, fit_doubt
from kbaseline.errors import InputError
from kbaseline.lr_finder import LRCurve, LRFinder
from kbaseline.metrics import Evaluation, evaluate_predictions
from kbaseline.models.backbones import load_backbone
from kbaseline.models.classifier import build_classifier, freeze, group_rows, grouped_layers, unfreeze
from kbaseline.models.zoo import BackboneName
from kbaseline.optimizer import LayerwiseAdamW, clone_optimizer, layer_group_lrs
from kbaseline.render.notebook import Gallery, Table, fragment, paragraphs
from kbaseline.runs.examples import example_gallery
from kbaseline.runs.inference import TTAResult, predict_plain, predict_views, predict_with_features
from kbaseline.runs.record import fitted_temperatures, read_run
from kbaseline.runs.results import Sweep, write_sweeps
from kbaseline.runs.run import load, read_data
from kbaseline.schedules import CosineCycle, OneCycle
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.history import History
from kbaseline.training.session import Session
from kbaseline.training.signals import Interrupts, Stopped, stoppable
from kbaseline.training.stage import Stage, applied_rates, train
from kbaseline.training.state import leave_state_untracked

DEFAULT_LR = 3e-3
"""Default learning rate of the head, as in fastai; the body uses a tenth of it."""

MaxLR = float | slice | tuple[float | None, float]


class Learner:
    """Trains a classifier with the article's verbs: find a rate, fit one cycle, unfreeze, fit again, predict with TTA.

    >>> from rich.console import Console
    >>> from kbaseline import ImageData, Learner
    >>> learn = Learner(ImageData.from_source("digits", size=32), config="quickstart", console=Console(quiet=True))
    >>> rate = learn.lr_find().suggest("valley")
    >>> rows = learn.fit_one_cycle(1, max_lr=rate)
    >>> learn.unfreeze()
    >>> rows = learn.fit_one_cycle(1, max_lr=slice(rate / 100, rate))
    >>> learn.tta().probabilities.shape
    (359, 10)

    A backbone with pretrained weights starts frozen. The optimizer keeps its state from fit to fit; `freeze` and
    `unfreeze` reset it, as in fastai v1's `basic_train.py`.

    Args:
        data: training and validation images.
        backbone: a name from the zoo or the path of a `.keras` model; default: the configuration's.
        weights: `"auto"` for the backbone's pretrained weights, `"none"` or a file; default: the configuration's.
        config: all other settings, as `load_config` accepts them: a `Config`, a mapping, a YAML file. Of its `data`
            section only the batch size and the class weights are used.
        console: where progress is printed; default: standard output. `Console(quiet=True)` prints nothing.

    Attributes:
        model: the Keras model, from uint8 images to float32 logits.
        history: one row per epoch, over all fits; a list that plots itself.
        applied: one row per step, over all fits: stage, step, learning rate of each layer group, momentum.
        callbacks: Keras callbacks added to every fit, for instance trackers; initially empty.
        distribution: distributes every batch over several devices, or None.
        session: saves checkpoints of the fits and holds the one to resume from; None saves none.

    Raises:
        ModelError: see `build_classifier`.
        DataError: a class weight names an unknown class.
        DownloadError: see `build_classifier`.
        RunError: `data.batch_size` is `auto`, and not even one image fits into the accelerator's memory.
        InputError: a device does not exist, the devices cannot share a batch equally, or Keras or JAX is set to what a
            run cannot use.
    """

    def __init__(
        self,
        data: ImageData,
        backbone: BackboneName | str | None = None,
        weights: Literal["auto", "none"] | str | None = None,
        *,
        config: Config | Mapping[str, Any] | str | Path | None = None,
        console: Console | None = None,
    ) -> None:
        given = {"model.backbone": backbone, "model.weights": weights}
        own = {"data.source": data.source, "data.size": data.size}
        settings = load_config(config, {**{key: value for key, value in given.items() if value is not None}, **own})
        self._setup(data, settings, console, None)

    def _setup(self, data: ImageData, config: Config, console: Console | None, run: Path | None) -> None:
        """Initializes the learner with a new model, or with the model of a finished `run`."""
        check_settings()
        self.config = config
        set_compilation_cache(config.data.cache_folder if config.runtime.compilation_cache else None)
        init_distributed(self.config.runtime, console)
        start_jax(deterministic=self.config.runtime.deterministic)
        if run is not None:
            self.config = available_devices(config, rank0_console(console))
        self.distribution = data_parallel(self.config.runtime.devices, self.config.data.batch_size)
        self.data = data
        self.console = rank0_console(console)
        if run is None and are_several():
            # Only the first process downloads: two downloads to one file would collide.
            rank0_first(
                "weights", lambda: load_backbone(self.config.model.backbone, self.config.model.weights, data.size)
            )
        self.model = self._build_model() if run is None else self._saved_model(run)
        leave_state_untracked(self.model)
        devices = 1 if self.distribution is None else self.distribution.num_model_replicas
        self.config = resolve_batch_size(self.config, self.model, data, self.console, devices)
        per_epoch = len(data.train) // self.config.data.batch
        stages = tuple(stage.with_enough_steps(per_epoch) for stage in self.config.stages)
        asked = self.config.model.train_bn
        self.config = self.config.model_copy(update={"stages": stages}).with_train_bn(len(data.train))
        if asked == "auto" and not self.config.model.train_bn:
            self.console.print(
                f"BatchNorm stays as it was trained: {len(data.train):,} training images are fewer than {FEW_IMAGES:,} "
                "(model.train_bn: auto)",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if line := device_summary(self.distribution, self.config.data.batch):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.frozen = False
        self.history = History()
        self.applied: list[dict[str, Any]] = []
        self.callbacks: list[keras.callbacks.Callback] = []
        self.session: Session | None = None
        self._fits = 0
        self._optimizer: LayerwiseAdamW | None = None
        self._compiled: LayerwiseAdamW | None = None
        self._batches = self._train_batches(self.config.seed)
        if self.config.model.weights != "none":
            self.freeze()

    @classmethod
    def load(cls, run: str | Path, *, console: Console | None = None) -> Self:
        """A learner with the model of a finished run, frozen as in its last stage, and the data read again.

        History and optimizer state start empty. Where there are fewer devices than the run used, those are used.

        Args:
            run: the run folder.
            console: as for the class.

        Raises:
            InputError: the folder holds no finished run, or its model or data can no longer be read.
            DownloadError, RunError: as `ImageData.from_source`.
        """
        read = read_run(Path(run))
        learn = cls.__new__(cls)
        cls._setup(learn, read_data(read, console or Console()), read.config, console, read.folder)
        (learn.freeze if read.config.stages[-1].freeze else learn.unfreeze)()
        return learn

    @on_all_devices
    def _saved_model(self, run: Path) -> keras.Model:
        return load(run).model

    @on_all_devices
    def _build_model(self) -> keras.Model:
        settings = self.config.model
        with with_precision(self.config.runtime.precision):
            return build_classifier(
                self.data.num_classes,
                self.data.size,
                settings.backbone,
                settings.weights,
                transforms=self.config.transforms.model_dump(),
                head=settings.head,
                hidden=settings.hidden,
                dropout=settings.dropout,
                bn_momentum=settings.bn_momentum,
                seed=self.config.seed,
            )

    @on_all_devices
    def _train_batches(self, seed: int) -> ImageBatches:
        """The training images, shuffled with `seed`, with class weights if configured."""
        train, settings = self.data.train, self.config.data
        weights = class_weights(settings.class_weights, train.labels, self.data.class_names)
        return ImageBatches(train.images, train.labels, settings.batch, class_weights=weights, shuffle=True, seed=seed)

    def freeze(self) -> None:
        """Freezes the backbone, except its BatchNorm layers if `model.train_bn` is true."""
        freeze(self.model, self.config.model.train_bn is True)
        self.frozen, self._optimizer, self._compiled = True, None, None

    def unfreeze(self) -> None:
        """Makes every layer trainable, except the backbone's BatchNorm layers if `model.train_bn` is false."""
        settings = self.config.model
        # Random weights have no statistics worth keeping.
        unfreeze(self.model, settings.train_bn is True or settings.weights == "none")
        self.frozen, self._optimizer, self._compiled = False, None, None

    def skip_stage(self, row: dict[str, Any]) -> None:
        """Counts a stage that trains nothing; `row` is its line of the history, or an earlier process's is taken."""
        start = self.session.start if self.session else None
        done = start is not None and start.stage > self._fits
        self.history.append(start.record["history"][len(self.history)] if done and start else row)
        self._fits += 1

    def lr_find(self, out: str | Path | None = None, *, title: str = "lr_find") -> LRCurve:
        """Runs the learning-rate finder with one rate for all layers, prints its suggestions and restores the model.

        Args:
            out: folder for the curve, as `lr_find.csv` and `lr_find.png` with the suggestions marked.
            title: printed before the suggestions.

        Returns:
            The curve; `curve.suggest("valley")` suggests a rate.

        Raises:
            LRFinderError: there are too few points, or the loss never falls or is not finite.
        """
        curve = self.lr_sweep()
        suggestions = curve.suggestions()
        if out is not None:
            folder = expand_home(out)
            folder.mkdir(parents=True, exist_ok=True)
            write_sweeps(RunFolder(folder, is_first()), {title: Sweep(curve, suggestions)})
        rates = ", ".join(f"{rule} {rate:.2e}" for rule, rate in suggestions.items())
        self.console.print(f"[bold]{title}[/]: suggested rates: {rates}", highlight=False, soft_wrap=True)
        return curve

    @on_all_devices
    def lr_sweep(self) -> LRCurve:
        """The sweep of `lr_find` without suggestions; its curve may be unusable."""
        settings = self.config.lr_find
        finder = LRFinder(settings.start_lr, settings.end_lr, settings.steps, stop_factor=settings.stop_factor)
        # Shuffled with another seed, so that the sweep does not change later random draws.
        batches = self._train_batches(self.config.seed + 1)
        kept = self._optimizer
        self._compile(
            self._make_optimizer([1.0, 1.0, 1.0], settings.start_lr, 0.9 if kept is None else kept.schedules[1])
        )
        bar, epochs = SweepBar(settings.steps, self.console), math.ceil(settings.steps / len(batches))
        try:
            with bar, self._stoppable("the model was restored") as stop, self._explain_oom("learning-rate sweep"):
                self.model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[finder, bar, *stop])
        finally:
            finder.restore()
            self._optimizer = kept
            self._compile(kept or self._make_optimizer([*[DEFAULT_LR / 10] * 2, DEFAULT_LR], DEFAULT_LR, 0.9))
            self._optimizer = kept
        return finder.curve

    @on_all_devices
    def fit(self, epochs: int, lr: MaxLR = slice(DEFAULT_LR), *, title: str = "fit") -> History:
        """Trains at constant rates. As in fastai, beta_1 stays where the last fit left it; before any it is 0.9.

        Args:
            epochs: passes over the training images.
            lr: as `max_lr` of `fit_one_cycle`.
            title: stage name in the history.

        Returns:
            One row per epoch, a list that plots itself.

        Raises:
            RunError: the loss is not finite, or the accelerator runs out of memory.
        """
        rates = layer_group_lrs(lr, 3)
        beta_1 = 0.9 if self._optimizer is None else self._optimizer.schedules[1]
        return self._train(self._make_optimizer(rates, rates[-1], beta_1), epochs, title)

    @on_all_devices
    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: MaxLR = slice(DEFAULT_LR),
        *,
        pct_start: float = 0.3,
        div: float = 25.0,
        final_div: float = 2.5e5,
        title: str = "one_cycle",
    ) -> History:
        """Trains for one cycle of learning rate and momentum.

        Args:
            epochs: passes over the training images.
            max_lr: peak rate: a float for all layers; `slice(lo, hi)` for rates spaced geometrically over early body,
                late body and head; `slice(hi)` for `hi` in the head and a tenth of it in the body.
            pct_start: fraction of the steps in which the rate rises.
            div: the first rate is the peak divided by this.
            final_div: the last rate is the peak divided by this.
            title: stage name in the history.

        Returns:
            One row per epoch, a list that plots itself.

        Raises:
            RunError: the loss is not finite, or the accelerator runs out of memory.
        """
        rates = layer_group_lrs(max_lr, 3)
        start = 0 if self._optimizer is None else int(self._optimizer.iterations)
        cycle = OneCycle(rates[-1], epochs * len(self._batches), pct_start, div, final_div, start)
        return self._train(
            self._make_optimizer(rates, cycle, cycle.momentum(*self.config.optimizer.momentum)), epochs, title
        )

    def _make_optimizer(self, rates: list[float], learning_rate: Any, beta_1: Any) -> LayerwiseAdamW:
        """An optimizer with these rates and momentum, continuing the state of the last one if there is one."""
        groups = zip(grouped_layers(self.model), rates, strict=True)
        trained = [(group, rate) for group, rate in groups if any(layer.trainable_variables for layer in group)]
        names = [[layer.name for layer in group] for group, _ in trained]
        multipliers = [rate / rates[-1] for _, rate in trained]
        if self._optimizer is not None:
            changes = {"learning_rate": learning_rate, "multipliers": multipliers, "beta_1": beta_1}
            continued: LayerwiseAdamW = clone_optimizer(self._optimizer, self.model.trainable_variables, **changes)
            return continued
        settings = self.config.optimizer
        return LayerwiseAdamW(
            learning_rate,
            names,
            multipliers,
            weight_decay=settings.weight_decay,
            beta_1=beta_1,
            beta_2=settings.beta_2,
            epsilon=settings.epsilon,
        )

    def _compile(self, optimizer: LayerwiseAdamW) -> None:
        model = self.model
        # Rates, momenta and multipliers are state. Until layers are frozen or unfrozen, one program serves all.
        kept = (None, None)
        if self._compiled is not None and model.optimizer is self._compiled:
            kept = model.train_function, model.predict_function
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        model.train_function, model.predict_function = kept
        self._optimizer = self._compiled = optimizer

    def _train(self, optimizer: LayerwiseAdamW, epochs: int, title: str) -> History:
        if epochs < 1:
            raise InputError(f"{title}: epochs must be at least 1; got {epochs}.")
        self._compile(optimizer)
        size, train_steps = self.config.data.batch, len(self._batches)
        valid_batch = prediction_batch_size(2 * size, self.data.size**2)
        stage = Stage(self._fits, title, epochs, train_steps, int(optimizer.iterations), valid_batch)
        self._fits += 1
        before, start = len(self.history), self.session.start if self.session else None
        if start is not None and start.stage > stage.number:
            # An earlier process trained this stage; the checkpoint's state is restored in a later one.
            optimizer.build(self.model.trainable_variables)
            optimizer.iterations.assign(stage.first + epochs * train_steps)
            self._batches.go_to(self._batches.epoch + 1 + epochs)
            self.history += start.record["history"][before : before + epochs]
        else:
            side = max(self.model.get_layer("transforms").training_size)
            smaller = side if side < self.data.size else None
            table = StageTable(title, epochs, train_steps * size, self.console, smaller)
            valid, earlier = self.data.valid, list(self.history)
            try:
                with self._explain_oom(title), self._interrupts("") as interrupts:
                    train(
                        *(self.model, self._batches, valid, stage, table, earlier, self.session, self.callbacks),
                        interrupts,
                    )
            except Stopped as stop:
                if self.session is not None:
                    raise
                self._record_rates(optimizer, stage)
                done, steps = int(optimizer.iterations) - stage.first, epochs * train_steps
                kept = f"{title}: the model keeps what it learned in {done:,} of {steps:,} steps, and learn.history "
                raise Stopped(stop.number, f"{kept}{len(table.rows)} of {epochs} epochs") from None
            finally:
                self.history += table.rows
        self._record_rates(optimizer, stage)
        return History(self.history[before:])

    def _interrupts(self, kept: str) -> AbstractContextManager[Interrupts]:
        """The session's interrupts, or some for this block alone, whose message ends with `kept`."""
        return nullcontext(self.session.interrupts) if self.session else Interrupts(kept, guest=True)

    @contextmanager
    def _stoppable(self, kept: str = "nothing was changed") -> Iterator[list[keras.callbacks.Callback]]:
        with self._interrupts(kept) as interrupts, stoppable(interrupts) as callbacks:
            yield callbacks

    def _explain_oom(self, what: str) -> AbstractContextManager[None]:
        return explain_oom(what, self.config.data.batch)

    def _record_rates(self, optimizer: LayerwiseAdamW, stage: Stage) -> None:
        # Not the planned steps: a callback may have stopped training.
        lrs, momenta = applied_rates(optimizer, np.arange(stage.first, int(optimizer.iterations)))
        offset = len(self.applied)
        for index, (lr, momentum) in enumerate(zip(lrs, momenta, strict=True)):
            groups = {f"lr_{i}": float(lr) * factor for i, factor in enumerate(optimizer.multipliers)}
            row = {"stage": stage.title, "step": offset + index, "lr": float(lr), "momentum": float(momentum), **groups}
            self.applied.append(row)

    @on_all_devices
    def predict(self, images: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Class probabilities.

        Args:
            images: uint8 or float `(number, height, width, 3)`, 0-255, all of one size.
            batch_size: images per batch; default: twice the training batch size, less on a CPU.

        Returns:
            Float32 `(number, classes)`.

        Raises:
            DataError: there are no images, or values outside 0-255.
        """
        images = fit_batch(checked_images("prediction", images), *self.data.image_size, self.config.data.resize)
        with self._stoppable() as stop:
            return predict_plain(self.model, images, self.config, self.console, batch_size, stop)

    def evaluate(self, split: str = "valid", *, temperature: float | None = None) -> Evaluation:
        """Scores the plain predictions on a split.

        Args:
            split: `"train"`, `"valid"` or `"test"`.
            temperature: see `metrics.evaluate_predictions`.

        Raises:
            DataError: the split does not exist.
        """
        part = self.data.split(split)
        score = self._scoring(part)
        return score(self.predict(part.images), temperature=temperature)

    @on_all_devices
    def tta(self, split: str = "valid", *, temperatures: Mapping[str, float] | None = None) -> TTAResult:
        """Predicts a split with test-time augmentation, configured by the `tta` section, and scores it.

        Args:
            split: `"train"`, `"valid"` or `"test"`.
            temperatures: for the kinds `plain` and `tta`, fitted on other predictions; None fits them on these.

        Raises:
            DataError: the split does not exist.
            InputError: the configuration turns test-time augmentation off.
        """
        part = self.data.split(split)
        begin = time.perf_counter()
        with self._stoppable() as stop:
            plain, augmented = predict_views(
                self.model, part.images, self.config, self.data.source, self.console, callbacks=stop
            )
        seconds = time.perf_counter() - begin
        fitted, score = temperatures or {}, self._scoring(part)
        result = TTAResult(
            plain=score(plain, temperature=fitted.get("plain")),
            tta=score(augmented, temperature=fitted.get("tta")),
            seconds=seconds,
        )
        text = f"tta on {split}: {result.tta.accuracy:.2%}, plain {result.plain.accuracy:.2%}"
        hint = "" if result.helped else "; worse than plain: check tta.flip and tta.scale in the configuration"
        self.console.print(text + hint, style=None if result.helped else "yellow", highlight=False, soft_wrap=True)
        return result

    def _scoring(self, part: Split) -> Callable[..., Evaluation]:
        """Scores probabilities of a split, with its images at hand for `Evaluation.worst`."""
        show = partial(example_gallery, self.model, part)
        return partial(evaluate_predictions, labels=part.labels, class_names=self.data.class_names, pictures=show)

    def show_batch(self, n: int = 10, *, seed: int = 0) -> Gallery:
        """Shows training images, augmented as this learner's training may show them; see `ImageData.show`."""
        return self.data.show(n, augmented=self.config.transforms, seed=seed)

    def summary(self) -> Table:
        """The layer groups: layers with weights, parameters, trainable parameters, and peak rate.

        The rate is that of the last fit, if neither `freeze` nor `unfreeze` came after it.
        """
        rows = group_rows(self.model)
        if self._optimizer is not None:
            rate, _ = self._optimizer.schedules
            peak = rate.peak if isinstance(rate, CosineCycle) else rate
            trained = [row for row in rows if row["trainable"]]
            for row, multiplier in zip(trained, self._optimizer.multipliers, strict=False):
                row["rate"] = peak * multiplier
        return rows

    def __repr__(self) -> str:
        settings, rows = self.config.model, self.summary()
        total, trainable = (sum(row[key] for row in rows) for key in ("parameters", "trainable"))
        frozen = "not frozen" if not self.frozen else f"frozen{' except BatchNorm' if settings.train_bn else ''}"
        rates = ", ".join(f"{row['group']} {row['rate']:.1e}" for row in rows if row.get("rate"))
        return (
            f"Learner: {shortened(settings.backbone, 80)} with weights {shortened(settings.weights, 80)}, {frozen}\n"
            f"{trainable:,} of {total:,} parameters train{f'; last peak rates: {rates}' if rates else ''}\n"
            f"{self.data!r}\n{self.history!r}"
        )

    def _repr_html_(self) -> str:
        return fragment(paragraphs(repr(self)), self.summary().html())

    @on_all_devices
    def doubt(self, valid: Mapping[str, Evaluation]) -> Doubt:
        """What to doubt of the model's answers, from validation and from features of some training images.

        Args:
            valid: evaluations of the validation split, by kind of prediction.
        """
        features, labels = {}, {}
        for name in ("train", "valid"):
            split = self.data.split(name)
            if len(split) > IMAGES:
                split = split.take(stratified_sample(split.labels, IMAGES, self.config.seed))
            with self._stoppable() as stop:
                found = predict_with_features(self.model, split.images, self.config, self.console, callbacks=stop)
            features[name], labels[name] = found[1], split.labels
        probabilities = {kind: one.probabilities for kind, one in valid.items()}
        return fit_doubt(
            fitted_temperatures(valid, self.config.data),
            probabilities,
            self.data.valid.labels,
            features["train"],
            labels["train"],
            features["valid"],
        )

    def save(self, path: str | Path) -> Self:
        """Saves the model, including the optimizer, as a `.keras` file."""
        self.model.save(path)
        return self
