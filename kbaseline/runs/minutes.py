"""The rule of `minutes`: from what a network costs on this machine, the network, size and epochs that fit a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config
from kbaseline.console.format import clock, rate
from kbaseline.models.zoo import ZOO


@dataclass(frozen=True)
class Choice:
    """A row of the table: a network and a size.

    Attributes:
        backbone: name of the network, or path of a `.keras` model.
        size: side of its input, in pixels.
        finetuned: whether it is fine-tuned where time allows; others serve for a linear probe alone.
    """

    backbone: str
    size: int
    finetuned: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"{self.backbone} at {self.size} pixels"


PHOTOS = (
    Choice("efficientnet_lite2", 260),
    Choice("efficientnet_lite0", 256),
    Choice("efficientnet_lite0", 160, finetuned=False),
    Choice("efficientnet_lite0", 128, finetuned=False),
)
"""For photos, the best first. Fine-tuning at 160 pixels or fewer does not reach a probe at 260 (docs/recipe.md)."""

SMALL = (
    Choice("efficientnet_lite2", 128),
    Choice("efficientnet_lite0", 128),
    Choice("efficientnet_lite0", 96),
)
"""For images of at most `SMALL_SIDE` pixels, which are enlarged anyhow."""

SMALL_SIDE = 64

MULTIPLY_ADDS = {"efficientnet_lite0": 407, "efficientnet_lite2": 869}
"""Millions for one image of the size that the network was trained on, by its authors."""

LEAST_EPOCHS, MOST_EPOCHS = 2, 10
"""Fewer epochs of fine-tuning than the first are not worth their time; more than the second, or than light has, too."""

PROBE_SHARE = 0.1
"""Part of the time that the probe's pass over all images may take where a network is fine-tuned."""

USED = 0.95
"""Part of the time that is planned; the rest is for a machine that is not always equally fast."""

DOUBTED = 2000
"""Images of train and of validation, at most, that are predicted once more after training."""

SOLVING, FINISHING = 3e-3, 15.0
"""Seconds to fit the probe, for each of its images; and of results, plots and report, without what they compile."""


@dataclass(frozen=True)
class Work:
    """What a run has to do, in images.

    Attributes:
        train, valid, test: images of each split, 0 where there is none.
        views: of test-time augmentation; 0 without.
        decoding: seconds to decode an image; 0 where it is decoded already.
        swept: images that the learning-rate finder trains on.
    """

    train: int
    valid: int
    test: int = 0
    views: int = 0
    decoding: float = 0.0
    swept: int = 0

    @property
    def images(self) -> int:
        """Of all splits."""
        return self.train + self.valid + self.test


@dataclass(frozen=True)
class Cost:
    """What a network costs on a machine, in seconds.

    Attributes:
        building: to build it.
        compiling: to compile a prediction.
        predicting: to predict an image.
        compiling_step: to compile a training step, in the run itself: less than here if the program is kept.
        training: to train on an image.
    """

    building: float
    compiling: float
    predicting: float
    compiling_step: float
    training: float

    def scaled(self, factor: float) -> "Cost":
        """That of a network with so many times the arithmetic."""
        return replace(self, predicting=self.predicting * factor, training=self.training * factor)


@dataclass(frozen=True)
class Plan:
    """What fits.

    Attributes:
        choice: network and size.
        epochs: of fine-tuning; 0 for the probe alone.
        tta: whether there is time for test-time augmentation.
        seconds: planned, from now to the end of the run.
    """

    choice: Choice
    epochs: int
    tta: bool
    seconds: float


def candidates(config: Config, side: int, is_installed: Callable[[str], bool]) -> list[Choice]:
    """The rows of the table for images of this side: those whose weights are here, with the user's network or size.

    Args:
        config: a network or a size other than light's is the user's own, and every row gets it.
        side: the longer side of the images, in pixels, as they are decoded.
        is_installed: whether the weights of a network of the zoo are on this machine.
    """
    light = load_config("light")
    rows: tuple[Choice, ...] = SMALL if side <= SMALL_SIDE else PHOTOS
    if config.data.size != light.data.size:
        rows = tuple(replace(row, size=config.data.size, finetuned=True) for row in rows)
    if config.model.backbone != light.model.backbone:
        # Of another network the table knows nothing: it gets light's size at most.
        sizes = (replace(row, size=min(row.size, max(light.data.size, config.data.size))) for row in rows)
        return list(dict.fromkeys(replace(row, backbone=config.model.backbone) for row in sizes))
    return [row for row in dict.fromkeys(rows) if is_installed(row.backbone)]


def arithmetic(choice: Choice) -> float:
    """Multiply-adds for an image, in a unit that is the same for all rows of one table."""
    if choice.backbone not in MULTIPLY_ADDS:
        return float(choice.size**2)
    return MULTIPLY_ADDS[choice.backbone] * (choice.size / ZOO[choice.backbone].size) ** 2


