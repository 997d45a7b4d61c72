"""Draws architecture.svg: the rooms of the package in the order of their imports, and the data flow through them.

The order is import-linter's contract in `pyproject.toml`; jobs are first docstring lines; modules are what is on disk.
"""

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kbaseline"

WAY = (
    ("folder:photos/", None),
    ("ImageData", "data"),
    ("model", "models"),
    ("stages", "training"),
    ("probabilities", "runs/inference.py"),
    ("metrics", "metrics.py"),
    ("run folder", "storage"),
    ("report.html", "runs/report.py"),
)
"""What the data of a run is, one thing after the other, and the room or module that makes it."""

ADDITIONS = {
    "cli": "a new command: here, and its work in commands/",
    "export": "a new format: formats",
    "runs": "what the report shows: report, and its page in render/",
    "lr_finder": "a new suggestion rule: here",
    "models": "a new backbone: zoo",
    "data": "a new source: sources/, listed in sources/registry",
    "metrics": "a new number: here",
    "render": "a new chart: plots; the page: pages/report.html.j2",
    "config": "a new key: schema",
}
"""Room or module -> what one adds there, and in which of its files."""

WIDTH, LEFT, RIGHT, GAP, PAD, NAME = 900, 44, 884, 8, 12, 132
"""Pixels: the picture; where cards begin and end; between them; inside them; the column of names in a wide card."""

