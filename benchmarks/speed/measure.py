"""Medians of things timed in turn, tables in Markdown, and the line that says where and when."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax

from kbaseline.devices.environment import environment

TURN = 4.0
"""Least seconds of a turn."""


def side_by_side(
    steps: Mapping[str, Callable[[], Any]], rounds: int, of_turns: Callable[[list[float]], float] = statistics.median
) -> dict[str, float]:
    """Seconds of each, measured in turn, so that a machine that slows down slows all of them.

    A step may itself say how long it took, as a `Seconds`; else the call is timed until its arrays are there. A turn
    takes steps for `TURN` seconds, two at least, and counts the second half: while others had their turns, caches and
    pages went, and a virtual machine takes seconds to get its pages back. The first round compiles and does not count.
    A turn has the median of its steps, and each name has `of_turns`: the median, or `min` where noise only adds.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            seconds = _turn(step)
            if number:
                found[name].append(seconds)
    return {name: of_turns(seconds) for name, seconds in found.items()}


def _turn(step: Callable[[], Any]) -> float:
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < 2 or time.perf_counter() < start + TURN:
        begin = time.perf_counter()
        done = jax.block_until_ready(step())
        found.append(done if isinstance(done, Seconds) else time.perf_counter() - begin)
    return statistics.median(found[len(found) // 2 :])


class Seconds(float):
    """What a step took by its own clock."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def signature(peer: str | None = None) -> str:
    """A line with the day, the machine and the versions of what was measured; and those of a peer, as it says them."""
    place = environment()
    device = [] if place["device"] == "cpu" else [place["device"]]
    machine = [*device, place["platform"], f"{place['cpus']} cores"]
    versions = [f"Python {place['python']}", f"Keras {place['keras']}", f"JAX {place['jax']}", *filter(None, [peer])]
    return f"{', '.join([str(datetime.now(UTC).date()), *machine, *versions])}.\n"
