"""Puts what a benchmark has measured between its marks in a page, and leaves the rest."""

from pathlib import Path

import click


def write(page: Path, program: str, text: str) -> None:
    """Replaces what stands between `<!-- PROGRAM: begin -->` and `<!-- PROGRAM: end -->`.

    Raises:
        click.ClickException: the page lacks one of them.
    """
    begin, end = (f"<!-- {program}: {mark} -->" for mark in ("begin", "end"))
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise click.ClickException(f"{page}: has no marks {begin} and {end}; put them where the tables belong.")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
