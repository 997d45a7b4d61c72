"""The package's templates: HTML pages and Markdown, in which whatever a value holds stays text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from kbaseline.console.format import clock, interval, percent


def html_template(name: str) -> Template:
    """The template `NAME.html.j2`."""
    return _environment(escape=True).get_template(f"{name}.html.j2")


def markdown_template(name: str) -> Template:
    """The template `NAME.md.j2`, which passes text of the user's through the filter `plain`."""
    return _environment(escape=False).get_template(f"{name}.md.j2")


def _environment(*, escape: bool) -> Environment:
    pages = Environment(
        loader=PackageLoader("kbaseline", "render/pages"),
        autoescape=escape,  # noqa: S701 - of Markdown, where the filter `plain` does it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"percent": percent, "clock": clock, "interval": interval, "plain": _plain}
    return pages


def _plain(value: Any) -> str:
    """A text in one line that Markdown takes for nothing but text, in a table too."""
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|!~" else character for character in text)
