"""Measures several virtual CPU devices against one: the same run, the pace of a step, what they send one another.

    python benchmarks/devices.py                            # tables for the terminal, minutes on two idle cores
    python benchmarks/devices.py --write docs/scaling.md    # puts them between that page's marks
    python benchmarks/devices.py --part traffic             # one of them, for the terminal alone

Each configuration runs in fresh processes of its own, those of several processes on the loopback interface.
"""

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import marked

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sharding import pace, sameness, traffic

from kbaseline.devices.environment import environment

PARTS = {
    "sameness": ("The same run", sameness.section),
    "pace": ("What sharing costs", pace.section),
    "traffic": ("What is sent", traffic.section),
}
"""Name -> heading, and what measures it."""


@click.command(help=__doc__)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only this one; repeatable.")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Page whose tables are replaced.")
def main(parts: tuple[str, ...], write: Path | None) -> None:
    """Measures, prints each table as it is done, and writes the page."""
    if parts and write is not None:
        raise click.UsageError("--part: the page takes all tables together; leave out --part or --write.")
    place, sections = environment(), []
    for part in parts or PARTS:
        heading, measure = PARTS[part]
        sections.append(f"### {heading}\n\n{measure()}")
        click.echo(sections[-1])
    setting = (
        f"{datetime.now(UTC).date()}, {platform.system()}, {place['cpus']} CPU cores, Python {place['python']}, Keras "
        f"{place['keras']}, JAX {place['jax']}, float32."
    )
    click.echo(setting)
    if write is not None:
        marked.write(write, "devices.py", "\n".join([*sections, setting]))


if __name__ == "__main__":
    main()
