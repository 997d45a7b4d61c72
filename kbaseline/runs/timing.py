"""Times a network on this machine, with a few steps, and plans a run of so many minutes by it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config
from kbaseline.console.bars import status
from kbaseline.console.format import clock
from kbaseline.data import ImageData, Split
from kbaseline.data.prepare import Survey, survey
from kbaseline.devices.multihost import are_several
from kbaseline.errors import InputError
from kbaseline.models.zoo import ZOO
from kbaseline.runs.minutes import (
    LEAST_EPOCHS,
    MOST_EPOCHS,
    USED,
    Choice,
    Cost,
    Plan,
    Work,
    arithmetic,
    candidates,
    first_that_fits,
    plan,
    plan_lines,
    planned_config,
    seconds_needed,
)

STEPS, ENOUGH = 20, 2.0
"""Training steps that are timed at most, and seconds of them that are enough; the first, which compiles, aside."""

TRAINING, COMPILING = 4.0, 20.0
"""Training an image over predicting it, and compiling the one over compiling the other, until they are timed. On two
CPU cores they were 2.4 to 4.3 and 19; on a GPU, where the first is about 3, there is time enough to be wrong."""

KEPT, LOADED = 3.0, 0.05
"""A training step whose program was compiled before: seconds to trace it, and the part of compiling that loads it."""


class StepTimer(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes when each training step has ended, and stops after enough of them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._clock, self.ends = clock, []  # type: tuple[Callable[[], float], list[float]]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the loss, which waits for the step."""
        float((logs or {})["loss"])
        self.ends.append(self._clock())
        if len(self.ends) > 1 and (self.ends[-1] - self.ends[0] >= ENOUGH or len(self.ends) > STEPS):
            self.model.stop_training = True


class Timer:
    """Times networks on images of a survey.

    Args:
        seen: the images.
        config: of the run; network and size are each choice's.
        learner: makes a learner, as the class does; it is trained a little and thrown away.
    """

    def __init__(self, seen: Survey, config: Config, learner: Callable[..., Any]) -> None:
        self._seen, self._config, self._learner = seen, config, learner

    def prediction(self, choice: Choice) -> Cost:
        """What a choice costs, its training guessed."""
        return self._predict(choice)[0]

    def training(self, choice: Choice) -> Cost:
        """What a choice costs, all of it timed."""
        cost, learner = self._predict(choice)
        timer = StepTimer()
        learner.callbacks.append(timer)
        (learner.freeze if self._config.stages[-1].freeze else learner.unfreeze)()
        began = time.perf_counter()
        # As in the run, so that it is the same program, which is compiled once where programs are kept.
        learner.fit_one_cycle(1, 1e-7, title="timing")
        step = (timer.ends[-1] - timer.ends[0]) / (len(timer.ends) - 1)
        compiling = max(0.0, timer.ends[0] - began - step)
        if self._config.runtime.compilation_cache:
            compiling = min(compiling, KEPT + LOADED * compiling)
        return replace(cost, compiling_step=compiling, training=step / learner.config.data.batch)

    def _predict(self, choice: Choice) -> tuple[Cost, Any]:
        seen, batch = self._seen, min(self._config.data.batch, self._seen.images["train"])
        labels = np.arange(batch * (STEPS + 1), dtype=np.int32) % len(seen.class_names)
        # One black image, many times over, without its memory: no time depends on pixels.
        height, width = seen.decoded_size(choice.size)
        many = Split(np.broadcast_to(np.uint8(0), (len(labels), height, width, 3)), labels)
        few = many.take(np.arange(2 * batch))
        data = ImageData(many, few, seen.class_names, choice.size, source=self._config.data.source)
        settings = {"model": {"backbone": choice.backbone}, "data": {"batch_size": batch, "size": choice.size}}
        config = self._config.model_copy(
            update={name: getattr(self._config, name).model_copy(update=changes) for name, changes in settings.items()}
        )
        learner, building = _timed(lambda: self._learner(data, config=config, console=Console(quiet=True)))
        _, first = _timed(lambda: learner.predict(few.images))
        _, second = _timed(lambda: learner.predict(few.images))
        predicting = second / len(few)
        if second < ENOUGH / STEPS:
            predicting = _timed(lambda: learner.predict(many.images))[1] / len(many)
        compiling = max(0.0, first - second)
        return Cost(building, compiling, predicting, COMPILING * compiling, TRAINING * predicting), learner


