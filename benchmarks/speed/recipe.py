"""Wall seconds of the whole recipe, from starting a process to its end, beside fastai's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from speed.measure import table

from kbaseline import ImageData
from kbaseline.devices.xla import dtype_policy

PARTS = ("head lr_find", "head", "finetune lr_find", "finetune", "valid tta")
"""What is timed within, as `result.json` names it."""


def section(data: str, weights: str, batch: int, size: int, limit: int | None, python: str | None) -> str:
    """Here with an empty compilation cache and with a full one, and fastai."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "kbaseline", "fit", "--data", data, "--set", f"model.weights={weights}"]
        changes = {"data.size": size, "data.batch_size": batch, "data.limit": limit, "data.limit_valid": limit}
        for key, value in changes.items():
            command += ["--set", f"{key}={'null' if value is None else value}"]
        place = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        # What there is to download or to decode is no part of it.
        images = ImageData.from_source(data, size=size, limit=limit, limit_valid=limit)
        for kind in ("cold", "warm"):
            seconds = _seconds([*command, "--out", str(folder / kind)], place)
            found = json.loads((folder / kind / "result.json").read_text(encoding="utf-8"))
            rows.append(_row(f"here, {kind} cache", seconds, found["seconds"], found["tta_accuracy"]))
        if python:
            arrays = folder / "images.npz"
            np.savez(
                arrays, images=_joined(images, "images"), labels=_joined(images, "labels"), train=len(images.train)
            )
            script = str(Path(__file__).with_name("fastai_recipe.py"))
            answer = folder / "fastai.json"
            seconds = _seconds([python, script, str(arrays), str(batch), str(size), str(answer)], dict(os.environ))
            found = json.loads(answer.read_text(encoding="utf-8"))
            rows.append(_row("fastai, `to_fp16`", seconds, found["seconds"], found["accuracy"]))
    ratios = f"fastai ÷ here, warm: {rows[-1][1] / rows[1][1]:.2f}." if python else ""
    cells = [[row[0], *(f"{seconds:.1f}" for seconds in row[1:-1]), f"{100 * row[-1]:.2f}"] for row in rows]
    policy = dtype_policy("auto")
    return (
        f"`{data}`, {len(images.train):,} training images, {len(images.valid):,} scored by TTA, {size} pixels, batch "
        f"{batch}: learning-rate sweep and 3 epochs of the head, the same of everything, plain and 8 views. Whole "
        f"processes; the images are downloaded already. Here under {policy}, weights `{weights}`. fastai starts from "
        f"random weights, which take as long: its accuracy is no comparison. {ratios}\n\n"
        + table(["", "all, s", *(f"{part}, s" for part in PARTS), "the rest, s", "accuracy, %"], cells)
    )


def _row(name: str, seconds: float, parts: dict[str, float], accuracy: float) -> list[Any]:
    within = [parts[part] for part in PARTS]
    return [name, seconds, *within, seconds - sum(within), accuracy]


def _joined(images: ImageData, kind: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(split, kind)) for split in (images.train, images.valid)])


def _seconds(command: list[str], place: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=place, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours, or what the caller named
    return time.perf_counter() - begin
