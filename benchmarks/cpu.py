"""Measures kbaseline's speed on this CPU, beside stock Keras, fastai and PyTorch, and writes docs/performance.md.

python benchmarks/cpu.py --fastai ~/fastai/bin/python --timm ~/timm/bin/python  # everything, half an hour on two cores
python benchmarks/cpu.py --part train --part tta           # two sections anew, the others stay
"""

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
from speed import feeding, networks, passes, scaling, shares, starting, training, views
from speed.measure import signature
from speed.peer import Fastai, Keras, Timm, memories

from kbaseline.devices.memory import ask_for_huge_pages
from kbaseline.devices.xla import start_jax

HERE = Path(__file__).parent
HEAD = """# Measured: speed on a CPU

Made by `python benchmarks/cpu.py --fastai PYTHON --timm PYTHON`: the interpreters of environments with fastai, and with
PyTorch and timm. Without them, their columns are left out.
"""
HEADINGS = {
    "train": "Training",
    "networks": "Small networks",
    "predict": "Images predicted at once",
    "profile": "Where a training step's time goes",
    "feed": "Input path and host overhead",
    "start": "Start",
    "scale": "Many images",
    "tta": "Test-time augmentation",
}


@click.command(help=(__doc__ or "").replace("\n\n", "\n\n\b\n"))  # \b: lines stay as they are
@click.option("--part", "parts", multiple=True, type=click.Choice(list(HEADINGS)), help="Only this one; repeatable.")
@click.option("--fastai", "python", metavar="PYTHON", help="Interpreter of an environment with fastai.")
@click.option("--timm", "timm_python", metavar="PYTHON", help="Interpreter of an environment with PyTorch and timm.")
@click.option("--batch", default=32, show_default=True, help="Images a step.")
@click.option("--size", default=128, show_default=True, help="Pixels of the network's input.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each; the median counts.")
@click.option("--images", multiple=True, type=int, default=(1_000, 10_000, 50_000, 200_000), show_default=True)
@click.option(
    "--network",
    "names",
    multiple=True,
    type=click.Choice(list(networks.NETWORKS)),
    default=list(networks.NETWORKS),
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), default=HERE.parent / "docs" / "performance.md")
def main(
    parts: tuple[str, ...],
    python: str | None,
    timm_python: str | None,
    batch: int,
    size: int,
    rounds: int,
    images: tuple[int, ...],
    names: tuple[str, ...],
    out: Path,
) -> None:
    """Measures, prints each section as it is done, and writes the page."""
    ask_for_huge_pages()
    start_jax()
    with ExitStack() as peers:
        stock = peers.enter_context(Keras(batch, size))
        fastai = peers.enter_context(Fastai(python, batch, size)) if python else None
        timm = {
            memory: peers.enter_context(Timm(timm_python, batch, size, memory)) for memory in memories() if timm_python
        }
        measures: dict[str, Callable[[], str]] = {
            "train": lambda: training.section(batch, size, rounds, stock, fastai),
            "networks": lambda: networks.section(names, batch, size, rounds, timm),
            "predict": lambda: passes.section(rounds),
            "profile": lambda: shares.section(batch, size),
            "feed": lambda: feeding.section(batch, size, rounds, fastai),
            "start": lambda: starting.section(batch, size),
            "scale": lambda: scaling.section(images),
            "tta": lambda: views.section(size, rounds),
        }
        sections = _sections(out)
        for part in parts or HEADINGS:
            peer = timm.get("huge pages") if part == "networks" else fastai if part in ("train", "feed") else None
            sections[HEADINGS[part]] = f"{measures[part]()}\n{signature(peer.versions if peer else None)}"
            click.echo(f"## {HEADINGS[part]}\n\n{sections[HEADINGS[part]]}")
    known = [heading for heading in HEADINGS.values() if heading in sections]
    page = "".join(f"## {heading}\n\n{sections[heading].strip()}\n\n" for heading in known)
    notes = (HERE / "performance_notes.md").read_text(encoding="utf-8")
    out.write_text(f"{HEAD}\n{page}{notes}", "utf-8")


def _sections(page: Path) -> dict[str, str]:
    """Heading -> text of the page there is."""
    if not page.is_file():
        return {}
    _, *parts = page.read_text(encoding="utf-8").split("\n## ")
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


if __name__ == "__main__":
    main()