def seconds_needed(cost: Cost, work: Work, epochs: int, tta: bool) -> float:
    """Seconds from decoding to the report; every pass over the images and every program is counted."""
    scored = work.valid + work.test
    again = min(work.train, DOUBTED) + min(work.valid, DOUBTED)
    # Of the classifier and the extractor; each with a program of its own, and one for the doubts.
    seconds = work.images * work.decoding + 2 * cost.building + 3 * cost.compiling + FINISHING
    seconds += work.images * cost.predicting + SOLVING * work.train
    seconds += (scored * (1 + work.views * tta) + again) * cost.predicting + 2 * cost.compiling * tta
    # The heat maps of the report.
    seconds += 2 * cost.compiling
    if epochs:
        seconds += cost.compiling_step + epochs * _epoch(cost, work) + work.swept * cost.training
    return seconds


def plan(choice: Choice, cost: Cost, work: Work, left: float, minutes: float, most: int = MOST_EPOCHS) -> Plan | None:
    """The plan with this network and size, or None if not even the probe fits.

    With fine-tuning it has at least `LEAST_EPOCHS`. Test-time augmentation is part of it where they fit beside it.

    Args:
        choice: network and size.
        cost: what they cost here.
        work: the images.
        left: seconds until the run should end.
        minutes: the whole time.
        most: the most epochs.
    """
    if choice.finetuned and work.images * cost.predicting <= PROBE_SHARE * 60 * minutes:
        for tta in (True, False):
            first = seconds_needed(cost, work, 1, tta)
            epochs = min(most, 1 + math.floor((left - first) / _epoch(cost, work)))
            if epochs >= LEAST_EPOCHS:
                return Plan(choice, epochs, tta, seconds_needed(cost, work, epochs, tta))
    return probe_alone(choice, cost, work, left)


def probe_alone(choice: Choice, cost: Cost, work: Work, left: float) -> Plan | None:
    """The plan that trains nothing, or None if it does not fit."""
    for tta in (True, False):
        if (seconds := seconds_needed(cost, work, 0, tta)) <= left:
            return Plan(choice, 0, tta, seconds)
    return None


def first_that_fits(
    rows: Sequence[Choice], cost: Callable[[Choice], Cost], work: Work, left: float, minutes: float, most: int
) -> Plan:
    """The plan of the first row that can be fine-tuned, else of the first whose probe fits, else of the last row.

    Args:
        rows: the table, the best first.
        cost: what a row costs here, measured or estimated.
        work, left, minutes, most: see `plan`.
    """
    plans = [plan(row, cost(row), work, left, minutes, most) for row in rows]
    for found in plans:
        if found is not None and found.epochs:
            return found
    probes = [probe_alone(row, cost(row), work, left) for row in rows]
    cheapest = Plan(rows[-1], 0, False, seconds_needed(cost(rows[-1]), work, 0, False))
    return next((found for found in probes if found is not None), cheapest)


def planned_config(config: Config, plan: Plan) -> Config:
    """The configuration of a run by this plan, complete, so that it is never timed again."""
    first, last = config.stages[0], config.stages[-1]
    stages = (first, last.model_copy(update={"epochs": plan.epochs, "steps": None})) if plan.epochs else (first,)
    return config.model_copy(
        update={
            "minutes": None,
            "data": config.data.model_copy(update={"size": plan.choice.size}),
            "model": config.model.model_copy(update={"backbone": plan.choice.backbone}),
            "stages": stages,
            "tta": config.tta if plan.tta else None,
        }
    )


def plan_lines(
    plan: Plan, cost: Cost, work: Work, better: Sequence[Choice], needed: float, spent: float, minutes: float
) -> list[str]:
    """What was chosen, and why, in three lines at most.

    Args:
        plan: the plan.
        cost: what its network costs here.
        work: the images.
        better: rows that come before it in the table and do not fit.
        needed: seconds that the whole run would take with the least fine-tuning there is.
        spent: seconds from the beginning to the plan.
        minutes: the whole time.
    """
    epochs = f"then {plan.epochs} epochs of fine-tuning" if plan.epochs else "no fine-tuning"
    tta = "test-time augmentation" if plan.tta else "no test-time augmentation"
    end = clock(spent + plan.seconds)
    lines = [f"{minutes:g} minutes: {plan.choice}, a linear probe, {epochs}, {tta}; planned to end after {end}"]
    trained = f", {rate(1 / cost.training)} trained" if plan.epochs else ""
    lines.append(
        f"timed here: {rate(1 / cost.predicting)} images/s predicted{trained}; the probe takes a pass over "
        f"{work.images:,} images{f', an epoch {clock(_epoch(cost, work))}' if plan.epochs else ''}"
    )
    least = f"{LEAST_EPOCHS} epochs"
    if not plan.epochs:
        lines.append(f"fine-tuning for {least} would take about {math.ceil(needed / 60)} minutes")
    elif better:
        lines.append(f"better, but without the time for {least}: {', '.join(map(str, better))}")
    if spent + plan.seconds > 60 * minutes:
        lines[-1] = f"not even the cheapest fits {minutes:g} minutes; `data.limit` takes fewer images"
    return lines


def _epoch(cost: Cost, work: Work) -> float:
    return work.train * cost.training + work.valid * cost.predicting
