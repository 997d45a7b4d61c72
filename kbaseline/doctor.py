"""`kbaseline doctor`: versions, devices, and whether the data and weights of a configuration are here already."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kbaseline.backbones import ZOO
from kbaseline.config import Config
from kbaseline.data.image_data import default_cache_dir
from kbaseline.results import environment


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
        table.add_row(name, f"[green]here[/]: {remark}" if found else f"[yellow]missing[/]: {remark}")
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
    return True, f"{config.data.source} comes with scikit-learn"


def weights_status(config: Config) -> tuple[bool, str]:
    """Whether the backbone's weights are on this machine, and where they are or what to do."""
    backbone, weights = config.model.backbone, config.model.weights
    if backbone.endswith(".keras") or weights not in ("none", *(row.pretrained for row in ZOO.values())):
        path = Path(backbone if backbone.endswith(".keras") else weights).expanduser()
        return path.is_file(), str(path) if path.is_file() else f"no file {path}"
    if weights == "none" or backbone not in ZOO:
        return backbone in ZOO, f"{backbone}, from nothing" if backbone in ZOO else f"no backbone {backbone!r}"
    file = ZOO[backbone].file
    if file is None:
        return True, f"{backbone} comes with kbaseline"
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / file
    return home.is_file(), str(home) if home.is_file() else f"{home} is not there; `kbaseline fit` downloads it"
