"""Measures the recipe's speed on a GPU, beside fastai, PyTorch, a plain JAX loop and stock Keras; writes a page.

python benchmarks/gpu.py --torch ~/fastai/bin/python       # CIFAR-10 by TFDS, and Keras' ImageNet weights
python benchmarks/gpu.py --tiny --out page.md              # a try; half an hour on two CPU cores
"""

import os

# JAX takes three quarters of a GPU as it starts, in every process: this one, Keras', the recipe's, and PyTorch beside.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.25")

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from speed import recipe, roofline, stages
from speed.measure import signature
from speed.peer import Keras, Torch

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
@click.option("--side", default=8192, show_default=True, help="Rows of the matrices that show what the device can do.")
@click.option("--tiny", is_flag=True, help=f"Instead of these: {', '.join(f'{k} {v}' for k, v in TINY.items())}.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parents[1] / "docs/performance-gpu.md")
def main(parts: tuple[str, ...], python: str | None, tiny: bool, out: Path, **given: Any) -> None:
    """Measures, prints each section as it is done, and writes the page."""
    ask = SimpleNamespace(**{**given, **(TINY if tiny else {})})
    with (
        Keras(ask.batch, ask.size) as stock,
        Torch(python, ask.batch, ask.size) if python else nullcontext() as torch,
    ):
        measures: dict[str, Callable[[], str]] = {
            "recipe": lambda: recipe.section(ask.data, ask.weights, ask.batch, ask.size, ask.limit, python),
            "steps": lambda: stages.section(ask.batch, ask.size, ask.steps, ask.rounds, stock, torch),
            "roofline": lambda: roofline.section(ask.batch, ask.size, ask.rounds, ask.side),
        }
        page = HEAD
        for part in parts or HEADINGS:
            section = f"\n## {HEADINGS[part]}\n\n{measures[part]()}"
            click.echo(section)
            page += section
        page += f"\n{signature(torch.versions if torch else None)}"
    out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
