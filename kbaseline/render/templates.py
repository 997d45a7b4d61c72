"""Jinja templates of HTML and Markdown pages; values are escaped, so that they stay text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from kbaseline.console.format import clock, interval, percent


def html_template(name: str) -> Template:
    """The template `NAME.html.j2`."""
    return _environment(escape=True).get_template(f"{name}.html.j2")


def markdown_template(name: str) -> Template:
    """The template `NAME.md.j2`, which escapes user text with the filter `plain`."""
    return _environment(escape=False).get_template(f"{name}.md.j2")


def _environment(*, escape: bool) -> Environment:
    pages = Environment(
        loader=PackageLoader("kbaseline", "render/pages"),
        autoescape=escape,  # noqa: S701 - off for Markdown, where the filter `plain` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"percent": percent, "clock": clock, "interval": interval, "plain": _plain}
    return pages


def _plain(value: Any) -> str:
    """A text as one line, with Markdown's special characters escaped, also for tables."""
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|!~" else character for character in text)
