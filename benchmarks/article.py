r"""The article's accuracy by step on CIFAR-10, with controls, and the first section of docs/results.md.

    python benchmarks/article.py run --out runs/article --seeds 1 --seeds 2 --seeds 3         # all images; wants a GPU
    python benchmarks/article.py run --out runs/article --train 5000 --valid 2000 --control-size 32 \
        --set data.batch_size=32                                             # over an hour on two CPU cores
    python benchmarks/article.py page runs/article docs                      # results.md and its pictures

`--set` reaches every run, for instance `--set data.data_dir=DIR --set model.backbone=resnet50_v15_notop.keras`.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import marked
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kbaseline import Learner, run_baseline
from kbaseline.commands.evaluate import evaluate_kept
from kbaseline.config.load import load_config, parse_assignments
from kbaseline.console.format import interval, percent
from kbaseline.data import Split
from kbaseline.data.image_data import load_source
from kbaseline.metrics import accuracy_interval
from kbaseline.render.plots import BLUE, INK, style_axes
from kbaseline.runs.record import read_run
from kbaseline.storage.run_folder import RunFolder

STEPS = [
    ("1", "32 px, plain fit, 3 epochs", "article-1-32px", "plain", "≈ 70"),
    ("2", "128 px, plain fit, 3 epochs", "article-2-5-128px", "plain", "≈ 94"),
    ("3", "one-cycle at 1e-3, 3 epochs", "article-2-5-128px", "one_cycle", "≈ 95"),
    ("4", "unfreeze, one-cycle 1e-6 … 1e-4, 3 epochs", "article-2-5-128px", "finetune", "higher"),
    ("5", "test-time augmentation", "article-2-5-128px", "tta", "> 96"),
]


@click.group()
def main() -> None:
    """Measure the article's accuracy by step, or tabulate it."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the run folders.")
@click.option("--seeds", type=int, multiple=True, default=(1,), show_default=True, help="One series of runs per seed.")
@click.option("--train", type=int, help="Training images, a stratified subset; default all.")
@click.option("--valid", type=int, help="Validation images, a stratified subset; default all.")
@click.option("--control-size", type=int, default=128, show_default=True, help="Pixels of the controls' images.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key of every run.")
def run(out: Path, seeds: tuple[int, ...], assignments: tuple[str, ...], **sizes: int | None) -> None:
    """Run both configurations for every seed, then the two controls; finished runs are kept."""
    control_size = sizes.pop("control_size")
    changes = parse_assignments(assignments)
    changes |= {"data.limit": sizes["train"], "data.limit_valid": sizes["valid"]}
    for seed in seeds:
        for name in ("1-32px", "2-5-128px"):
            folder = out / f"article-{name}-seed{seed}"
            if not (folder / "result.json").exists():
                run_baseline(f"article/{name}", out=folder, seed=seed, **changes)
    control = {**changes, "data.size": control_size, "stages.0.lr_find": False, "stages.2.lr_find": False}
    folder = out / f"control-random-weights-{control_size}px"
    if not (folder / "result.json").exists():
        run_baseline("article/2-5-128px", out=folder, seed=seeds[0], **{**control, "model.weights": "none"})
    shuffled_labels(out / f"control-shuffled-labels-{control_size}px", seeds[0], control)


def shuffled_labels(folder: Path, seed: int, changes: dict[str, Any]) -> None:
    """One-cycle on shuffled training labels: a score above chance would reveal a leak."""
    if (folder / "result.json").exists():
        return
    config = load_config("article/2-5-128px", {**changes, "seed": seed})
    data = load_source(config.data, seed)
    labels = np.random.default_rng(seed).permutation(data.train.labels)
    learn = Learner(replace(data, train=Split(data.train.images, labels)), config=config)
    learn.fit_one_cycle(3, 1e-3, title="one_cycle")
    images = {name: len(split) for name, split in data.splits.items()}
    folder.mkdir(parents=True)
    found = {"stages": {"one_cycle": learn.history[-1]["accuracy"]}, "data": {"size": data.size, "images": images}}
    (folder / "result.json").write_text(json.dumps(found))


