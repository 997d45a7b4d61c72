"""`data.group: auto`: copies planted into a small folder, which hold-outs and folds must not divide."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from rich.console import Console

from kbaseline import run_baseline
from kbaseline.audit import copies
from kbaseline.audit.copies import find_copies
from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import ImageData, load_source
from kbaseline.data.prepare import load_sample
from kbaseline.errors import DataError, InputError
from kbaseline.runs.copies import FILE, copies_of_run
from kbaseline.runs.record import read_run
from kbaseline.runs.run import read_data

PHOTOS, COPIED, SIDE = 40, 10, 32
SEED = 3


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The settings of a folder of `PHOTOS` photos and a mirrored copy of each of the first `COPIED`, and a broken file.

    The features are colours on a coarse grid, of the image and its mirror, in place of those of a network.
    """
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3)
        photo.save(folder / f"{number}.png")
        if number < COPIED:
            ImageOps.mirror(photo).save(folder / f"{number}-copy.png")
    (tmp_path / "photos/a/0-broken.png").write_bytes(b"no image")

    def coarse(data, cache_dir, console):
        every = np.concatenate([np.asarray(split.images, np.float32) for split in data.splits.values()])
        means = every.reshape(-1, 4, SIDE // 4, 4, SIDE // 4, 3).mean((2, 4))
        return (means + means[:, :, ::-1]).reshape(len(every), -1)

    monkeypatch.setattr(copies, "network_features", coarse)
    return {"source": str(tmp_path / "photos"), "size": SIDE, "cache_dir": tmp_path / "cache"}


def load(config):
    return load_source(config, SEED, copies=find_copies(config))


def divided(data: ImageData) -> set[str]:
    """The photos that are in one split while their copy is in another."""
    sides = [
        {Path(split.name(row)).stem.removesuffix("-copy") for row in range(len(split))}
        for split in data.splits.values()
    ]
    return sides[0] & sides[1]


@pytest.mark.parametrize("held", [{}, {"valid_fraction": 0.25}, {"fold": (2, 3)}, {"limit": 30}])
def test_a_pair_of_copies_is_divided_by_none_and_never_by_auto(source, held):
    none, auto = (load(DataConfig(**source, group=group, **held)) for group in ("none", "auto"))
    assert divided(none)
    assert not divided(auto)
    total = sum(map(len, none.splits.values()))
    assert abs(sum(map(len, auto.splits.values())) - total) <= 2
    assert abs(len(auto.valid) - len(none.valid)) <= 4
    assert [line for line in auto.skipped if "broken" in line]


def test_without_copies_the_split_is_that_of_none(source):
    for copy in Path(source["source"]).rglob("*-copy.png"):
        copy.unlink()
    none, auto = (load(DataConfig(**source, group=group)) for group in ("none", "auto"))
    assert auto.fingerprint() == none.fingerprint()


def test_copies_and_the_groups_of_a_table_hold_together(source):
    """The table puts photos 0, 10, 20 and 30 into one group, and so on: with copies, a group has five or six files."""
    root = Path(source["source"])
    names = sorted(file.relative_to(root) for file in root.rglob("*.png") if "broken" not in file.name)
    rows = [f"{name},{name.parent},{'' if 'copy' in name.stem else int(name.stem) % 10}" for name in names]
    (root / "table.csv").write_text("\n".join(["image,label,patient", *rows]))
    config = DataConfig(**source | {"source": str(root / "table.csv")}, group="auto", group_column="patient")
    data = load(config)
    assert np.unique(np.concatenate([split.groups for split in data.splits.values()])).size == 10
    assert not set(data.train.groups) & set(data.valid.groups)


def test_a_run_keeps_what_it_was_divided_by(source, tmp_path, tiny_backbone, monkeypatch):
    """The copies are read back from the run, not sought again; damaged ones and those of other images are refused."""
    config = DataConfig(**source, group="auto")
    split = load(config)
    stage = {"name": "head", "freeze": True, "epochs": 1, "max_lr": 1e-3, "lr_find": False}
    settings = {"seed": SEED, "data": config.model_dump(), "stages": [stage], "probe": False, "tta": None}
    settings["model"] = {"backbone": tiny_backbone, "hidden": 8}
    folder = run_baseline(settings, out=tmp_path / "run", console=Console(quiet=True)).folder
    monkeypatch.setattr(copies, "find_near_duplicates", lambda *_: pytest.fail("sought again"))
    assert read_data(read_run(folder)).fingerprint() == split.fingerprint()
    kept = copies_of_run(folder, config)
    sample = load_sample(config, SEED, 99, image_size=(SIDE, SIDE), copies=kept)
    np.testing.assert_array_equal(sample, np.asarray(split.valid.images))
    with pytest.raises(DataError, match=r"has 51 images, and had 50 when they were compared"):
        load_source(config, SEED, copies=kept[:-1])
    with pytest.raises(DataError, match=r"data.group 'auto': run_baseline and the commands compare all images first"):
        ImageData.from_source(**source, group="auto")
    (folder / FILE).write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"copies.npz is damaged"):
        copies_of_run(folder, config)
