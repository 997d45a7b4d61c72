"""The floor: what a run must beat, measured before training; the majority class, and a linear probe on its features."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from kbaseline.config.schema import Config
from kbaseline.console.format import clock, percent
from kbaseline.data import ImageData, Split
from kbaseline.data.cache import Decoded
from kbaseline.data.class_weights import class_weights
from kbaseline.data.splits import stratified_sample
from kbaseline.devices.predict import prediction_batch_size
from kbaseline.devices.xla import with_precision
from kbaseline.errors import RunError
from kbaseline.feature_extraction import pooled_features
from kbaseline.models.probe import Probe, fit_probe
from kbaseline.runs.record import PROBE, RunFloor, RunResult

MOST = 5000
"""Images of a split that the probe takes, so that it costs a large data set no more than about a hundredth of its
training; where a stage starts from it, it takes all."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured before training.

    Attributes:
        floor: the floor.
        probe: the probe, on the features of the run's own backbone at the run's size; None where the floor has none.
        features: split -> float32 `(images, channels)`, of all images of all splits; empty where only a part was taken.
    """

    floor: RunFloor
    probe: Probe | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


def measure_floor(data: ImageData, config: Config, console: Console | None) -> Measured:
    """Measures the floor of a run.

    Args:
        data: the data of the run.
        config: its configuration.
        console: where to show progress; None shows nothing.

    Raises:
        RunError: a stage starts from the probe, and its features cannot be computed or kept.
    """
    most_frequent = int(np.bincount(data.train.labels).argmax())
    majority = float((data.valid.labels == most_frequent).mean())
    if config.model.weights == "none":
        return Measured(RunFloor(majority=majority, note="no linear probe, for features of random weights are random"))
    needed = config.stages[0].init == "probe"
    parts = {name: part if needed else _sample(part, config.seed) for name, part in data.splits.items()}
    if len(parts["train"]) < len(data.train) or len(parts["valid"]) < len(data.valid):
        parts.pop("test", None)
    if len(np.unique(parts["train"].labels)) < 2:
        return Measured(RunFloor(majority=majority, note="no linear probe, for it needs images of two classes"))
    try:
        found = _features(parts, data.size, config, console)
    except RunError as error:
        if needed:
            raise
        return Measured(RunFloor(majority=majority, note=f"no linear probe: {error}"))
    train, valid = parts["train"], parts["valid"]
    probe = fit_probe(
        found["train"],
        train.labels,
        data.num_classes,
        seed=config.seed,
        groups=train.groups,
        class_weights=class_weights(config.data.class_weights, train.labels, data.class_names),
    )
    probabilities = probe.probabilities(found["valid"])
    own = probabilities[np.arange(len(valid)), valid.labels]
    floor = RunFloor(
        majority=majority,
        probe=float((probabilities.argmax(axis=1) == valid.labels).mean()),
        probe_loss=float(-np.log(own.clip(1e-12)).mean()),
        train_images=len(train),
        valid_images=len(valid),
    )
    whole = all(len(part) == len(parts.get(name, ())) for name, part in data.splits.items())
    return Measured(floor, probe, found if whole else {})


def floor_line(floor: RunFloor, images: Mapping[str, int], seconds: float) -> str:
    """One line on a floor; `images` by split are those of the run, `seconds` those of the measurement."""
    line = f"to beat: majority class {percent(floor.majority)}"
    if floor.probe is None:
        return f"{line}; {floor.note}"
    part = ""
    if floor.train_images < images["train"] or floor.valid_images < images["valid"]:
        part = (
            f"fitted to {floor.train_images:,} of {images['train']:,} images and scored on {floor.valid_images:,} of "
            f"{images['valid']:,}, "
        )
    return f"{line}, linear probe {percent(floor.probe)} ({part}{clock(seconds)})"


def below_floor(result: RunResult) -> str:
    """One line if a run is worse than its floor on validation; else an empty string."""
    if result.floor is None:
        return ""
    (name, floor), accuracy = result.floor.best, result.final_valid_accuracy
    if accuracy >= floor:
        return ""
    remedy = ""
    if name == PROBE and result.kept is None:
        remedy = "; `keep: best` with a linear head and a first stage of `init: probe` would have kept the probe"
    return f"below its floor: {percent(accuracy)} on validation, the {name} has {percent(floor)}{remedy}"


def _sample(part: Split, seed: int) -> Split:
    return part if len(part) <= MOST else part.take(stratified_sample(part.labels, MOST, seed))


def _features(parts: Mapping[str, Split], size: int, config: Config, console: Console | None) -> dict[str, np.ndarray]:
    decoded = {name: Decoded(part.images, part.digests, {}) for name, part in parts.items()}
    model, batch_size = config.model, prediction_batch_size(config.data.batch, size**2)
    # In the precision of the network that the probe is to become the head of.
    with with_precision(config.runtime.precision):
        return pooled_features(
            decoded, model.backbone, model.weights, size, batch_size, config.data.cache_folder, console
        )
