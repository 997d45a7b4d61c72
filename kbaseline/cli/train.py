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
    resume: Path | None,
) -> None:
    """Run the whole recipe: find a learning rate, train, fine-tune, predict with test-time augmentation.

    Without options this is the article's recipe: CIFAR-10 at 128 pixels, ImageNet ResNet50, 3 + 3 epochs.
    """
    if resume is not None and (config or log or out):
        raise InputError("--resume: the run folder holds the configuration; leave out --config, --log, --out.")
    chosen = resolve(config, source, assignments, {"runtime.log": list(log)} if log else {}) if not resume else None
    start_keras()
    from kbaseline.baseline import resume_run, run_baseline
    from kbaseline.config.load import parse_assignments

    if resume is None:
        run_baseline(chosen, out=out)
    else:
        resume_run(resume, **{**({"data.source": source} if source else {}), **parse_assignments(assignments)})


@click.command("find-lr")
@settings
@out
@click.option("--stage", metavar="NAME", help="Stage whose layers the sweep trains. Default: the first.")
def find_lr(
    config: str | None, source: str | None, assignments: tuple[str, ...], out: Path | None, stage: str | None
) -> None:
    """Sweep the learning rate and write the curve as CSV and PNG; the model is left untrained."""
    chosen = resolve(config, source, assignments)
    start_keras()
    from kbaseline.baseline import find_learning_rate

    find_learning_rate(chosen, out=out, stage=stage)
