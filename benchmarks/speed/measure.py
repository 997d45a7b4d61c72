"""Medians of things timed in turn, and tables in Markdown."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax


def side_by_side(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turn, so that a machine that slows down slows all of them.

    A step may itself say how long it took, as a `Seconds`; else the call is timed until its arrays are there. Each turn
    takes two steps and counts the second: while others had theirs, caches and pages went. The first round compiles and
    does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            jax.block_until_ready(step())
            begin = time.perf_counter()
            done = jax.block_until_ready(step())
            if number:
                found[name].append(done if isinstance(done, Seconds) else time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


class Seconds(float):
    """What a step took by its own clock."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
