"""Measures the recipe's speed on a GPU, beside fastai, PyTorch, a plain JAX loop and stock Keras; writes a page.

python benchmarks/gpu.py --torch ~/fastai/bin/python       # CIFAR-10 by TFDS, and Keras' ImageNet weights
python benchmarks/gpu.py --tiny --out page.md              # a try; half an hour on two CPU cores
"""

import os

# JAX takes three quarters of a GPU as it starts, in every process: this one, Keras', the recipe's, and PyTorch beside.
if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name, and both are an error
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.25")

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

import math
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from speed import recipe, roofline, stages
from speed.measure import signature
from speed.peer import Keras, Torch

from kbaseline.errors import with_kind

HEAD = """# Measured: speed on a GPU

Made by `python benchmarks/gpu.py --torch PYTHON`, PYTHON being that of an environment with fastai; without it, the
other columns.
"""
HEADINGS = {"recipe": "The whole recipe", "steps": "Training steps", "roofline": "What binds a step"}

TINY = {"data": "digits", "weights": "none", "limit": 64, "batch": 16, "size": 32, "steps": 4, "rounds": 1, "side": 256}
"""Shows that everything runs, where there is no GPU."""


@click.command(help=(__doc__ or "").replace("\n\n", "\n\n\b\n"))  # \b: lines stay as they are
@click.option("--part", "parts", multiple=True, type=click.Choice(list(HEADINGS)), help="Only this one; repeatable.")
@click.option("--torch", "python", metavar="PYTHON", help="Interpreter of an environment with fastai.")
@click.option("--data", default="tfds:cifar10", show_default=True, help="What the recipe trains on, as `fit --data`.")
@click.option("--weights", default="auto", show_default=True, help="`model.weights`; `none` downloads nothing.")
@click.option("--limit", type=int, help="Images of each split; default all.")
@click.option("--batch", default=64, show_default=True, help="Images a step.")
@click.option("--size", default=128, show_default=True, help="Pixels of the network's input.")
@click.option("--steps", default=200, show_default=True, help="Training steps of one measurement.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each; the median counts.")
@click.option(
    "--rows", "side", default=8192, show_default=True, help="Rows of the matrices that show what the device can do."
)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(stages.PRECISIONS), help="Only this one.")
@click.option("--side", "sides", multiple=True, type=click.Choice(recipe.SIDES), help="Only this side of the recipe.")
@click.option(
    "--deadline", type=float, metavar="SECONDS", help="Begin nothing after so long; end what the recipe runs."
)
@click.option("--tiny", is_flag=True, help=f"Instead of these: {', '.join(f'{k} {v}' for k, v in TINY.items())}.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parents[1] / "docs/performance-gpu.md")
def main(
    parts: tuple[str, ...],
    python: str | None,
    tiny: bool,
    out: Path,
    precisions: tuple[str, ...],
    sides: tuple[str, ...],
    deadline: float | None,
    **given: Any,
) -> None:
    """Measures; prints each section and adds it to the page as it is done. What fails is said in its section."""
    ask = SimpleNamespace(**{**given, **(TINY if tiny else {})})
    end = time.monotonic() + deadline if deadline else math.inf
    chosen = (precisions or stages.PRECISIONS, end)
    out.write_text(HEAD, encoding="utf-8")
    with ExitStack() as peers:
        # Each takes a part of the accelerator's memory: only what is asked for.
        stock = cache(lambda: peers.enter_context(Keras(ask.batch, ask.size)))
        torch = cache(lambda: peers.enter_context(Torch(python, ask.batch, ask.size)) if python else None)
        measures: dict[str, Callable[[], str]] = {
            "recipe": lambda: recipe.section(
                ask.data, ask.weights, ask.batch, ask.size, ask.limit, python, sides or recipe.SIDES, end
            ),
            "steps": lambda: stages.section(
                ask.batch, ask.size, ask.steps, ask.rounds, stock(), torch() if python else None, *chosen
            ),
            "roofline": lambda: roofline.section(ask.batch, ask.size, ask.rounds, ask.side, *chosen),
        }
        for part in parts or HEADINGS:
            try:
                text = measures[part]() if time.monotonic() < end else "Not begun before the deadline.\n"
            except Exception as error:  # hours on another machine: the other parts count
                traceback.print_exc()
                text = f"Failed: {with_kind(error)}\n"
            add(out, f"\n## {HEADINGS[part]}\n\n{text}")
        versions = torch() if python and torch.cache_info().currsize else None
        add(out, f"\n{signature(versions.versions if versions else None)}")


def add(page: Path, text: str) -> None:
    """Prints and appends."""
    click.echo(text)
    with page.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
