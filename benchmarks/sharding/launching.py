"""Runs `step.py` and the command line in fresh processes, on virtual devices, and waits for them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from launch import Launched

STEP = Path(__file__).with_name("step.py")


def step(*options: object, processes: int = 1, devices: int = 1, flags: str = "") -> list[dict[str, Any]]:
    """What each process of a configuration of `step.py` has measured.

    Args:
        *options: of `step.py`.
        processes: how many share a batch.
        devices: virtual devices of each.
        flags: further ones of XLA.
    """
    with tempfile.TemporaryDirectory() as logs:
        launched = Launched([*map(str, options)], Path(logs), processes, devices, [STEP], flags)
        ended(launched)
        return [json.loads(launched.text(number).splitlines()[-1]) for number in range(processes)]


def ended(launched: Launched) -> None:
    """Waits for the processes.

    Raises:
        click.ClickException: one of them has failed; with what all have printed.
    """
    if any(launched.codes()):
        text = "\n".join(launched.text(number) for number in range(len(launched.logs)))
        raise click.ClickException(f"a configuration failed: {text[-3000:]}")
