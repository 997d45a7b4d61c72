"""`kbaseline doctor`: versions, devices, and whether the data and weights of a configuration are on this machine."""

from rich.console import Console
from rich.markup import escape

from kbaseline.config.schema import Config
from kbaseline.console.format import plain_table
from kbaseline.data.sources.registry import source_status
from kbaseline.devices.environment import environment
from kbaseline.devices.memory import allocator
from kbaseline.devices.xla import unused_gpu
from kbaseline.errors import ModelError
from kbaseline.models.zoo import resolve_weights


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
    table.add_row("allocator", escape(allocator()))
    if line := unused_gpu():
        table.add_row("GPU", f"[yellow]{escape(line)}[/]")
    table.add_row("cache", str(config.data.cache_folder))
    for name, (here, detail) in {"data": source_status(config.data), "weights": weights_status(config)}.items():
        table.add_row(name, f"[green]here[/]: {escape(detail)}" if here else f"[yellow]missing[/]: {escape(detail)}")
    (console or Console()).print(table)


def weights_status(config: Config) -> tuple[bool, str]:
    """Whether the backbone's weights are on this machine, and where they are or what to do."""
    try:
        weights = resolve_weights(config.model.backbone, config.model.weights)
    except ModelError as error:
        return False, str(error)
    if weights.file is None:
        return True, f"{config.model.backbone} starts from random weights"
    if weights.row is None or weights.file.is_file():
        return True, str(weights.file)
    return False, f"no file {weights.file}; {weights.row.remedy}"
