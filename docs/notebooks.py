"""Executes the notebooks in docs/ and writes their outputs into them; needs nbclient and ipykernel.

python docs/notebooks.py                      # docs/article.ipynb and docs/own-photos.ipynb, two minutes each
python docs/notebooks.py --only own-photos    # one of them
"""

import os
import tempfile
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = ("article", "own-photos")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs every cell in a new kernel that works in a folder, and leaves out what differs from run to run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    client = NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # An erased progress bar leaves an empty output.
            cell.outputs = [
                one for one in cell.outputs if one.get("data", {"text/html": "shown"}).get("text/html") != ""
            ]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


@click.command()
@click.option("--only", type=click.Choice(NOTEBOOKS), help="One of them. Default: all.")
def write(only: str | None) -> None:
    """Execute the notebooks in place."""
    for name in [only] if only else NOTEBOOKS:
        path = Path(__file__).parent / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as scratch:
            done = execute(nbformat.read(path, as_version=4), Path(scratch))
        # A run records absolute paths; the scratch folder is nobody's.
        text = nbformat.writes(done).replace(f"{os.path.realpath(scratch)}/", "")
        path.write_text(text if text.endswith("\n") else text + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    write()
