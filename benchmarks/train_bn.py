r"""What `model.train_bn` costs and brings: one recipe twice, BatchNorm left and trained, and the table in docs/results.md.

    python benchmarks/train_bn.py run --out runs/train_bn --name "waste photos" --source photos/trash/train \
        --network efficientnet_lite0 --network mobilenet_v2 --set data.size=128 --set stages.1.epochs=2
    python benchmarks/train_bn.py run --out runs/train_bn --name CIFAR-10 --source tfds:cifar10 \
        --network efficientnet_lite0 --set data.limit=2000 --set data.limit_valid=1000 --set data.size=128
    python benchmarks/train_bn.py page runs/train_bn docs/results.md

Call `run` once for each source, with one `--out`; it keeps finished runs and continues interrupted ones. The last
stage's model is scored, not the best one's: `keep: best` would hide a loss behind the probe.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import marked

from kbaseline import resume_run, run_baseline
from kbaseline.config.load import parse_assignments
from kbaseline.console.format import interval
from kbaseline.metrics import compare_paired
from kbaseline.runs.record import KINDS, RunRecord, read_run

KEYS = ("left", "trained")
"""Names of the folders of a pair, for `train_bn: false` and `true`."""


@click.group()
def main() -> None:
    """Measure both values of model.train_bn, or tabulate them."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the run folders.")
@click.option("--name", required=True, help="Of the source, for the table.")
@click.option("--source", required=True, help="As data.source.")
@click.option("--network", "networks", multiple=True, required=True, help="As model.backbone; repeatable.")
@click.option("--config", "recipe", default="light", show_default=True, help="The recipe of both runs of a pair.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key of both.")
def run(out: Path, name: str, source: str, networks: Sequence[str], recipe: str, assignments: Sequence[str]) -> None:
    """Run the recipe twice for every network."""
    for network in networks:
        for key, train_bn in zip(KEYS, (False, True), strict=True):
            folder = out / name / f"{recipe} {Path(network).stem}" / key
            if (folder / "config.yaml").is_file():
                resume_run(folder)
                continue
            changes = {"data.source": source, "model.backbone": network, "keep": "last"}
            settings = changes | parse_assignments(assignments) | {"model.train_bn": train_bn}
            run_baseline(recipe, out=folder, **settings)


@main.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True))
@click.argument("page", type=click.Path(path_type=Path, exists=True))
def page(runs: Path, page: Path) -> None:
    """Write the tables of the finished pairs in RUNS into PAGE."""
    found = [path.parents[1] for path in sorted(runs.glob(f"*/*/{KEYS[-1]}/result.json"))]
    pairs = [
        (folder.parent.name, *(read_run(folder / key) for key in KEYS))
        for folder in found
        if (folder / KEYS[0] / "result.json").is_file()
    ]
    if not pairs:
        raise click.ClickException(f"{runs}: holds no finished pair of runs; make them with the command `run`.")
    marked.write(page, "train_bn", tables(pairs))


def tables(pairs: Sequence[tuple[str, RunRecord, RunRecord]]) -> str:
    """Markdown: accuracy by step of every run, then both of a pair compared image by image.

    Args:
        pairs: name of the source, the run with BatchNorm left, the run with BatchNorm trained.
    """
    columns = "images | head starts | rates | BatchNorm | probe, % | fine-tuned, % | with TTA, % | images/s"
    lines = [f"| source | network | {columns} |", "|---" * 10 + "|"]
    paired = [
        "| source | network | head starts | step | trained less left, points | only trained right | only left right | p |"
    ]
    paired.append("|---|---|---|---|---:|---:|---:|---:|")
    for name, left, trained in pairs:
        about = f"{name}, {left.config.data.size} px | {_network(left)}"
        for record, value in ((left, "left"), (trained, "trained")):
            lines.append(f"| {about} | {_settings(record)} | {value} | {_accuracies(record)} |")
        for kind in (kind for kind in KINDS if kind in left.evaluations["valid"]):
            both = compare_paired(left.evaluations["valid"][kind], trained.evaluations["valid"][kind])
            step = "fine-tuned" if kind == "plain" else "with TTA"
            paired.append(
                f"| {about} | {_start(left)} | {step} | {100 * both.difference:+.2f} | {both.only_second} | "
                f"{both.only_first} | {both.p_value:.2g} |"
            )
    return "\n".join([_setting(pairs[0][1]), "", *lines, "", *paired])


def _network(record: RunRecord) -> str:
    return f"`{Path(record.config.model.backbone).name}`"


def _start(record: RunRecord) -> str:
    return "as the probe" if record.config.stages[0].init == "probe" else "from random numbers"


def _settings(record: RunRecord) -> str:
    """Images, start of the head, epochs and rates."""
    images, stages = record.result.data.images, record.config.stages
    epochs = " + ".join(str(stage.epochs) for stage in stages if stage.epochs)
    rates = stages[-1].max_lr
    shown = " … ".join(f"{rate:.0e}".replace("e-0", "e-") for rate in rates) if isinstance(rates, tuple) else rates
    return f"{images['train']:,} + {images['valid']:,} | {_start(record)} | {shown}, {epochs} epochs"


def _accuracies(record: RunRecord) -> str:
    """The probe, the fine-tuned network and TTA, with intervals, and the median speed of the last stage."""
    result, last = record.result, record.config.stages[-1].name
    probe = result.floor.probe if result.floor else None
    scored = record.evaluations["valid"]
    cells = ["" if probe is None else f"{100 * probe:.2f}"]
    for kind in KINDS:
        one = scored.get(kind)
        cells.append(f"{100 * one.accuracy:.2f} ({interval(one.interval).removesuffix(' %')})" if one else "")
    speeds = [row["images_per_s"] for row in result.history if row["stage"] == last]
    return " | ".join([*cells, f"{median(speeds):.1f}"])


def _setting(record: RunRecord) -> str:
    place = record.result.environment
    return (
        f"One seed ({record.result.seed}), {place['device']} ({place['cpus']} cores), Keras {place['keras']}, JAX "
        f"{place['jax']}. Images: trained on + scored; intervals are 95 % ones; p is of McNemar's exact test."
    )


if __name__ == "__main__":
    main()
