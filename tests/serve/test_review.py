"""Deciding what an audit found: over HTTP, in a real browser where there is one, and what the table then says."""

import csv
import hashlib
import http.client
import json
import threading

import browser
import numpy as np
import pytest
from PIL import Image

from kbaseline.audit.audit import Audit
from kbaseline.audit.floor import CurvePoint, Floor
from kbaseline.audit.near_duplicates import NearDuplicates
from kbaseline.audit.odd_images import Odd
from kbaseline.audit.suspects import Suspect
from kbaseline.config.schema import DataConfig
from kbaseline.data import ImageData
from kbaseline.data.duplicates import Place
from kbaseline.data.image_data import load_source
from kbaseline.errors import InputError
from kbaseline.serve.review import Review, review_application
from kbaseline.serve.server import listen, server
from kbaseline.storage.run_folder import RunFolder


@pytest.fixture
def audit(tmp_path) -> Audit:
    """Of eight photos: one suspect, two copies of one photo, one dark image."""
    rng = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "photos" / ("train" if number < 6 else "valid") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(file)
    data = load_source(DataConfig(source=str(tmp_path / "photos"), size=80, cache_dir=tmp_path / "cache"), 3)
    a, b, c = Place("train", 0, 0), Place("train", 3, 1), Place("valid", 1, 1)
    floor = Floor(0.5, (0.2, 0.8), 5, 0.5, 0.1, np.full((8, 2), 0.5))
    copies = (NearDuplicates((b, c), 0.97, (b, c)),)
    odd = (Odd(Place("valid", 0, 0), "dark", 0.1),)
    return Audit(data, copies, (Suspect(a, 1, -0.9),), odd, (), floor, (CurvePoint(8, (0.5, 0.6)),))


def rows(review: Review) -> dict[str, tuple[str, str, str]]:
    """The table: file name -> label, split and group."""
    with review.table.open(newline="", encoding="utf-8") as file:
        return {
            row["image"].rsplit("/", 1)[1]: (row["label"], row["split"], row["group"]) for row in csv.DictReader(file)
        }


def digests(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.png")}


def test_the_table_holds_what_was_decided_and_no_photo_is_touched(audit, tmp_path):
    before = digests(tmp_path / "photos")
    review = Review(audit, RunFolder.create(tmp_path / "out", "out"))
    whole = rows(review)
    assert len(whole) == 8
    copies = [name for name, (_, _, group) in whole.items() if [g for _, _, g in whole.values()].count(group) == 2]
    assert len(copies) == 2
    first = audit.name(audit.suspects[0].place).rsplit("/", 1)[1]
    review.decide(0, "relabel", 1)
    review.decide(1, "drop", 0)
    assert rows(review)[first][0] == "b"
    assert len(rows(review)) == 7
    review.undo()
    assert len(rows(review)) == 8
    review.undo()
    review.undo()
    assert rows(review) == whole
    assert digests(tmp_path / "photos") == before


def test_csv_reads_the_table(audit, tmp_path):
    """Also from another folder; the splits and the labels are those of the table."""
    review = Review(audit, RunFolder.create(tmp_path / "out", "out"))
    review.decide(0, "relabel", 1)
    review.decide(2, "drop", 0)
    config = DataConfig(source=str(review.table), size=80, cache_dir=tmp_path / "cache", group_column="group")
    data = load_source(config, 3)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "valid": 1}
    assert np.bincount(data.train.labels).tolist() == [2, 4]
    assert any("groups: 1 are on several sides" in line for line in data.skipped)


def test_images_that_are_no_files_cannot_be_named(tmp_path):
    data = ImageData.from_arrays((np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2), class_names=("a", "b"))
    audit = Audit(data, (), (), (), (), Floor(0.5, (0.2, 0.8), 5, 0.5, 0.1, np.full((8, 2), 0.5)), ())
    with pytest.raises(InputError, match="--fix needs folder:PATH or csv:PATH"):
        Review(audit, RunFolder.create(tmp_path / "out", "out"))


@pytest.fixture
def served(audit, tmp_path):
    """(review, port) of a running server."""
    review = Review(audit, RunFolder.create(tmp_path / "out", "out"))
    with listen("127.0.0.1", 0) as listener:
        running = server(review_application(review, "127.0.0.1"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield review, listener.getsockname()[1]
        running.should_exit = True
        thread.join()


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_is_wrong_is_refused_in_one_line(served):
    review, port = served
    assert ask(port, "POST", "/decide", {"item": 0, "action": "drop"}, Origin="http://evil.example")[0] == 403
    assert ask(port, "GET", "/", Host="evil.example")[0] == 400
    for body in ({"item": 9, "action": "drop"}, {"item": 0, "action": "burn"}, {"item": 0, "action": "relabel"}, [], 3):
        status, said = ask(port, "POST", "/decide", body)
        assert status == 400, body
        assert json.loads(said)["error"].startswith("decision:")
    assert ask(port, "GET", "/image/train/99")[0] == 404
    assert not review.decisions


@pytest.mark.skipif(None in browser.PROGRAMS, reason="no chromium and chromedriver here")
def test_by_keyboard_in_a_real_browser(served, tmp_path):
    review, port = served
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}})); return true"
    status = "return document.getElementById('status').textContent.startsWith('{}')"
    with browser.Browser(tmp_path / "profile", 390, dark=True) as page:
        page.open(f"http://localhost:{port}/")
        page.wait(status.format("1 of 3, 0 decided"))
        page.run(press.format("1"))
        page.wait(status.format("2 of 3, 1 decided"))
        assert page.run("return document.querySelectorAll('#pictures img').length") == 2
        page.run(press.format("d"))
        page.wait(status.format("3 of 3, 2 decided"))
        page.run(press.format("u"))
        page.wait(status.format("2 of 3, 1 decided"))
        loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
        page.wait(loaded)
        assert not page.console()
    assert review.decisions == {0: ("relabel", 1)}
