"""Checks what a run says of its own doubt, on images that neither trained it nor set its thresholds.

    python benchmarks/doubt.py runs/trash --other photos/trash                           # tables for the terminal
    python benchmarks/doubt.py runs/trash --other photos/trash --write docs/doubt.md     # puts them into that page

Needs a run with a validation split and a test split. Images of other things are those of each folder `--other`, crops
of scikit-learn's two photographs, its digits, two kinds of noise and plain colours, made here.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import marked
import numpy as np
from rich.console import Console
from sklearn.datasets import load_digits, load_sample_images

from kbaseline.calibration import expected_calibration_error
from kbaseline.commands.predict import find_images
from kbaseline.data.cache import Target, decoded
from kbaseline.data.fit import fit_batch
from kbaseline.data.pictures import File, FilePictures
from kbaseline.doubt import LEVELS, Doubt, set_threshold
from kbaseline.metrics import accuracy_interval
from kbaseline.runs.record import RunRecord, read_run
from kbaseline.runs.run import SavedRun, load, read_data

MANY = 300
"""Images of each kind made here."""


def others(run: SavedRun, folders: tuple[Path, ...], scratch: Path, console: Console) -> dict[str, np.ndarray]:
    """Images of other things, by what they are: uint8 `(number, height, width, 3)`."""
    height, width = run.image_size
    rng = np.random.default_rng(0)
    found = {}
    for folder in folders:
        files, _ = find_images([str(folder)])
        pictures = FilePictures(Path(), [File(str(file), 0, 0) for file in files])
        target = Target(run.config.data.size, run.config.data.resize, strict=False, image_size=run.image_size)
        found[f"photos of `{folder.name}`"] = decoded(
            pictures, {"given": np.arange(len(files))}, target, scratch, console
        )["given"].images
    grey = (load_digits().images[:MANY] * (255 / 16)).astype(np.uint8)
    shades = rng.integers(0, 256, (MANY, 1, 1, 3), dtype=np.uint8)
    made = {
        "crops of scikit-learn's photographs": crops(max(height, width), rng),
        "digits": np.repeat(grey[..., None], 3, axis=-1),
        "noise, every pixel": rng.integers(0, 256, (MANY, height, width, 3), dtype=np.uint8),
        "noise, smooth (6 x 6 pixels, enlarged)": rng.integers(0, 256, (MANY, 6, 6, 3), dtype=np.uint8),
        "plain colours": np.repeat(np.repeat(shades, height, axis=1), width, axis=2),
    }
    return found | {name: fit_batch(images, height, width, "crop") for name, images in made.items()}


def crops(side: int, rng: np.random.Generator) -> np.ndarray:
    """Square crops of two photographs at many scales."""
    photographs, found = load_sample_images().images, []
    for number in range(MANY):
        photograph = photographs[number % 2]
        length = int(rng.integers(128, min(photograph.shape[:2])))
        top, left = (int(rng.integers(0, size - length)) for size in photograph.shape[:2])
        found.append(fit_batch(photograph[None, top : top + length, left : left + length], side, side, "squish")[0])
    return np.stack(found)


def redrawn(doubt: Doubt, record: RunRecord, kind: str, level: float, rng: np.random.Generator) -> float:
    """Mean share of sets with the true class over 200 random divisions of the two splits' saved predictions."""
    arrays = record.arrays
    p = np.concatenate([arrays[f"{split}_{kind}_probabilities"] for split in ("valid", "test")])
    labels = np.concatenate([arrays[f"{split}_labels"] for split in ("valid", "test")])
    p, first, shares = doubt.calibrated(p, kind), len(arrays["valid_labels"]), []
    for _ in range(200):
        order = rng.permutation(len(labels))
        fit, held = order[:first], order[first:]
        threshold = set_threshold(p[fit], labels[fit], level)
        again = replace(doubt, thresholds={kind: {level: threshold}}, temperatures={kind: 1.0})
        shares.append(again.sets(p[held], kind, level)[np.arange(len(held)), labels[held]].mean())
    return float(np.mean(shares))


def tables(
    run: SavedRun, record: RunRecord, images: np.ndarray, labels: np.ndarray, strange: dict[str, np.ndarray]
) -> str:
    """Markdown: coverage of the sets on held-out images, and the share of every kind of images that is flagged."""
    if run.doubt is None:
        raise click.ClickException(f"{run.folder}: an older version made this run; run it again.")
    columns = (
        "held-out images",
        "wanted",
        "sets with the true class",
        "95 % interval",
        "200 redraws",
        "classes in a set",
    )
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    calibration = ["| calibration error (ECE) | as predicted | calibrated |", "|---|---|---|"]
    raw = replace(run, doubt=None)
    for kind in run.doubt.temperatures:
        p = run.predict(images, tta=kind == "tta")
        for level in LEVELS:
            inside = run.doubt.sets(p, kind, level)
            right = int(inside[np.arange(len(labels)), labels].sum())
            low, high = accuracy_interval(right, len(labels))
            again = redrawn(run.doubt, record, kind, level, np.random.default_rng(0))
            rows.append(
                f"| {len(labels):,}, {kind} | {100 * level:.0f} % | {100 * right / len(labels):.1f} % | "
                f"{100 * low:.1f} – {100 * high:.1f} % | "
                f"{100 * again:.1f} % | {inside.sum(axis=1).mean():.2f} |"
            )
        predicted = raw.predict(images, tta=kind == "tta")
        errors = [100 * expected_calibration_error(q.astype(float), labels) for q in (predicted, p)]
        calibration.append(f"| {kind} | {errors[0]:.1f} % | {errors[1]:.1f} % |")
    shares = [f"{100 * share:.0f} % wanted" for share in run.doubt.limits]
    flagged = [f"| flagged as unfamiliar | images | {' | '.join(shares)} | most probable class, mean probability |"]
    flagged += ["|---|---|---|---|---|"]
    for name, shown in {"held-out images of the classes": images, **strange}.items():
        answer = run.answer(shown)
        found = [f"{100 * np.mean(answer.unfamiliarity > limit):.1f} %" for limit in run.doubt.limits.values()]
        sure = 100 * answer.probabilities.max(axis=1).mean()
        flagged.append(f"| {name} | {len(shown):,} | {' | '.join(found)} | {sure:.0f} % |")
    return "\n".join([*rows, "", *calibration, "", *flagged])


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--other", multiple=True, type=click.Path(path_type=Path, exists=True), help="Photos of other things.")
@click.option("--write", type=click.Path(path_type=Path), help="Page with the marks to write the tables between.")
def main(folder: Path, other: tuple[Path, ...], write: Path | None) -> None:
    """Prints or writes the tables."""
    console, record, run = Console(stderr=True), read_run(folder), load(folder)
    test = read_data(record, console).splits["test"]
    with tempfile.TemporaryDirectory() as scratch:
        strange = others(run, other, Path(scratch), console)
        text = tables(run, record, test.images, np.asarray(test.labels), strange)
    if write is None:
        print(text)
    else:
        marked.write(write, "doubt", text)


if __name__ == "__main__":
    main()
