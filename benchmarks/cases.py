"""Runs the tests that rebuild what real users' files, folders and machines do, and counts them by kind.

    python benchmarks/cases.py                                 # a table for the terminal
    python benchmarks/cases.py --write docs/reliability.md     # puts it between that page's marks

The tests make their inputs themselves. Ends with 1 if a case is not right.
"""

import platform
import sys
from collections import Counter
from pathlib import Path

import click
import marked
import pytest

ROOT = Path(__file__).parents[1]

_LAYOUTS, _FOLDER = "data/test_layouts.py", "data/test_folder.py"

KINDS: dict[str, tuple[str, ...]] = {
    "a photo has one answer, whatever is beside it and whoever asks": ("runs/test_one_answer.py", "data/test_fit.py"),
    "names that are not UTF-8, composed otherwise, or differ in case only": (
        f"{_LAYOUTS}::test_one_name_composed_in_two_ways_is_one_class",
        f"{_LAYOUTS}::test_a_name_that_is_not_utf8_is_text_at_once",
        f"{_LAYOUTS}::test_classes_that_differ_only_in_case_are_named",
        f"{_FOLDER}::test_names_of_any_kind",
        "data/test_csv.py::test_letters_composed_otherwise_in_paths",
        "commands/test_predict.py::test_a_name_that_is_not_utf8_is_text_in_every_answer",
    ),
    "splits that lack a class, have no labels, stand alone or hold the unreadable image": (
        f"{_LAYOUTS}::test_a_",
        f"{_LAYOUTS}::test_an_un",
        f"{_LAYOUTS}::test_not_even_where_it_validates_alone",
        "data/test_labelled.py",
    ),
    "folders, links, rubbish and suffixes; splits by any name": (
        "data/test_walk.py",
        _LAYOUTS,
        _FOLDER,
        "config/test_split_names.py",
        "commands/test_predict.py",
    ),
    "tables of labels": ("data/test_csv.py",),
    "images right, or refused and named": ("data/test_decode.py",),
    "a run goes on from anywhere, and refuses what changed": ("training/test_resume.py",),
    "the environment: Keras, JAX, home, flags": (
        "devices/test_settings.py",
        "project/test_architecture.py::test_xla_has_its_flags_and_children_do_not",
        "project/test_package.py::test_another_backend_is_named",
    ),
    "what is meant: spellings, class weights, small sets": (
        "config/test_config.py",
        "data/test_class_weights.py",
        "devices/test_auto_batch.py",
    ),
    "caches": ("storage/test_cache_folder.py", "devices/test_compilation_cache.py"),
}
"""Kind -> modules or beginnings of test ids below `tests`. A test counts for the first kind that names it."""


class Tally:
    """A pytest plugin that counts the tests of each kind, and the passed ones of them."""

    def __init__(self) -> None:
        self.cases, self.right = Counter[str](), Counter[str]()
        self.unused = {start for starts in KINDS.values() for start in starts}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a finished test; one that was skipped is no case."""
        if report.skipped or not (report.when == "call" or report.failed):
            return
        name = report.nodeid.removeprefix("tests/")
        kind, start = next((k, s) for k, starts in KINDS.items() for s in starts if name.startswith(s))
        self.unused.discard(start)
        self.cases[kind] += 1
        self.right[kind] += report.passed


@click.command()
@click.option("--write", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Page to put the table in.")
def main(write: Path | None) -> None:
    """Runs the tests, prints the table, and puts it into a page."""
    tally = Tally()
    starts = [start for named in KINDS.values() for start in named]
    paths = {start for start in starts if "::" not in start}
    paths |= {start for start in starts if start.partition("::")[0] not in paths}
    pytest.main(
        ["--rootdir", str(ROOT), "-n", "0", "-q", *(str(ROOT / "tests" / path) for path in sorted(paths))],
        plugins=[tally],
    )
    if tally.unused:
        raise click.ClickException(f"no test is called {', '.join(sorted(tally.unused))}; mend KINDS.")
    rows = [(kind, _links(starts), tally.cases[kind], tally.right[kind]) for kind, starts in KINDS.items()]
    cases, right = tally.cases.total(), tally.right.total()
    lines = [f"| {kind} | {links} | {count:,} | {good:,} |" for kind, links, count, good in rows]
    head = f"**{right:,} of {cases:,} right.** Python {platform.python_version()}, {platform.system()}."
    text = "\n".join([head, "", "| kind | made in | cases | right |", "|---|---|--:|--:|", *lines])
    click.echo(text)
    if write is not None:
        marked.write(write, Path(__file__).name, text)
    sys.exit(right < cases)


def _links(starts: tuple[str, ...]) -> str:
    modules = dict.fromkeys(start.partition("::")[0] for start in starts)
    return ", ".join(f"[{Path(module).stem.removeprefix('test_')}](../tests/{module})" for module in modules)


if __name__ == "__main__":
    main()
