"""Where the time of a training step goes, by kind of operation, as JAX's profiler sees it.

Run as a program, `python shares.py BATCH SIZE` measures on one core: on several XLA hands a part of the work to other
threads, and the profiler does not count it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

_KINDS = (
    ("reduce-window", "", "max pooling"),
    ("scatter", ",64]", "max pooling"),
    ("iota", ",64]", "max pooling"),
    ("convolution", "jvp(backbone))", "convolutions above 1x1, gradient of their inputs"),
    ("convolution", "jvp(backbone)", "convolutions above 1x1, forward"),
    ("convolution", "", "convolutions above 1x1, gradient of their kernels"),
    ("dot", "", "matrix products: 1x1 convolutions and the head, forward and backward"),
    ("reduce", "", "sums: BatchNorm's statistics and gradients, biases"),
)
"""An operation within a fused one, a part of its text in the program, and what it is called here; the first fits."""


def section(batch: int, size: int) -> str:
    """Shares of a step, for the head and for everything."""
    from speed.measure import table

    command = [sys.executable, __file__, str(batch), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - ours
    found = {name: Counter(spent) for name, spent in json.loads(done.stdout.splitlines()[-1]).items()}
    kinds = sorted({kind for spent in found.values() for kind in spent}, key=lambda k: -found["everything"][k])
    rows = [[kind, *(f"{100 * spent[kind] / spent.total():.0f} %" for spent in found.values())] for kind in kinds]
    rows.append(["all, seconds", *(f"{spent.total():.2f}" for spent in found.values())])
    return (
        f"One ResNet50 step, {size} pixels, batch {batch}, on one core; JAX's profiler measures the "
        "fused operations. One that contains several kinds counts as the first of them in this table.\n\n"
        + table(["", *found], rows)
    )


def _spent(batch: int, size: int, frozen: bool) -> Counter[str]:
    """Kind of operation -> seconds of a step."""
    import jax
    from speed.training import classifier, program

    step, compiled, _ = program(classifier(size, frozen), batch)
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step())
        return _by_kind(compiled.as_text(), next(Path(folder).rglob("*.xplane.pb")))


def _by_kind(program: str, trace: Path) -> Counter[str]:
    from jax.profiler import ProfileData

    bodies = dict(re.findall(r"^%?([\w.\-]+) \(.*?\{$(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    called = dict(re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*calls=%?([\w.\-]+)", program, re.MULTILINE))
    lines = dict(re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE))
    seconds: Counter[str] = Counter()
    for plane in ProfileData.from_file(str(trace)).planes:
        for event in (event for line in plane.lines for event in line.events):
            if event.name in lines and "hlo_op" in dict(event.stats):
                text = lines[event.name] + bodies.get(called.get(event.name, ""), "")
                seconds[_kind(text)] += event.duration_ns / 1e9
    return seconds


def _kind(text: str) -> str:
    operations: Any = set(re.findall(r" ([a-z\-]+)\(", text))
    for operation, name, kind in _KINDS:
        if operation in operations and name in text:
            return kind
    return "elementwise: ReLU, BatchNorm, additions, copies, augmentation, optimizer"


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

    from kbaseline.devices.xla import start_jax

    start_jax()
    batch, size = map(int, sys.argv[1:])
    print(json.dumps({"head": _spent(batch, size, frozen=True), "everything": _spent(batch, size, frozen=False)}))
