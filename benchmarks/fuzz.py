"""Fuzzes every reader of external data with 10,000 cases, twice, and counts how many were accepted or refused.

    python benchmarks/fuzz.py                                # a table for the terminal
    python benchmarks/fuzz.py --write docs/reliability.md    # puts it between that page's marks
    python benchmarks/fuzz.py --led 0                        # without the coverage-guided cases, which take longest

First, Hypothesis generates the cases, as in tests/safety/test_fuzz.py. Then they are coverage-guided: libFuzzer,
through Atheris (`pip install atheris`), mutates the bytes from which Hypothesis makes a case, and keeps those that
reach something new in kbaseline, Keras' loader, Pillow or PyYAML. Ends with 1 at the first case that is neither
accepted nor refused in one line.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import marked

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("KERAS_BACKEND", "jax")

INSTRUMENTED = ["kbaseline", "keras.src.saving", "PIL", "yaml"]
PACKAGES = ("hypothesis", "atheris", "keras", "pillow", "pyyaml", "numpy")
HEAD = "| what is read | cases are | cases | accepted | refused | seconds |"
MANNERS = {"drawn": "generated", "led": "coverage-guided"}


@click.command()
@click.option("--cases", type=click.IntRange(1), default=10_000, show_default=True, help="Generated cases per reader.")
@click.option("--led", type=click.IntRange(0), help="Coverage-guided cases per reader.  [default: as many]")
@click.option("--only", multiple=True, help="Only these readers.")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
@click.option("--one", nargs=2, hidden=True, help="Surface and manner: one cell of the table, as JSON.")
def main(cases: int, led: int | None, only: tuple[str, ...], write: Path | None, one: tuple[str, str] | None) -> None:
    """Fuzz all readers with generated and coverage-guided cases (these need `pip install atheris`), and count."""
    if one is not None:
        (draw if one[1] == "drawn" else lead)(one[0], cases)
        return
    if led != 0 and find_spec("atheris") is None:
        raise click.UsageError("coverage-guided cases need `pip install atheris`; --led 0 leaves them out.")
    from surfaces import SURFACES

    rows = []
    wanted = {"drawn": cases, "led": cases if led is None else led}
    for manner in filter(wanted.get, wanted):
        for name in only or [surface.name for surface in SURFACES]:
            figures = counted(name, manner, wanted[manner])
            rows.append("| " + " | ".join([name, MANNERS[manner], *(f"{figure:,}" for figure in figures)]) + " |")
            click.echo(rows[-1], err=True)
    tools = ", ".join(f"{name} {version(name)}" for name in PACKAGES if name != "atheris" or wanted["led"])
    day = datetime.now(UTC).date()
    setting = f"{day}, Python {platform.python_version()}, {tools}, {platform.system()}, {os.cpu_count()} CPU cores."
    verdict = "**Every case was accepted, or refused by one of our own errors in one line.**"
    text = "\n".join([f"{verdict} {setting}", "", HEAD, "|---|---" + "|--:" * 4 + "|", *rows])
    click.echo(text)
    if write is not None:
        marked.write(write, "fuzz.py", text)


def counted(name: str, manner: str, cases: int) -> tuple[int, int, int, int]:
    """Cases, taken, refused and seconds of one surface, in a process of its own, which libFuzzer never leaves alive."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--cases", str(cases), "--one", name, manner]
    with tempfile.TemporaryDirectory() as folder:
        places = {**os.environ, "TMPDIR": folder, "KBASELINE_CACHE": folder}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=places)  # noqa: S603 - ours
    if done.returncode:
        raise click.ClickException(f"{name}, {manner}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    taken, refused = found.get("taken", 0), found.get("refused", 0)
    return taken + refused, taken, refused, round(time.perf_counter() - begin)


def draw(name: str, cases: int) -> None:
    """Cases drawn by Hypothesis; prints the counts as JSON."""
    from surfaces import SURFACES, drawn

    surface = next(surface for surface in SURFACES if surface.name == name)
    with tempfile.TemporaryDirectory() as folder:
        click.echo("\n" + json.dumps(drawn(surface, Path(folder), cases)))


def lead(name: str, cases: int) -> None:
    """Cases led by coverage; prints the counts as JSON and ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from surfaces import SURFACES, property_of

        surface = next(surface for surface in SURFACES if surface.name == name)
        folder, corpus = (Path(tempfile.mkdtemp()) for _ in range(2))
        counts: Counter[str] = Counter()
        one_input = property_of(surface, folder, counts).hypothesis.fuzz_one_input

    def test(data: bytes) -> None:
        # Too few bytes make no case and are not counted.
        one_input(data)
        if counts.total() >= cases:
            sys.stdout.write("\n" + json.dumps(counts) + "\n")
            sys.stdout.flush()
            os._exit(0)

    draw_bytes: Any = random.Random(0).randbytes  # noqa: S311 - seeds of a corpus, no secrets
    for number in range(64):
        (corpus / str(number)).write_bytes(draw_bytes(64 * (number + 1)))
    atheris.Setup([sys.argv[0], "-seed=1", "-max_len=8192", "-len_control=0", "-timeout=120", str(corpus)], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
