"""Kills a run with SIGKILL at random moments of all its phases, resumes it, and compares it with an uninterrupted one.

    python benchmarks/kill.py --out runs/kill                                # a table for the terminal
    python benchmarks/kill.py --out runs/kill --write docs/reliability.md    # puts it between that page's marks

Ends with 1 if a resumed run differs, or if a file that a reader could open after a kill is not whole.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import marked
import numpy as np
from PIL import Image

from kbaseline.config.load import load_config

RECIPE = {
    "name": "kill",
    "seed": 3,
    "data": {"source": "digits", "size": 16, "limit": 1000, "limit_valid": 200, "batch_size": 8},
    "model": {"backbone": "resnet20", "train_bn": True},
    "lr_find": {"steps": 30},
    "stages": [
        {"name": "head", "freeze": True, "epochs": 2, "max_lr": "auto"},
        {"name": "finetune", "freeze": False, "epochs": 2, "max_lr": [1e-4, 1e-2]},
    ],
    "tta": {"flip": False, "scale": 1.1},
    "runtime": {"checkpoint_minutes": 0.002},
}
"""Both stages, their sweeps and TTA in seconds, with a checkpoint within an epoch every eighth of a second."""

PHASES = {
    "finder of head": r"run folder:",
    "head": r"head lr_find:",
    "finder of finetune": r"    2 ",
    "finetune": r"finetune lr_find:",
    "TTA": r"    2 ",
    "plots and report": r"tta on valid:",
}
"""The phases in their order, and the line with which each begins."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder that takes the run folders.")
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True, help="Moments to kill at.")
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes the moments within the phases.")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
def main(out: Path, kills: int, seed: int, write: Path | None) -> None:
    """Kill, resume, compare."""
    out.mkdir(parents=True)
    config = out / "kill.yaml"
    config.write_text(load_config(RECIPE).to_yaml(), encoding="utf-8")
    whole, draw = out / "whole", random.Random(seed)  # noqa: S311 - moments, no secrets
    fit(config, out / "warm-up")  # compiles what the others find in JAX's cache
    lengths = fit(config, whole)
    rows = []
    for number, phase in zip(range(1, kills + 1), itertools.cycle(PHASES)):
        folder = out / f"killed-{number:02d}"
        while not (after := kill(config, folder, phase, draw.uniform(0, lengths[phase]))):
            shutil.rmtree(folder)  # it was through with the phase; another moment
        broken = [path.name for path in readable(folder) if not is_whole(path)]
        at = resume(folder)
        found = broken + differences(whole, folder)
        rows.append((number, phase, f"{after:.2f}", at, ", ".join(found) or "equal"))
        click.echo(" | ".join(map(str, rows[-1])), err=True)
    good = sum(row[-1] == "equal" for row in rows)
    text = table(rows, f"**{good} of {kills} equal.**")
    click.echo(text)
    if write is not None:
        marked.write(write, "kill.py", text)
    sys.exit(good < kills)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """`kbaseline fit` in a process of its own, whose lines can be read as they come."""
    command = [sys.executable, "-u", "-m", "kbaseline", "fit", *map(str, arguments)]
    return subprocess.Popen(  # noqa: S603 - our own command
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


def phases(process: subprocess.Popen[str]) -> Iterator[str]:
    """The name of each phase as it begins."""
    waiting = iter(PHASES.items())
    name, line_of = next(waiting)
    for line in process.stdout or ():
        if re.match(line_of, line):
            yield name
            name, line_of = next(waiting, ("", "(?!)"))


def fit(config: Path, folder: Path) -> dict[str, float]:
    """An uninterrupted run; the seconds of each phase."""
    process = started("--config", config, "--out", folder)
    begun = {phase: time.perf_counter() for phase in phases(process)}
    if process.wait():
        raise click.ClickException(f"{folder}: the uninterrupted run failed; see why with kbaseline fit.")
    return dict(zip(begun, np.diff([*begun.values(), time.perf_counter()]).tolist(), strict=True))


def kill(config: Path, folder: Path, phase: str, delay: float) -> float:
    """Kills a new run `delay` seconds into a phase; the seconds since its folder appeared, 0 if the phase was over."""
    process = started("--config", config, "--out", folder)
    begun, going = 0.0, phases(process)
    for name in going:
        begun = begun or time.perf_counter()
        if name == phase:
            break
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
    killed = time.perf_counter()
    process.wait()
    # What it had printed by then tells whether the next phase, or the end, was faster than the signal.
    over = any(going) or not (folder / "checkpoints").exists()
    return 0.0 if over else killed - begun


def resume(folder: Path) -> str:
    """Resumes a run to its end; returns where it continued."""
    process = started("--resume", folder)
    text, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{folder}: could not be resumed: {text}")
    found = re.search(r"continues (.*)|(starts from the beginning)|(is finished)", text)
    return found[1] or found[2] or found[3] if found else "?"


def readable(folder: Path) -> list[Path]:
    """Every file under its final name; a checkpoint counts from when its `.json` is there."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return [path for path in files if path.parent == folder or path.suffix == ".json"]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        if path.parent.name == "checkpoints":
            return hashlib.sha256(path.with_suffix(".npz").read_bytes()).hexdigest() == contents(path)["sha256"]
        contents(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SyntaxError):
        return False
    return True


def contents(path: Path) -> Any:
    """What a file says, times left out."""
    times = ("seconds", "images_per_s")
    if path.suffix == ".json":
        return json.loads(path.read_text(), object_hook=lambda d: {k: v for k, v in d.items() if k not in times})
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{key: value for key, value in row.items() if key not in times} for row in rows]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays}
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.tobytes()
    if path.suffix == ".keras":
        return weights(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        # Times stand everywhere in it; what else it shows is in the other files.
        if not text.rstrip().endswith("</html>"):
            raise ValueError(f"{path}: cut short")
        return True
    return text


def weights(path: Path) -> dict[str, bytes]:
    """Every array of a Keras model: weights, statistics, seeds, optimizer."""
    import h5py

    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(lambda n, item: found.update({n: item[()].tobytes()} if isinstance(item, h5py.Dataset) else {}))
    return found


def differences(whole: Path, folder: Path) -> list[str]:
    """The files in which two run folders differ."""
    names = {path.relative_to(place) for place in (whole, folder) for path in place.rglob("*")}
    both = [name for name in names if (whole / name).is_file() and (folder / name).is_file()]
    return sorted(
        [str(name) for name in names - set(both)]
        + [str(name) for name in both if contents(whole / name) != contents(folder / name)]
    )


def table(rows: list[tuple[Any, ...]], verdict: str) -> str:
    """The Markdown of the page."""
    import jax
    import keras

    setting = f"Keras {keras.__version__}, JAX {jax.__version__}, {platform.system()}, {os.cpu_count()} CPU cores"
    head = "| kill | during | seconds after the folder appeared | resumed | compared with the uninterrupted run |"
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([f"{verdict} {setting}.", "", head, "|---|---|---|---|---|", *lines])


if __name__ == "__main__":
    main()
