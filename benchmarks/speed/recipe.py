"""Wall seconds of the whole recipe, from starting a process to its end, beside fastai's."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from speed.measure import table

from kbaseline import ImageData
from kbaseline.devices.xla import dtype_policy
from kbaseline.errors import with_kind

PARTS = ("head lr_find", "head", "finetune lr_find", "finetune", "valid tta")
"""What is timed within, as `result.json` names it."""


SIDES = ("ours", "fastai")

VARIANTS = ("to_fp16, channels last", "to_fp16, channels last, compile", "to_fp16")
"""How fastai is set up; the fastest counts."""


def section(
    data: str,
    weights: str,
    batch: int,
    size: int,
    limit: int | None,
    python: str | None,
    sides: Sequence[str] = SIDES,
    deadline: float = math.inf,
) -> str:
    """Here with an empty compilation cache and with a full one, and fastai in each variant; a failure is a row."""
    rows: dict[str, list[Any]] = {}
    failed: list[str] = []

    def add(name: str, command: list[str], place: dict[str, str], answer: Path, accuracy: str) -> None:
        try:
            seconds = _seconds(command, place, deadline)
            found = json.loads(answer.read_text(encoding="utf-8"))
            rows[name] = _row(name, seconds, found["seconds"], found[accuracy])
        except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            failed.append(f"{name}: {with_kind(error)[:300]}")

    with TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        command = [sys.executable, "-m", "kbaseline", "fit", "--data", data, "--set", f"model.weights={weights}"]
        changes = {"data.size": size, "data.batch_size": batch, "data.limit": limit, "data.limit_valid": limit}
        changes["model.train_bn"] = True  # As fastai does, however few images there are.
        for key, value in changes.items():
            command += ["--set", f"{key}={'null' if value is None else value}"]
        place = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        # What there is to download or to decode is no part of it.
        images = ImageData.from_source(data, size=size, limit=limit, limit_valid=limit)
        for kind in ("cold", "warm") if "ours" in sides else ():
            out = folder / kind
            add(f"here, {kind} cache", [*command, "--out", str(out)], place, out / "result.json", "tta_accuracy")
        if python and "fastai" in sides:
            arrays = folder / "images.npz"
            np.savez(
                arrays, images=_joined(images, "images"), labels=_joined(images, "labels"), train=len(images.train)
            )
            script = str(Path(__file__).with_name("fastai_recipe.py"))
            for number, variant in enumerate(VARIANTS):
                answer = folder / f"fastai-{number}.json"
                asked = [python, script, str(arrays), str(batch), str(size), str(answer), variant]
                add(f"fastai, {variant}", asked, dict(os.environ), answer, "accuracy")
    theirs = [row[1] for name, row in rows.items() if name.startswith("fastai")]
    ours = rows.get("here, warm cache")
    ratios = f"Fastest fastai ÷ here, warm: {min(theirs) / ours[1]:.2f}." if theirs and ours else ""
    cells = [[row[0], *(f"{seconds:.1f}" for seconds in row[1:-1]), f"{100 * row[-1]:.2f}"] for row in rows.values()]
    policy = dtype_policy("auto")
    return (
        f"`{data}`, {len(images.train):,} training images, {len(images.valid):,} scored by TTA, {size} pixels, batch "
        f"{batch}: learning-rate sweep and 3 epochs of the head, the same of everything, plain and 8 views. Whole "
        f"processes; the images are downloaded already. Here under {policy}, weights `{weights}`. fastai starts from "
        f"random weights, which take as long: its accuracy is no comparison. {ratios}\n\n"
        + table(["", "all, s", *(f"{part}, s" for part in PARTS), "the rest, s", "accuracy, %"], cells)
        + "".join(f"\nFailed: {one}\n" for one in failed)
    )


def _row(name: str, seconds: float, parts: dict[str, float], accuracy: float) -> list[Any]:
    within = [parts[part] for part in PARTS]
    return [name, seconds, *within, seconds - sum(within), accuracy]


def _joined(images: ImageData, kind: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(split, kind)) for split in (images.train, images.valid)])


def _seconds(command: list[str], place: dict[str, str], deadline: float) -> float:
    """Wall seconds of a process; what it prints goes to standard error, where its own errors stand."""
    begin = time.monotonic()
    left = None if deadline == math.inf else max(deadline - begin, 0.0)
    subprocess.run(command, env=place, stdout=sys.stderr, check=True, timeout=left)  # noqa: S603 - ours, or the caller's
    return time.monotonic() - begin
