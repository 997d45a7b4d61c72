"""The notebooks in docs/: executed from top to bottom, and committed with their pictures."""

import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

DOCS = Path(__file__).parents[2] / "docs"
SMALL = """
import sklearn.datasets
digits = sklearn.datasets.load_digits()
digits.images, digits.target = digits.images[:500], digits.target[:500]
sklearn.datasets.load_digits = lambda: digits
from kbaseline import ImageData, Learner
source, size, backbone, config = "digits", 16, {backbone!r}, None
"""
"""In place of the first cell: few digits, and a network that compiles fast."""


def check(notebook: Any) -> None:
    """Every cell ran without an error and without a word on stderr, and what should be a picture is one."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert [output for output in outputs if output.output_type in ("error", "stream")] == []
    values = [output.data for output in outputs if output.output_type == "execute_result"]
    assert len(values) == len(cells) - 1  # the first only imports
    assert sum("<img" in value["text/html"] for value in values) == 10
    assert all(len(value["text/plain"].splitlines()) <= 5 for value in values)
    tables = [output.data["text/html"] for output in outputs if "epoch" in output.get("data", {}).get("text/plain", "")]
    assert not any("<progress" in html for html in tables)


def test_the_articles_notebook_is_committed_with_its_outputs() -> None:
    """Golden: `python docs/notebooks.py` has written them, of the size of a page."""
    path = DOCS / "article.ipynb"
    check(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 1_500_000


def test_own_photos_runs_and_is_committed_with_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: every cell runs, here without fine-tuning, and finds what was planted; no path of a machine is in it."""
    monkeypatch.syspath_prepend(str(DOCS))
    import notebooks

    path = DOCS / "own-photos.ipynb"
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text  # noqa: S108
    assert len(text) < 1_000_000
    own = nbformat.read(path, as_version=4)
    cells = [cell for cell in own.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum("<img" in str(cell.outputs) for cell in cells) == 3
    trained = next(cell for cell in cells if "run_baseline(" in cell.source and "import" not in cell.source)
    trained.source = trained.source.replace(
        'out="run"', 'out="run", tta=None, stages=[{"name": "probe", "init": "probe"}]'
    )
    done = notebooks.execute(own, tmp_path)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "valid/ball/copy.png" in str(outputs)
    assert sys.modules.pop("notebooks")


def test_the_articles_notebook_runs(tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: every cell runs in a new kernel, here on few digits and a small network."""
    monkeypatch.syspath_prepend(str(DOCS))
    import notebooks

    article = nbformat.read(DOCS / "article.ipynb", as_version=4)
    first = next(cell for cell in article.cells if cell.cell_type == "code")
    first.source = SMALL.format(backbone=tiny_backbone)
    check(notebooks.execute(article, tmp_path))
    assert sys.modules.pop("notebooks")
