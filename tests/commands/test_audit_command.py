"""`kbaseline audit` on a folder of photos with planted faults, by the embedded network, as a user runs it."""

import json
import re
import socket

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kbaseline.cli import main
from kbaseline.commands import audit

SIDE = 64


def _photo(label: int, rng: np.random.Generator) -> Image.Image:
    ground = Image.fromarray(rng.integers(60, 200, (7, 7, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3)
    pixels = np.asarray(ground, np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] - rng.integers(20, 44, 2)[:, None, None]
    thing = x**2 + y**2 < 220 if label else np.minimum(abs(x), abs(y)) < 5
    pixels[thing] = (30, 40, 220) if label else (230, 60, 30)
    return Image.fromarray((pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """(JSON, page, output): a leaked mirror, a black photo, and one class saved as PNG, the other as JPEG."""
    root, rng = tmp_path_factory.mktemp("audit"), np.random.default_rng(0)
    for split, count in (("train", 24), ("valid", 8)):
        for label, (name, suffix) in enumerate((("cross", "png"), ("disc", "jpg"))):
            folder = root / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                _photo(label, rng).save(folder / f"{number}.{suffix}", quality=90)
    with Image.open(root / "photos/train/cross/3.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "photos/valid/cross/copy.png")
    Image.new("RGB", (SIDE, SIDE), (3, 3, 3)).save(root / "photos/train/cross/black.png")
    arguments = ["audit", str(root / "photos"), "--out", str(root / "out"), "--set", f"data.size={SIDE}"]
    done = CliRunner().invoke(main, [*arguments, "--set", f"data.cache_dir={root / 'cache'}"])
    assert done.exit_code == 0, done.output
    written = json.loads((root / "out" / "audit.json").read_text())
    return written, (root / "out" / "audit.html").read_text(), done.stdout


def test_what_was_planted_is_found(audited):
    found, _, output = audited
    (group,) = found["near_duplicates"]
    assert set(group["files"]) == {"train/cross/3.png", "valid/cross/copy.png"}
    assert sorted(group["splits"]) == ["train", "valid"]
    assert found["leaks"] == {"valid": 1}
    assert {"file": "train/cross/black.png", "split": "train", "kind": "blank", "score": 0.0} in found["odd_images"]
    assert {one["property"] for one in found["shortcuts"]} >= {"format"}
    assert found["probe"]["accuracy"] > found["probe"]["majority"]
    assert "Leak: 1 of 17 valid images have a copy in train" in output
    assert "Shortcut: " in output


def test_a_page_that_cannot_be_opened_is_refused_before_the_audit(tmp_path, monkeypatch):
    """Golden: images that are no files, a port in use, and `--json`, which a page has no place beside."""
    monkeypatch.setattr(audit, "timed_audit", lambda *_: pytest.fail("audited"))
    photos = tmp_path / "photos"
    photos.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            (["digits"], "source 'digits': its images are not files"),
            ([str(photos), "--json"], "--fix: opens a page"),
            ([str(photos), "--port", str(port)], f"127.0.0.1, port {port}: cannot be listened on"),
        ):
            done = CliRunner().invoke(main, ["audit", *arguments, "--fix", "--out", str(tmp_path / "out")])
            assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
            assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_page_is_self_contained(audited):
    _, page, _ = audited
    assert "default-src 'none'" in page
    assert not re.search(r"<script|https?://", page)
    assert page.count("data:image/") >= 4
    assert "leak between splits" in page
    assert '<figcaption title="valid/cross/copy.png (valid, cross)">copy.png (valid, cross)<' in page
