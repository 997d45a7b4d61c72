"""Plants faults into a folder of photos, audits it, and counts what is found: precision and recall of each kind.

    python benchmarks/audit.py PHOTOS                            # a table for the terminal
    python benchmarks/audit.py PHOTOS --write docs/audit.md      # puts it between that page's marks

PHOTOS holds class folders, perhaps below train/ and test/. They are copied into a temporary folder: 5 % of the labels
are flipped, 3 % of the training photos get a copy in the other split (a kind each of those in `COPIES`), 1 % each
become dark, blank and blurred, and the first class is saved as PNG.
"""

import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import marked
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console

from kbaseline.commands.audit import timed_audit
from kbaseline.config.load import load_config

SUFFIXES = (".jpg", ".jpeg", ".png")


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = (int(share * side) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) * 2 // 3
    return image.crop((left, top, left + width, top + height))


def _pale(image: Image.Image) -> Image.Image:
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.3)).enhance(0.5)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "a third of the size": lambda image: image.resize((image.width // 3, image.height // 3)),
    "JPEG of quality 20": lambda image: _jpeg(image, 20),
    "5 % of each side cut off": lambda image: _cropped(image, 0.95),
    "15 % of each side cut off": lambda image: _cropped(image, 0.85),
    "brighter, half the colour": _pale,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "mirrored, cut off, JPEG of quality 40": lambda image: _jpeg(_cropped(ImageOps.mirror(image), 0.9), 40),
}
ODD: dict[str, Callable[[Image.Image], Image.Image]] = {
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.15),
    "blank": lambda image: image.resize((1, 1), Image.Resampling.BOX).resize(image.size),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 40)),
}


@dataclass
class Planted:
    """What was planted: files from the new folder, by kind."""

    flips: dict[str, str] = field(default_factory=dict)
    copies: dict[tuple[str, str], str] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)


def plant(photos: Path, out: Path, most: int, seed: int) -> Planted:
    """Copies photos with faults; they are reduced to 320 pixels, for speed."""
    rng = np.random.default_rng(seed)
    every = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = [every[index] for index in rng.permutation(len(every))[:most]]
    classes = sorted({path.parent.name for path in chosen})
    planted, cut = Planted(), int(0.8 * len(chosen))
    shares = rng.permutation(cut)
    flips, rest = set(shares[: cut // 20].tolist()), shares[cut // 20 :]
    copied = dict(zip(rest[: 3 * cut // 100].tolist(), _cycle(COPIES), strict=False))
    rest = rest[3 * cut // 100 :]
    odd = dict(zip(rest[: 3 * cut // 100].tolist(), _cycle(ODD), strict=False))
    for number, path in enumerate(chosen):
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image.thumbnail((320, 320))
        own = path.parent.name
        label = classes[(classes.index(own) + 1) % len(classes)] if number in flips else own
        suffix = "png" if own == classes[0] else "jpg"
        name = f"{'train' if number < cut else 'valid'}/{label}/{number}.{suffix}"
        if number in odd:
            planted.odd[name] = odd[number]
            image = ODD[odd[number]](image)
        _save(image, out / name)
        if number in flips:
            planted.flips[name] = own
        if number in copied:
            copy = f"valid/{label}/copy-{number}.{suffix}"
            planted.copies[name, copy] = copied[number]
            _save(COPIES[copied[number]](image), out / copy)
    return planted


def _cycle(kinds: dict[str, Callable[[Image.Image], Image.Image]]) -> list[str]:
    return list(kinds) * 1000


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def score(found: dict, planted: Planted) -> list[tuple[str, str, str]]:
    """Rows of the table: finding, precision and recall."""
    pairs = {
        tuple(sorted((one, other)))
        for group in found["near_duplicates"]
        for one in group["files"]
        for other in group["files"]
        if one < other
    }
    wanted = {tuple(sorted(pair)): kind for pair, kind in planted.copies.items()}
    hits = pairs & set(wanted)
    rows = [("near-duplicates", f"{len(hits)} of {len(pairs)} pairs were planted", _share(len(hits), len(wanted)))]
    for kind in COPIES:
        own = {pair for pair, made in wanted.items() if made == kind}
        if own:
            rows.append((f"– {kind}", "", _share(len(own & pairs), len(own))))
    suspects = {one["file"]: one["suggested"] for one in found["label_suspects"]}
    right = set(suspects) & set(planted.flips)
    rows.append(("flipped labels", _share(len(right), len(suspects)), _share(len(right), len(planted.flips))))
    first = list(suspects)[: len(planted.flips)]
    rows.append(("– among as many first suspects", _share(len(set(first) & right), len(first)), ""))
    named = sum(suspects[file] == planted.flips[file] for file in right)
    rows.append(("– with the true class suggested", _share(named, len(right)), ""))
    for kind in ODD:
        named_odd = {one["file"] for one in found["odd_images"] if one["kind"] == kind}
        own_odd = {file for file, made in planted.odd.items() if made == kind}
        hit = len(named_odd & own_odd)
        rows.append((f"{kind} images", _share(hit, len(named_odd)), _share(hit, len(own_odd))))
    shortcuts = ", ".join(f"{one['property']} {one['accuracy']:.0%}" for one in found["shortcuts"]) or "none"
    rows.append(("shortcut by PNG", shortcuts, ""))
    return rows


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--most", default=1000, show_default=True, help="Photos to take.")
@click.option("--size", default=224, show_default=True, help="Side of the network's input.")
@click.option("--seed", default=0, show_default=True, help="Of the choice and the faults.")
@click.option("--write", type=click.Path(exists=True, path_type=Path), help="Page to put the table into.")
def main(photos: Path, most: int, size: int, seed: int, write: Path | None) -> None:
    """Plants, audits and counts."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted = plant(photos, root / "photos", most, seed)
        began = time.monotonic()
        audit, _ = timed_audit(
            load_config(None, {"data.source": str(root / "photos"), "data.size": size, "data.cache_dir": folder}),
            Console(stderr=True),
        )
        seconds = time.monotonic() - began
    found = json.loads(json.dumps(audit.to_dict()))
    lines = [
        f"{most:,} photos of `{photos.name}` at {size} pixels, {seconds:.0f} s in all, with nothing in the cache.",
        "",
        "| finding | precision | recall |",
        "|---|---|---|",
        *(f"| {name} | {precision} | {recall} |" for name, precision, recall in score(found, planted)),
    ]
    text = "\n".join(lines)
    print(text)
    if write is not None:
        marked.write(write, "audit", text)


if __name__ == "__main__":
    main()