@main.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True))
@click.argument("docs", type=click.Path(path_type=Path, exists=True))
def page(runs: Path, docs: Path) -> None:
    """Write the first section of results.md, accuracy-by-step.png and lr-find-cifar10.png into DOCS, from RUNS."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))}
    measured = {name: result for name, result in found.items() if name.startswith("article-")}
    if not measured:
        raise click.ClickException(f"{runs}: holds no article-* run folders; make them with the command `run`.")
    config = load_config(runs / next(iter(measured)) / "config.yaml")
    whole = next(result for name, result in measured.items() if name.startswith("article-2-5"))
    found_rates = {stage: f"{rules['valley']:.1e}" for stage, rules in whole["suggested_lrs"].items()}
    head = (Path(__file__).parent / "article_head.md").read_text(encoding="utf-8")
    lines = [head.format(frozen=found_rates["plain"], unfrozen=found_rates["finetune"]), _setting(whole, config)]
    lines.append(
        "| step | what | article, % | here, % | 95 % interval, one seed | seconds |\n|---|---|---|---|---|---|"
    )
    steps = []
    for number, what, run_name, stage, article in STEPS:
        results = [result for name, result in measured.items() if name.startswith(f"{run_name}-seed")]
        scores = [result["tta_accuracy"] if stage == "tta" else result["stages"][stage] for result in results]
        spent = [result["seconds"]["valid tta" if stage == "tta" else stage] for result in results]
        images = results[0]["data"]["images"]["valid"]
        ends = accuracy_interval(round(scores[0] * images), images)
        shown = interval(ends).removesuffix(" %")
        lines.append(f"| {number} | {what} | {article} | {_spread(scores)} | {shown} | {statistics.mean(spent):,.0f} |")
        steps.append((f"{number}  {what}", statistics.mean(scores), ends))
    lines += [
        "",
        *(line for name in measured if name.startswith("article-2-5") for line in _tta_against_plain(runs / name)),
    ]
    lines.append("\n| control | accuracy, % | must be |\n|---|---|---|")
    for name, result in found.items():
        if name.startswith("control-"):
            last = list(result["stages"].values())[-1]
            rule = "about 10" if "shuffled" in name else "far below the steps above"
            size, images = result["data"]["size"], result["data"]["images"]["train"]
            title = name.split("-", 1)[1].rsplit("-", 1)[0].replace("-", " ")
            lines.append(f"| {title}, {size} px, {images:,} images | {100 * last:.1f} | {rule} |")
    marked.write(docs / "results.md", "article", "\n".join(lines))
    picture = next(runs.glob("article-2-5-*/lr_find.png"))
    (docs / "lr-find-cifar10.png").write_bytes(picture.read_bytes())
    RunFolder(docs).write_figure("accuracy-by-step.png", _picture(steps))


def _picture(steps: list[tuple[str, float, tuple[float, float]]]) -> Figure:
    """The steps as (text, accuracy, its interval), the first on top."""
    figure = Figure(figsize=(6.9, 2.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for row, (_, accuracy, (low, high)) in enumerate(steps):
        axes.barh(row, accuracy, height=0.62, color=BLUE, alpha=0.25)
        axes.plot([low, high], [row, row], color=BLUE, linewidth=2)
        axes.plot([accuracy], [row], "o", color=BLUE, markersize=6)
        axes.annotate(f"  {percent(accuracy)}", (high, row), va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(steps)), [text for text, _, _ in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel("accuracy, 95 % interval")
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    return figure


def _setting(result: dict[str, Any], config: Any) -> str:
    images, place = result["data"]["images"], result["environment"]
    return (
        f"Measured on {images['train']:,} training and {images['valid']:,} test images, "
        f"batch {config.data.batch_size}, backbone `{Path(config.model.backbone).name}`, "
        f"{place['device']} ({place['cpus']} cores), Keras {place['keras']}, JAX {place['jax']}.\n"
    )


def _tta_against_plain(run: Path) -> list[str]:
    """Step 5 against step 4 on the same images, in a sentence."""
    found = evaluate_kept(read_run(run)).paired
    if found is None:
        return []
    return [
        f"`{run.name}`, step 5 against step 4: {found.only_second} images are right only with TTA, {found.only_first} "
        f"only without (McNemar's exact test: p = {found.p_value:.2g})."
    ]


def _spread(scores: list[float]) -> str:
    shown = f"{100 * statistics.mean(scores):.2f}"
    return shown if len(scores) == 1 else f"{shown} ± {100 * statistics.stdev(scores):.2f} ({len(scores)} seeds)"


if __name__ == "__main__":
    main()
