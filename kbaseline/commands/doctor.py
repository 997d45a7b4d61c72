"""`kbaseline doctor`: versions, devices, and whether the data and weights of a configuration are on this machine."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kbaseline.config.schema import Config
from kbaseline.console.format import plain_table
from kbaseline.data.sources.registry import source_status
from kbaseline.devices.xla import environment
from kbaseline.models.zoo import ZOO


def diagnose(config: Config, console: Console | None = None) -> None:
    """Prints what a run of `config` would find on this machine; downloads nothing.

    Args:
        config: the configuration of the run.
        console: where to print; default: standard output.
    """
    table = plain_table("", "")
    table.show_header = False
    for name, value in environment().items():
        table.add_row(name, str(value))
    table.add_row("cache", str(config.data.cache_folder))
    for name, (here, detail) in {"data": source_status(config.data), "weights": weights_status(config)}.items():
        table.add_row(name, f"[green]here[/]: {escape(detail)}" if here else f"[yellow]missing[/]: {escape(detail)}")
    (console or Console()).print(table)


def weights_status(config: Config) -> tuple[bool, str]:
    """Whether the backbone's weights are on this machine, and their path or what to do."""
    backbone, weights = config.model.backbone, config.model.weights
    named = {"auto", "none"} | {row.pretrained for row in ZOO.values()}
    if backbone.endswith(".keras") or weights not in named:
        path = Path(weights if weights not in named else backbone).expanduser()
        return path.is_file(), str(path) if path.is_file() else f"no file {path}"
    if backbone not in ZOO:
        return False, f"backbone {backbone!r}: must be one of {', '.join(ZOO)}"
    row = ZOO[backbone]
    if weights not in ("auto", "none", row.pretrained):
        return False, f"weights {weights!r}: must be auto, {row.pretrained} or none for {backbone}"
    if weights == "none":
        return True, f"{backbone} starts from random weights"
    file = row.weights_file
    return file.is_file(), str(file) if file.is_file() else f"no file {file}; `kbaseline fit` downloads it"
