"""Draws the house: every rank of the package in its order, what it imports, and the way of the data through it."""

import ast
import tomllib
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent

WAY = (
    ("folder:photos/", "data"),
    ("ImageData", "models"),
    ("classifier", "training"),
    ("trained", "runs"),
    ("probabilities", "metrics"),
    ("figures", "storage"),
    ("run folder", "render"),
    ("report.html", None),
)
"""What a run's data is, and the rank that makes the next thing of it."""

ROW, TOP, SPINE, WIDTH = 19, 120, 240, 1140
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .job { fill: #57606a } .name { font-weight: 600 }
.way { fill: #0969da } rect { fill: #ddf4ff; stroke: #0969da } line { stroke: #0969da; stroke-width: 2 }
path { fill: none; stroke: #8c959f; stroke-opacity: .55 } circle { fill: #8c959f } circle.way { fill: #0969da }
.head { fill: #0969da; stroke: none; stroke-opacity: 1 } .paper { fill: #fff; stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .job { fill: #8b949e } .way { fill: #58a6ff } rect { fill: #0d2440; stroke: #58a6ff }
.paper { fill: #0d1117; stroke: none } line { stroke: #58a6ff } circle.way, .head { fill: #58a6ff } }
"""


def draw_house() -> str:
    """The picture as SVG; the ranks are the layers of import-linter in `pyproject.toml`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    ranks = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    needs: dict[str, set[str]] = {rank: set() for rank in ranks}
    jobs = {}
    for path in sorted((ROOT / "kbaseline").rglob("*.py")):
        rank = path.relative_to(ROOT / "kbaseline").parts[0].removesuffix(".py")
        if rank not in needs:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        needs[rank] |= {name.split(".")[1] for name in imported if name.startswith("kbaseline.")} - {rank}
        if path.stem == rank or (path.stem == "__init__" and path.parent.name == rank):
            jobs.setdefault(rank, (ast.get_docstring(tree) or "").split("\n")[0])
    rows = {rank: TOP + ROW * number for number, rank in enumerate(ranks)}
    height = TOP + ROW * len(ranks) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>The ranks of kbaseline and their imports</title><style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        *_way(rows),
        *(_arc(rows[rank], rows[other]) for rank in ranks for other in sorted(_nearest(needs, rank))),
        *(_row(rank, jobs[rank], rows[rank]) for rank in ranks),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _nearest(needs: Mapping[str, set[str]], rank: str) -> set[str]:
    """What a rank imports, without what it would reach through its other imports anyway."""
    return needs[rank] - set().union(*(_reached(needs, other) for other in needs[rank]))


def _reached(needs: Mapping[str, set[str]], rank: str) -> set[str]:
    return needs[rank].union(*(_reached(needs, other) for other in needs[rank]))


def _way(rows: Mapping[str, int]) -> list[str]:
    """The strip on top: boxes of what the data is, and between them the rank at work."""
    pitch, wide, y = WIDTH / len(WAY), 100, 45
    parts = []
    for number, (thing, rank) in enumerate(WAY):
        x = pitch * number + 2
        parts.append(f'<rect x="{x:g}" y="{y}" width="{wide}" height="30" rx="6"/>')
        parts.append(f'<text x="{x + wide / 2:g}" y="{y + 19}" text-anchor="middle">{escape(thing)}</text>')
        if rank is not None:
            rows[rank]  # a rank that is no more ends the drawing
            end = x + pitch - 2
            parts.append(f'<line x1="{x + wide + 4:g}" y1="{y + 15}" x2="{end - 6:g}" y2="{y + 15}"/>')
            parts.append(f'<path class="head" d="M{end:g} {y + 15}l-8 -4v8z"/>')
            middle = (x + wide + end) / 2
            parts.append(f'<text class="name way" x="{middle:g}" y="{y - 12}" text-anchor="middle">{rank}</text>')
    return parts


def _arc(y: int, other: int) -> str:
    reach = min(SPINE - 20, 14 + (y - other) * 0.42)
    return f'<path d="M{SPINE} {y - 4}C{SPINE - reach:g} {y - 4} {SPINE - reach:g} {other - 4} {SPINE} {other - 4}"/>'


def _row(rank: str, job: str, y: int) -> str:
    way = " way" if rank in dict(WAY).values() else ""
    return (
        f'<circle class="dot{way}" cx="{SPINE}" cy="{y - 4}" r="3"/>'
        f'<text class="name{way}" x="{SPINE + 10}" y="{y}">{rank}</text>'
        f'<text class="job" x="{SPINE + 130}" y="{y}">{escape(job.replace("`", ""))}</text>'
    )
