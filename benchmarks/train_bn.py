r"""What `model.train_bn` costs and brings: one recipe twice, BatchNorm left and trained; tables in docs/results.md.

    python benchmarks/train_bn.py run --out runs/train_bn --name "waste photos" --source photos/trash/train \
        --network efficientnet_lite0 --network mobilenet_v2 --set data.size=128 --set stages.1.epochs=2
    python benchmarks/train_bn.py run --out runs/train_bn --name CIFAR-10 --source tfds:cifar10 \
        --network efficientnet_lite0 --set data.limit=2000 --set data.limit_valid=1000 --set data.size=128
    python benchmarks/train_bn.py speed --out runs/train_bn --network efficientnet_lite0 --network mobilenet_v2
    python benchmarks/train_bn.py page runs/train_bn docs/results.md

Call `run` once for each source, with one `--out`; it keeps finished runs and continues interrupted ones. The last
stage's model is scored, not the best one's: `keep: best` would hide a loss behind the probe.
"""

from kbaseline import Learner, resume_run, run_baseline  # first: it chooses Keras' backend

# isort: split

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import keras
import marked
from speed.measure import Seconds, side_by_side, table
from speed.networks import STEPS, learner

from kbaseline.config.load import parse_assignments
from kbaseline.console.format import interval
from kbaseline.devices.memory import ask_for_huge_pages
from kbaseline.devices.xla import start_jax
from kbaseline.metrics import Evaluation, compare_paired
from kbaseline.runs.record import KINDS, RunRecord, read_run

KEYS = {"left": False, "trained": True}
"""Name of the folder -> `train_bn`, of a pair of runs."""

SPEED = "speed.json"


@click.group()
def main() -> None:
    """Measure both values of model.train_bn, or tabulate them."""
    ask_for_huge_pages()


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
        for key, train_bn in KEYS.items():
            folder = out / name / f"{recipe} {Path(network).stem}" / key
            if (folder / "config.yaml").is_file():
                resume_run(folder)
                continue
            changes = {"data.source": source, "model.backbone": network, "keep": "last"}
            settings = changes | parse_assignments(assignments) | {"model.train_bn": train_bn}
            run_baseline(recipe, out=folder, **settings)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run folders.")
@click.option("--network", "networks", multiple=True, required=True, help="A name from the zoo; repeatable.")
@click.option("--size", default=128, show_default=True, help="Pixels of the network's input.")
@click.option("--batch", default=32, show_default=True, help="Images a step.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each; the median counts.")
def speed(out: Path, networks: Sequence[str], size: int, batch: int, rounds: int) -> None:
    """Time training steps with BatchNorm left and trained, in processor time, which other work does not lengthen."""
    start_jax()
    out.mkdir(parents=True, exist_ok=True)
    for network in networks:
        found = _read_speeds(out)
        for work in ("head", "everything"):
            steps = {key: _timed_step(learner(network, work, batch, size, bn)) for key, bn in KEYS.items()}
            found[f"{network}, {size} px: {work}"] = {
                key: batch / seconds for key, seconds in side_by_side(steps, rounds).items()
            }
            (out / SPEED).write_text(json.dumps(found, indent=2))


class _ProcessorTime(keras.callbacks.Callback):  # type: ignore[misc]
    """Processor time of an epoch's training steps: without what `fit` prepares, and without validation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The first step follows."""
        self._began = time.process_time()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """The last step is done: the learner's own table has waited for it."""
        self.seconds = time.process_time() - self._began


def _timed_step(learn: Learner) -> Callable[[], Seconds]:
    clock = _ProcessorTime()
    learn.callbacks.append(clock)

    def timed() -> Seconds:
        learn.fit_one_cycle(1, 1e-4)
        return Seconds(clock.seconds / STEPS)

    return timed


def _read_speeds(runs: Path) -> dict[str, dict[str, float]]:
    return json.loads((runs / SPEED).read_text()) if (runs / SPEED).is_file() else {}


@main.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True))
@click.argument("page", type=click.Path(path_type=Path, exists=True))
def page(runs: Path, page: Path) -> None:
    """Write the tables of the finished pairs in RUNS into PAGE."""
    pairs = [
        (folder.parent.name, *(read_run(folder / key) for key in KEYS))
        for folder in sorted(runs.glob("*/*"))
        if all((folder / key / "result.json").is_file() for key in KEYS)
    ]
    if not pairs:
        raise click.ClickException(f"{runs}: holds no finished pair of runs; make them with the command `run`.")
    marked.write(page, "train_bn", f"{tables(pairs)}\n\n{speeds(_read_speeds(runs))}")


def tables(pairs: Sequence[tuple[str, RunRecord, RunRecord]]) -> str:
    """Markdown: accuracies of each pair, compared image by image, then how each was trained.

    Args:
        pairs: name of the source, the run with BatchNorm left, the run with BatchNorm trained.
    """
    accuracies, settings = [], []
    for name, left, trained in pairs:
        about = [f"{name}, {_head(left)}", f"`{Path(left.config.model.backbone).stem}`"]
        probe = left.result.floor.probe if left.result.floor else None
        row = [*about, "" if probe is None else f"{100 * probe:.2f}"]
        for kind in KINDS:
            scored = [record.evaluations["valid"].get(kind) for record in (left, trained)]
            row += [_accuracy(one) for one in scored]
            both = compare_paired(*scored) if all(scored) else None
            row.append(f"{both.p_value:.2g} ({both.only_first} / {both.only_second})" if both else "")
        accuracies.append(row)
        settings.append([*about, *_setting(left)])
    place = pairs[0][1].result.environment
    columns = ["left, %", "trained, %", "p", "TTA: left, %", "trained, %", "p"]
    return "\n".join(
        [
            f"One seed, {place['device']} ({place['cpus']} cores), Keras {place['keras']}, JAX {place['jax']}. In "
            "brackets: 95 % intervals; behind p of McNemar's exact test, images that only the one or only the other "
            "gets right.\n",
            table(["source, head", "network", "probe, %", *columns], accuracies),
            table(["source, head", "network", "images", "px", "epochs", "rates", "views"], settings),
        ]
    )


def _head(record: RunRecord) -> str:
    return "from the probe" if record.config.stages[0].init == "probe" else "from random numbers"


def _accuracy(one: Evaluation | None) -> str:
    return f"{100 * one.accuracy:.2f} ({interval(one.interval).removesuffix(' %')})" if one else ""


def _setting(record: RunRecord) -> list[object]:
    """Images trained on and scored, size, epochs of each stage, rates of the last, views of TTA."""
    images, stages, tta = record.result.data.images, record.config.stages, record.config.tta
    rates = stages[-1].max_lr
    return [
        f"{images['train']:,} + {images['valid']:,}",
        record.config.data.size,
        " + ".join(str(stage.epochs) for stage in stages if stage.epochs),
        " … ".join(f"{rate:g}" for rate in rates if rate) if isinstance(rates, tuple) else str(rates),
        tta.views if tta else 0,
    ]


def speeds(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: images per second of processor time; an empty string where nothing was timed."""
    rows = [
        [name, *(f"{found[name][key]:.1f}" for key in KEYS), f"{found[name]['left'] / found[name]['trained']:.2f}"]
        for name in sorted(found)
    ]
    header = ["training", "left, images/s of processor time", "trained", "left ÷ trained"]
    return table(header, rows) if rows else ""


if __name__ == "__main__":
    main()
