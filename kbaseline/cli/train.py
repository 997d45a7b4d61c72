"""The commands that train: `fit` and `find-lr`."""

from pathlib import Path

import click

from kbaseline.cli.options import out, resolve, settings, start_keras
from kbaseline.errors import InputError


@click.command()
@settings
@click.option(
    "--log",
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    multiple=True,
    help="Also log every epoch to this tracker; repeatable.",
)
@out
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="The time you have: light, with network, size and epochs that a few timed steps find to fit it.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2),
    metavar="K",
    help="Run it with K seeds: mean, spread, and an interval over images and seeds.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    metavar="K",
    help="Hold out each of K parts in turn, then train on everything: one interval over all images.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Continue the run in this folder, wherever it is now. --data says where its images are, if moved; "
    "--set may change only where images, devices and processes are (docs/scaling.md).",
)
def fit(
    config: str | None,
    source: str | None,
    assignments: tuple[str, ...],
    log: tuple[str, ...],
    out: Path | None,
    minutes: float | None,
    seeds: int | None,
    folds: int | None,
    resume: Path | None,
) -> None:
    """Run the whole recipe: find a learning rate, train, fine-tune, predict with test-time augmentation.

    Without options this is the article's recipe: CIFAR-10 at 128 pixels, ImageNet ResNet50, 3 + 3 epochs.
    """
    if resume is not None and (config or log or out or minutes or seeds or folds):
        raise InputError("--resume: the run folder holds the configuration; give no other option but --data and --set.")
    if seeds and folds:
        raise InputError("--seeds and --folds: give one of them.")
    further = {"runtime.log": list(log) if log else None, "minutes": minutes}
    given = {key: value for key, value in further.items() if value is not None}
    chosen = resolve(config, source, assignments, given) if not resume else None
    start_keras()
    from kbaseline.baseline import resume_run, run_baseline
    from kbaseline.config.load import parse_assignments
    from kbaseline.repeats import is_repeats, resume_repeats, run_folds, run_seeds

    if seeds or folds:
        repeat, count = (run_seeds, seeds) if seeds else (run_folds, folds)
        repeat(chosen, count or 0, out=out)
    elif resume is None:
        run_baseline(chosen, out=out)
    else:
        moved = {**({"data.source": source} if source else {}), **parse_assignments(assignments)}
        (resume_repeats if is_repeats(resume) else resume_run)(resume, **moved)


@click.command("find-lr")
@settings
@out
@click.option("--stage", metavar="NAME", help="Stage whose layers the sweep trains. Default: the first that trains.")
def find_lr(
    config: str | None, source: str | None, assignments: tuple[str, ...], out: Path | None, stage: str | None
) -> None:
    """Sweep the learning rate and write the curve as CSV and PNG; the model is left untrained."""
    chosen = resolve(config, source, assignments)
    start_keras()
    from kbaseline.baseline import find_learning_rate

    find_learning_rate(chosen, out=out, stage=stage)
