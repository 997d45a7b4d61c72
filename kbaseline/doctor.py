"""`kbaseline doctor`: versions, devices, and whether the data and weights of a configuration are here already."""

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kbaseline.config import Config
from kbaseline.data.image_data import default_cache_dir
from kbaseline.runtime import environment
from kbaseline.zoo import ZOO


def diagnose(config: Config, console: Console | None = None) -> None:
    """Prints what a run of `config` would find on this machine; downloads nothing.

    Args:
        config: the run.
        console: where to; default: standard output.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in environment().items():
        table.add_row(name, str(value))
    table.add_row("cache", str(default_cache_dir(config.data.cache_dir)))
    for name, (found, remark) in {"data": data_status(config), "weights": weights_status(config)}.items():
        table.add_row(name, f"[green]here[/]: {escape(remark)}" if found else f"[yellow]missing[/]: {escape(remark)}")
    (console or Console()).print(table)


def data_status(config: Config) -> tuple[bool, str]:
    """Whether the configuration's images are on this machine, and where they are or what to do."""
    kind, _, name = config.data.source.partition(":")
    if kind == "tfds":
        folder = Path(config.data.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        folder /= name.replace(":", "/")
        if any(folder.glob("**/dataset_info.json")):
            return True, f"{config.data.source} in {folder}"
        return False, f"{config.data.source} is not in {folder}; `kbaseline fit` downloads it"
    if kind == "folder":
        path = Path(name).expanduser()
        return path.is_dir(), str(path) if path.is_dir() else f"no folder {path}"
    if kind == "csv":
        path = Path(name).expanduser()
        return path.is_file(), str(path) if path.is_file() else f"no file {path}"
    if config.data.source == "digits":
        return True, "digits comes with scikit-learn"
    return False, f"no source {config.data.source!r}; give tfds:NAME, folder:PATH, csv:PATH or digits"


def weights_status(config: Config) -> tuple[bool, str]:
    """Whether the backbone's weights are on this machine, and where they are or what to do."""
    backbone, weights = config.model.backbone, config.model.weights
    named = {"auto", "none"} | {row.pretrained for row in ZOO.values()}
    if backbone.endswith(".keras") or weights not in named:
        path = Path(weights if weights not in named else backbone).expanduser()
        return path.is_file(), str(path) if path.is_file() else f"no file {path}"
    if backbone not in ZOO:
        return False, f"no backbone {backbone!r}; known are {', '.join(ZOO)}"
    row = ZOO[backbone]
    if weights not in ("auto", "none", row.pretrained):
        return False, f"{backbone} has no weights {weights!r}; give auto, {row.pretrained} or none"
    if weights == "none":
        return True, f"none wanted for {backbone}"
    file = row.weights_file
    return file.is_file(), str(file) if file.is_file() else f"{file} is not there; `kbaseline fit` downloads it"
