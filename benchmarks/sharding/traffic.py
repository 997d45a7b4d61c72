"""What devices send one another in a training step, counted in the program that XLA has compiled."""

import math
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
from sharding.launching import step
from speed.measure import table

DEVICES = 8

NETWORKS = {
    "resnet20, 10 classes": ["--backbone", "resnet20", "--classes", 10],
    "ResNet50, 1,000 classes": ["--backbone", "resnet50", "--classes", 1000],
}
"""Name -> options of `step.py`. The size of images changes nothing in what is sent."""

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"= (\([^()]*\)|\S+) ({KINDS})(?:-start)?\(")
"""An instruction of XLA's text: its result, one array or several in brackets, and its name."""

ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")
"""A type such as `f32[3,3,16,16]`, with its bits."""


class Collective(NamedTuple):
    """One instruction that talks.

    Attributes:
        kind: its name.
        shapes: of its arrays.
        size: bytes of them together.
    """

    kind: str
    shapes: list[tuple[int, ...]]
    size: int


def collectives(program: str) -> list[Collective]:
    """Those of a compiled program, in XLA's text."""
    found = []
    for arrays, kind in COLLECTIVE.findall(program):
        types = [(int(bits), tuple(map(int, filter(None, sides.split(","))))) for bits, sides in ARRAY.findall(arrays)]
        size = sum(bits // 8 * math.prod(shape) for bits, shape in types)
        found.append(Collective(kind, [shape for _, shape in types], size))
    return found


def section() -> str:
    """A column for each network."""
    columns = [_column(name, options) for name, options in NETWORKS.items()]
    rows = [[row, *(column[row] for column in columns)] for row in columns[0]]
    return table([f"a step of {DEVICES} devices", *NETWORKS], rows)


def _column(name: str, options: list[Any]) -> dict[str, str]:
    click.echo(f"traffic: {name}", err=True)
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=.*train_step.*"
        (network,) = step(*options, "--batch", DEVICES, "--steps", 1, devices=DEVICES, flags=dump)
        (program,) = Path(folder).glob("*train_step*after_optimizations.txt")
        found = collectives(program.read_text(encoding="utf-8"))
    reduced = [each for each in found if each.kind == "all-reduce"]
    # BatchNorm's vectors may have sides of 1.
    kernels = [each for each in reduced if any(sum(side > 1 for side in shape) > 1 for shape in each.shapes)]
    others = len(reduced) - len(kernels)
    on_paper = 4 * network["parameters"] + 16 * network["channels"]
    return {
        "trained parameters": f"{network['parameters']:,}",
        "BatchNorm layers": f"{network['norms']}",
        "their channels": f"{network['channels']:,}",
        "all-reduces": f"{len(reduced)}",
        "of them with gradients of kernels": f"{len(kernels)}",
        "the others": f"{others} = 4 · {network['norms']} {others - 4 * network['norms']:+d}".replace("-", "- "),
        "other collectives": f"{len(found) - len(reduced)}",
        "bytes reduced": f"{sum(each.size for each in reduced):,}",
        "4 · parameters + 16 · channels": f"{on_paper:,}",
    }