LINE, SMALL = 17, 16
"""Pixels from one line of a job to the next, and from one line of module names to the next."""

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.soft { fill: #59636e }
.small { font-size: 12px }
.name, .files { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.name { font-weight: 600 }
.files { font-size: 11px; fill: #59636e }
.paper { fill: #ffffff }
.card { fill: #f6f8fa; stroke: #d1d9e0 }
.room { fill: #0969da }
.part { fill: #8250df }
.add { font-size: 12px; fill: #1a7f37 }
.chip { fill: #ddf4ff; stroke: #54aeff }
.arrow { stroke: #59636e; stroke-width: 1.5; fill: none }
.head { fill: #59636e }
.badge { fill: #bf3989 }
.number { font-size: 11px; font-weight: 700; fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.soft, .files { fill: #9198a1 }
.paper { fill: #0d1117 }
.card { fill: #151b23; stroke: #3d444d }
.room { fill: #4493f8 }
.part { fill: #ab7df8 }
.add { fill: #3fb950 }
.chip { fill: #0c2d6b; stroke: #388bfd }
.arrow { stroke: #9198a1 }
.head { fill: #9198a1 }
.number { fill: #ffffff }
}
"""


def draw_architecture() -> str:
    """The picture as SVG.

    Raises:
        FileNotFoundError: the contract or `WAY` names a room or a module that does not exist.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["kbaseline"])
    top = 204
    parts, y = [*_way(), *_legend(top - 22)], top
    for layer in layers:
        drawn, height = _row([name.strip() for name in layer.split("|")], y)
        parts += drawn
        y += height + GAP
    parts += _imports(top, y - GAP)
    height = y + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>The rooms of kbaseline in the order of their imports</title><style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="10"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _way() -> list[str]:
    """The strip on top: what the data is, from left to right, and under each what makes it."""
    wide, y = 92, 62
    pitch = (RIGHT - 16 - wide) / (len(WAY) - 1)
    parts = [_text(16, 32, "Data flow", "title")]
    for number, (thing, maker) in enumerate(WAY):
        x = 16 + pitch * number
        middle = x + wide / 2
        parts.append(f'<rect class="chip" x="{x:g}" y="{y}" width="{wide}" height="34" rx="8"/>')
        parts.append(_text(middle, y + 22, thing, "small", anchor="middle"))
        if maker is None:
            parts.append(_text(middle, y + 54, "your images", "small soft", anchor="middle"))
            continue
        (PACKAGE / maker).stat()
        # The arrow fills what is left between two boxes.
        parts.append(_arrow(x - (pitch - wide) + 3, y + 17, x - 3, y + 17))
        parts.append(_badge(middle, y + 50, number))
        shown = maker if "." in maker else f"{maker}/"
        parts.append(_text(middle, y + 76, shown, "files", anchor="middle"))
    return parts


def _legend(y: int) -> list[str]:
    return [
        _text(16, y, "kbaseline/", "title"),
        _text(122, y, "A part imports only from the rows below its own.", "soft small"),
        f'<rect class="room" x="436" y="{y - 10}" width="4" height="12" rx="2"/>',
        _text(446, y, "folder", "soft small"),
        f'<rect class="part" x="500" y="{y - 10}" width="4" height="12" rx="2"/>',
        _text(510, y, "one module", "soft small"),
        _badge(606, y - 4, "n"),
        _text(621, y, "makes item n above", "soft small"),
        _text(760, y, "+ what to add here", "add"),
    ]


def _imports(top: int, bottom: int) -> list[str]:
    """The arrow beside the rows."""
    x, middle = 26, (top + bottom) / 2
    words = f'<text class="soft small" text-anchor="middle" transform="translate({x + 4:g} {middle:g}) rotate(-90)">'
    return [_arrow(x, top, x, middle - 30, head=False), _arrow(x, middle + 30, x, bottom), f"{words}imports</text>"]


def _row(names: list[str], y: int) -> tuple[list[str], int]:
    """The cards of one layer, side by side, and their height."""
    wide = (RIGHT - LEFT - GAP * (len(names) - 1)) / len(names)
    drawn = [_card(name, LEFT + (wide + GAP) * number, y, wide) for number, name in enumerate(names)]
    height = max(high for _, high in drawn)
    frames = [_frame(name, LEFT + (wide + GAP) * number, y, wide, height) for number, name in enumerate(names)]
    return [part for frame, (text, _) in zip(frames, drawn, strict=True) for part in [*frame, *text]], height


def _frame(name: str, x: float, y: int, wide: float, height: int) -> list[str]:
    kind = "room" if (PACKAGE / name).is_dir() else "part"
    return [
        f'<rect class="card" x="{x:g}" y="{y}" width="{wide:g}" height="{height}" rx="8"/>',
        f'<rect class="{kind}" x="{x:g}" y="{y + 6}" width="4" height="{height - 12}" rx="2"/>',
    ]


def _card(name: str, x: float, y: int, wide: float) -> tuple[list[str], int]:
    """The words of one room, and how many pixels they need: beside its name where there is width, else under it."""
    folder = PACKAGE / name
    is_room = folder.is_dir()
    alone = wide > (RIGHT - LEFT) / 2
    left, baseline = x + PAD + 4, y + 22
    parts = [_text(left, baseline, f"{name}/" if is_room else f"{name}.py", "name")]
    makes = [number for number, (_, maker) in enumerate(WAY) if maker and maker.split("/")[0] in {name, f"{name}.py"}]
    parts += [_badge(x + wide - 16 - 24 * place, y + 17, number) for place, number in enumerate(reversed(makes))]
    indent = NAME if alone else 0
    room = wide - 2 * PAD - 4 - indent - 24 * len(makes) * alone
    lines = _balanced(_job(folder), int(room / (6.9 if alone else 6.6)))
    baseline += 0 if alone else LINE + 1
    parts += [
        _text(left + indent, baseline + LINE * row, line, "" if alone else "small") for row, line in enumerate(lines)
    ]
    baseline += LINE * (len(lines) - 1)
    files = _files(folder, int((wide - 2 * PAD - 4 - indent) / (11 * 0.61))) if is_room else []
    parts += [_text(left + indent, baseline + SMALL * row + 18, line, "files") for row, line in enumerate(files)]
    baseline += (SMALL * len(files) + 2) * bool(files)
    if name in ADDITIONS:
        lines = textwrap.wrap(f"+ {ADDITIONS[name]}", int((wide - 2 * PAD - 4 - indent) / 6.2), break_on_hyphens=False)
        parts += [_text(left + indent, baseline + SMALL * row + 19, line, "add") for row, line in enumerate(lines)]
        baseline += SMALL * len(lines) + 3
    return parts, baseline + 12 - y


def _job(path: Path) -> str:
    """The first sentence of a room or a module, without its full stop."""
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].replace("`", "").removesuffix(".")


def _balanced(words: str, characters: int) -> list[str]:
    """As few lines as so many characters allow, none much shorter than the others."""
    lines = textwrap.wrap(words, characters, break_on_hyphens=False)
    while len(narrower := textwrap.wrap(words, characters - 1, break_on_hyphens=False)) == len(lines) > 1:
        lines, characters = narrower, characters - 1
    return lines


def _files(folder: Path, characters: int) -> list[str]:
    """The modules of a room in lines of so many characters, and a line for each folder inside it."""
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(("_", "."))]
    modules = [path.stem for path in shown if path.suffix == ".py"]
    lines = [" · ".join(modules)]
    for inner in (path for path in shown if path.is_dir()):
        names = (path for path in sorted(inner.iterdir()) if not path.name.startswith(("_", ".")))
        inside = [f"{path.name}/" if path.is_dir() else path.name.removesuffix(".py") for path in names]
        lines.append(f"in {inner.name}/: {' · '.join(inside)}")
    return [part.removeprefix("· ") for line in lines for part in _balanced(line, characters)]


def _text(x: float, y: float, words: str, classes: str = "", anchor: str = "") -> str:
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    named = f' class="{classes}"' if classes else ""
    return f'<text{named} x="{x:g}" y="{y:g}"{anchored}>{escape(words)}</text>'


def _badge(x: float, y: float, number: int | str) -> str:
    return f'<circle class="badge" cx="{x:g}" cy="{y:g}" r="9"/>' + _text(x, y + 4, str(number), "number", "middle")


def _arrow(x1: float, y1: float, x2: float, y2: float, head: bool = True) -> str:
    """A line to the right or down, with a head at its end."""
    line = f'<path class="arrow" d="M{x1:g} {y1:g}L{x2 - 5 * (y1 == y2) * head:g} {y2 - 5 * (x1 == x2) * head:g}"/>'
    sides = "l-7 -4v8z" if y1 == y2 else "l-4 -7h8z"
    return line + f'<path class="head" d="M{x2:g} {y2:g}{sides}"/>' * head
