"""Images a second of training steps that several virtual devices share on one core, beside those of one device."""

import os
import statistics

import click
from sharding.launching import step
from sharding.step import WARM_UP
from speed.measure import table

BATCH, STEPS = 128, 10

SHARED = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1)]
"""Processes, and devices of each."""

HEAD = ["devices", "images each", "images/s", "÷ one device", "ms an image", "one device with as many: ms", "kept"]


def section() -> str:
    """A row for each way to share a batch."""
    alone: dict[int, float] = {}
    rows, whole = [], 0.0
    for processes, devices in SHARED:
        each = BATCH // (processes * devices)
        speed, cost = _measured(processes, devices, BATCH)
        whole = whole or speed
        if each not in alone:
            alone[each] = cost if each == BATCH else _measured(1, 1, each)[1]
        name = f"{processes * devices}" + (f", in {processes} processes" if processes > 1 else "")
        costs = [f"{1000 * cost:.2f}", f"{1000 * alone[each]:.2f}", f"{alone[each] / cost:.2f}"]
        rows.append([name, each, f"{speed:.0f}", f"{speed / whole:.2f}", *costs])
    cores = f"one core of {os.cpu_count()}" if hasattr(os, "sched_setaffinity") else f"all {os.cpu_count()} cores"
    return (
        f"resnet20, 32 pixels, {BATCH} images a step over all devices, everything trained; medians of "
        f"{STEPS - WARM_UP} steps after {WARM_UP} that do not count. Everything on {cores}.\n\n" + table(HEAD, rows)
    )


def _measured(processes: int, devices: int, batch: int) -> tuple[float, float]:
    """Images a second, and seconds of processor time an image, that of all processes."""
    click.echo(f"pace: processes {processes}, devices of each {devices}, batch {batch}", err=True)
    found = step("--batch", batch, "--steps", STEPS, processes=processes, devices=devices)
    spent = sum(statistics.median(process["processor_seconds"]) for process in found)
    return batch / statistics.median(found[0]["seconds"]), spent / batch
