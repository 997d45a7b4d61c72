"""Reads the headers of a source's image files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.data import ImageData
from kbaseline.data.decode import BadImageError, Header, probe, quiet
from kbaseline.data.duplicates import Place, all_places
from kbaseline.data.pictures import FilePictures


def read_headers(data: ImageData, console: Console | None) -> dict[Place, Header]:
    """Header of every image that is a file and can still be read."""
    files = list(image_files(data))
    headers: dict[Place, Header] = {}
    with quiet(), Bar(console, "Reading headers", len(files)) as bar, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda file: _header(file[1]), files)
        for (place, _, _), header in zip(files, found, strict=True):
            if header is not None:
                headers[place] = header
            bar.advance()
    return headers


def image_files(data: ImageData) -> Iterator[tuple[Place, Path, int]]:
    """Every image that is a file: its place, its path and its bytes."""
    for place in all_places(data):
        provenance = data.splits[place.split].provenance
        if provenance is not None and isinstance(provenance.pictures, FilePictures):
            number = int(provenance.numbers[place.row])
            yield place, provenance.pictures.open(number), provenance.pictures.files[number].size


def _header(file: Path) -> Header | None:
    try:
        return probe(file)
    except BadImageError:
        return None  # The file changed since it was decoded; the decoded copy counts.