class Planner:
    """Plans a run that has `minutes`: first its network and size, and, with the images decoded, its epochs.

    Args:
        config: of the run.
        console: where to show that it works.
        learner: see `Timer`.
        now: a clock, in seconds.

    Attributes:
        lines: what was chosen, and why.

    Raises:
        InputError: several processes train together; DataError, DownloadError, RunError: as `load_source`.
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        learner: Callable[..., Any],
        *,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        if are_several():
            raise InputError("minutes: plans the run of one process; for several, give stages of your own.")
        self.minutes = config.minutes or 0.0
        self.lines: list[str] = []
        self._config, self._now = config, now
        with status(console, "timing networks on this machine"):
            seen = survey(config.data, config.seed, console)
            # From here on, so that a download does not count.
            self._began = now()
            self._rows = candidates(config, max(seen.image_size), lambda name: ZOO[name].weights_file.is_file())
            self._most = max(MOST_EPOCHS, load_config("light").stages[-1].epochs)
            self._known: dict[Choice, Cost] = {}
            self._plan, self._cost = self._choose(seen, Timer(seen, config, learner))

    @property
    def config(self) -> Config:
        """The configuration with the chosen network and size."""
        return planned_config(self._config, self._plan)

    def finish(self, data: ImageData) -> Config:
        """The configuration with the epochs that fit what is left, now that the images are decoded."""
        work = self._work({name: len(split) for name, split in data.splits.items()}, 0.0)
        row = self._plan.choice if self._plan.epochs else replace(self._plan.choice, finetuned=False)
        self._plan = first_that_fits([row], lambda _: self._cost, work, self._left(), self.minutes, self._most)
        better = self._rows[: self._rows.index(self._plan.choice)]
        spent = self._now() - self._began
        finetuned = [self._known[row] for row in self._rows if row.finetuned]
        needed = min(seconds_needed(cost, work, LEAST_EPOCHS, False) for cost in finetuned)
        self.lines = plan_lines(self._plan, self._cost, work, better, spent + needed / USED, spent, self.minutes)
        return self.config

    def end_line(self) -> str:
        """What a finished run took, beside what it had."""
        return f"time: {clock(self._now() - self._began)} of {clock(60 * self.minutes)}"

    def _choose(self, seen: Survey, timer: Timer) -> tuple[Plan, Cost]:
        work = self._work(seen.images, seen.decoding)
        cheapest = min(self._rows, key=arithmetic)
        self._guess(cheapest, timer.prediction(cheapest))
        rows = self._rows
        while True:
            found = first_that_fits(rows, self._known.__getitem__, work, self._left(), self.minutes, self._most)
            if not found.epochs:
                return found, self._known[found.choice]
            cost = timer.training(found.choice)
            if (fits := plan(found.choice, cost, work, self._left(), self.minutes, self._most)) and fits.epochs:
                return fits, cost
            # Not so fast as guessed, and nor are the others.
            self._guess(found.choice, cost)
            rows = [replace(row, finetuned=row.finetuned and row != found.choice) for row in rows]

    def _guess(self, timed: Choice, cost: Cost) -> None:
        """Guesses what every row costs from one that was timed, and with it what it costs to time it."""
        for row in self._rows:
            scaled = cost.scaled(arithmetic(row) / arithmetic(timed))
            timing = COMPILING * cost.compiling + KEPT + scaled.training * 3 * self._config.data.batch
            self._known[row] = replace(scaled, compiling_step=timing)

    def _left(self) -> float:
        return USED * 60 * self.minutes - (self._now() - self._began)

    def _work(self, images: dict[str, int], decoding: float) -> Work:
        config, last = self._config, self._config.stages[-1]
        views = config.tta.views if config.tta else 0
        # The stage's own steps are what is planned here: they justify no sweep that nobody asked for.
        swept = last.sweeps(config.lr_find.steps, 0, accelerator=False) * config.lr_find.steps * config.data.batch
        return Work(**images, views=views, decoding=decoding, swept=swept)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
