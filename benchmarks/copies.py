"""Counts the test images of CIFAR-10 that a run finds a copy of in train, beside what the eye says of the same pairs.

    python benchmarks/copies.py tfds:cifar10                            # a table for the terminal
    python benchmarks/copies.py tfds:cifar10 --write docs/audit.md      # puts it between that page's marks

SOURCE may hold CIFAR-10 in any form and order, lossless: copies.csv names its test images by their `pixel_digest`.
For each of them the most similar training image was looked at, beside it, at about 80 pixels a side: it is a copy (one
shot, perhaps cropped, recoloured or mirrored), similar (the same thing, and another shot or another thing), or other.
"""

import csv
from pathlib import Path

import click
import marked
from rich.console import Console

from kbaseline.audit.copies import SMALL_SIZE, network_features
from kbaseline.audit.near_duplicates import find_near_duplicates, leaked_rows, nearest
from kbaseline.config.load import load_config
from kbaseline.data.image_data import load_source

JUDGED = Path(__file__).with_suffix(".csv")


@click.command()
@click.argument("source")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As `data.data_dir`.")
@click.option("--write", type=click.Path(exists=True, path_type=Path), help="Page to put the table into.")
def main(source: str, data_dir: Path | None, write: Path | None) -> None:
    """Searches and counts; the features of all images are computed first if the cache lacks them."""
    settings = {
        "data.source": source,
        "data.size": SMALL_SIZE,
        "data.valid_fraction": 0.1,
        **({"data.data_dir": data_dir} if data_dir else {}),
    }
    config, console = load_config(None, settings), Console(stderr=True)
    data = load_source(config.data, config.seed)
    features = network_features(data, config.data.cache_folder, console)
    groups = find_near_duplicates(data, nearest(features, console), console, across=True)
    rows = leaked_rows(groups, list(data.splits)).get("test", [])
    found = set(data.splits["test"].digests[rows].tolist())
    with JUDGED.open(encoding="utf-8", newline="") as file:
        judged = {int(row["test"], 16): row["judged"] for row in csv.DictReader(file)}
    lines = [
        f"A copy in train or valid is found for {len(found):,} of {len(data.splits['test']):,} test images.",
        "",
        "| the most similar image in train or valid is | test images | found |",
        "|---|---|---|",
    ]
    for kind in ("copy", "similar", "other"):
        own = {digest for digest, said in judged.items() if said == kind}
        lines.append(f"| {kind} | {len(own)} | {len(own & found)} ({len(own & found) / len(own):.0%}) |")
    lines.append(f"| not looked at |  | {len(found - set(judged))} |")
    text = "\n".join(lines)
    print(text)
    if write is not None:
        marked.write(write, "copies", text)


if __name__ == "__main__":
    main()
