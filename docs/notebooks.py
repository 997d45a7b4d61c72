"""Executes the notebooks in docs/ and writes their outputs into them; needs nbclient and ipykernel.

python docs/notebooks.py            # docs/article.ipynb, in about two minutes
python docs/notebooks.py FOLDER     # elsewhere
"""

import os
import tempfile
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = (Path(__file__).parent / "article.ipynb",)


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
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(__file__).parent)
def write(folder: Path) -> None:
    """Execute the notebooks and write them to FOLDER; default: docs/."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as scratch:
            done = execute(nbformat.read(path, as_version=4), Path(scratch))
        text = nbformat.writes(done)
        (folder / path.name).write_text(text if text.endswith("\n") else text + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    write()
