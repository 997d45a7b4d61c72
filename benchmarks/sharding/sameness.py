"""The largest differences between the small run of several virtual devices and that of one."""

import tempfile
from pathlib import Path

import click
from launch import Launched
from sharding.launching import ended
from small_run import differences, recipe, save_tiny_backbone
from speed.measure import table

from kbaseline.config.load import load_config

SHARED = {"8 devices, 1 process": (1, 8), "8 devices, 2 processes": (2, 4), "8 devices, 4 processes": (4, 2)}
"""Name -> processes, and devices of each."""

ROWS = {
    "training loss of an epoch, relative": "history.csv train_loss",
    "validation loss of an epoch, relative": "history.csv valid_loss",
    "loss of a step of the finder, relative": "lr_find.csv loss",
    "a rate the finder suggests, relative": "suggestions",
    "a weight or statistic at the end": "variables",
    "a probability, plain or augmented": "probabilities",
}
"""Name -> figure of `differences`."""


def section() -> str:
    """A row for each figure."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = place / "recipe.yaml"
        config.write_text(load_config(recipe(save_tiny_backbone(place / "tiny.keras"))).to_yaml(), encoding="utf-8")

        def run(name: str, processes: int, devices: int) -> Path:
            click.echo(f"sameness: {name}", err=True)
            command = ["fit", "--config", config, "--out", place / name]
            ended(Launched(command, place / f"{name}, logs", processes, devices))
            return place / name

        whole = run("1 device", 1, 1)
        found = [differences(run(name, *shared), whole) for name, shared in SHARED.items()]
    rows = [[name, *(_shown(figures[figure]) for figures in found)] for name, figure in ROWS.items()]
    return table(["largest difference from one device", *SHARED], rows)


def _shown(difference: float) -> str:
    return f"{difference:.1e}".replace("e-0", "e-") if difference else "equal"
