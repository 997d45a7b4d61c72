"""What objects show of themselves, in a terminal and in a notebook: little, the right thing, and never raw arrays."""

import base64
import io
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import kbaseline
from kbaseline import ImageData, LayerwiseAdamW, Learner, LRFinder, OneCycle, RandomTransforms
from kbaseline.console import cell
from kbaseline.console.bars import Bar, status
from kbaseline.console.training import StageTable
from kbaseline.errors import DataError, InputError
from kbaseline.lr_finder import RULES, LRCurve, Rule
from kbaseline.metrics import evaluate_predictions
from kbaseline.models.zoo import ZOO, BackboneName
from kbaseline.render.notebook import Card, Gallery, Rates, Table
from kbaseline.runs.inference import TTAResult
from kbaseline.runs.record import read_run
from kbaseline.runs.run import SavedRun
from kbaseline.training.history import History

NAMES = ("<script>cat", "dog & bone", "a class with quite a long name, " * 9)
LRS = np.geomspace(1e-7, 10, 100)


def curve() -> LRCurve:
    losses = np.interp(np.log10(LRS), [-7, -4, -1, 1], [2.3, 2.3, 1.0, 9.0])
    return LRCurve(LRS, losses, losses)


def history(count: int = 6) -> History:
    row = {"train_loss": 0.5, "valid_loss": 0.25, "images_per_s": 100.0, "seconds": 7.0}
    return History(
        {"stage": f"stage {9 * i // count}", "epoch": i + 1, "accuracy": 0.9 + 0.01 * (i % 2), **row}
        for i in range(count)
    )


@pytest.fixture(scope="module")
def every(tiny_backbone: str, shared_run: Callable[..., Path]) -> dict[str, Any]:
    """One of each object that a user meets, with class names that are hard to show."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8, 3), dtype="uint8")
    data = ImageData.from_arrays((images, np.arange(300) % 3), class_names=NAMES)
    learn = Learner(data, tiny_backbone, console=Console(quiet=True))
    p = rng.dirichlet(np.ones(3), len(data.valid))
    plain, tta = (evaluate_predictions(one, data.valid.labels, NAMES) for one in (p, np.roll(p, 1, axis=0)))
    read = read_run(shared_run("shown"))
    result = read.result.model_copy(
        update={"suggested_lrs": {"head": RATES, "finetune": RATES}, "history": read.result.history * 60}
    )
    return {
        "ImageData": data,
        "Learner": learn,
        "LRFinder": LRFinder(),
        "OneCycle": OneCycle(1e-2, 100_000),
        "LayerwiseAdamW": LayerwiseAdamW(OneCycle(1e-2, 100), [[f"layer {i}"] for i in range(99)]),
        "RandomTransforms": RandomTransforms(16),
        "BaselineResult": result,
        "SavedRun": SavedRun(read.folder, read.config, learn.model, NAMES * 300, result),
        "LRCurve": curve(),
        "Rates": curve().suggestions(),
        "History": history(200),
        "Evaluation": plain,
        "TTAResult": TTAResult(plain, tta, 3.0),
        "Gallery": data.show(30),
        "Table": plain.per_class,
        "Plot": curve().plot(),
    }


RATES = {"valley": 1.234567e-3, "steep": 1e-2, "slide": 1e-1, "minimum": 2e-2}
SHOWN = [
    *("ImageData", "Learner", "LRFinder", "OneCycle", "LayerwiseAdamW", "RandomTransforms", "BaselineResult"),
    *("SavedRun", "LRCurve", "Rates", "History", "Evaluation", "TTAResult", "Gallery", "Table", "Plot"),
]


@pytest.mark.parametrize("name", SHOWN)
def test_every_public_object_shows_itself_in_a_few_lines(name: str, every: dict[str, Any]) -> None:
    """Invariant: text of one to five lines, without an address or an array; HTML is bounded, with names escaped."""
    shown = every[name]
    text = repr(shown)
    assert 1 <= len(text.splitlines()) <= 5
    assert len(text) < 1000
    assert str(shown) == text or name == "Plot"
    assert " object at 0x" not in text
    assert "array(" not in text
    bundle = getattr(shown, "_repr_mimebundle_", lambda: {})()
    html = bundle.get("text/html") or getattr(shown, "_repr_html_", lambda: "")()
    assert len(html) < 150_000
    assert "<script" not in html
    if name not in ("RandomTransforms", "LRFinder", "LayerwiseAdamW"):
        assert '<div class="kbaseline">' in html


def test_no_public_class_is_forgotten() -> None:
    """Invariant: every class of `__all__` is among those tried above."""
    classes = {name for name in kbaseline.__all__ if isinstance(getattr(kbaseline, name), type)}
    assert classes <= set(SHOWN)


def test_texts_say_what_matters(every: dict[str, Any]) -> None:
    """Golden: the words and numbers of the lines."""
    assert re.fullmatch(
        r"Learner: \S+tiny\.keras with weights auto, frozen\n"
        r"[\d,]+ of [\d,]+ parameters train\nImageData\('arrays': .*\nHistory: no epochs yet",
        repr(every["Learner"]),
    )
    assert repr(history(2)) == ("History: 2 epochs (stage 0 1, stage 4 1), accuracy 91.00 %, valid_loss 0.2500, 00:14")
    assert repr(curve()).startswith(
        "LRCurve: 100 of 100 steps, rates from 1.0e-07 to 1.0e+01\nsuggested rates: valley "
    )
    assert "no suggestion" in repr(LRCurve(LRS[:3], LRS[:3], LRS[:3]))
    assert repr(OneCycle(1e-2, 100)) == "OneCycle: 0.0004 to 0.01 at step 30 of 100, then to 4e-08"
    assert repr(every["BaselineResult"]).splitlines()[1] == "by step: head 50.00 %, finetune 80.00 %, tta 81.00 %"
    assert repr(Rates({"valley": 1.234567e-3})) == "valley 1.23e-03"


def test_a_history_is_the_list_of_its_rows() -> None:
    """Invariant: a list, with slices and JSON as before; it plots, and pandas takes it where there is pandas."""
    rows = history(3)
    assert isinstance(rows, list)
    assert rows == [dict(row) for row in rows]
    assert [len(axes.lines) > 0 for axes in rows.plot(tta=0.95).axes] == [True, True]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(InputError, match="pandas is not installed"):
            rows.to_pandas()
        patch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=len))
        assert rows.to_pandas() == 3


def test_tables_are_short_and_aligned() -> None:
    """Golden: three rows and a count of the others; shares in percent, numbers at the right."""
    rows = Table(
        {"class": name, "recall": 0.5, "support": 1234, "rate": None} for name in ("cat", "dogs", "emu", "fox")
    )
    assert repr(rows).splitlines() == [
        "class   recall  support  rate",
        "cat    50.00 %    1,234     -",
        "dogs   50.00 %    1,234     -",
        "emu    50.00 %    1,234     -",
        "… 1 more row",
    ]
    assert repr(Table()) == "no rows"
    assert repr(Table([{"step": "head", "seconds": 61.0}])).split() == ["step", "time", "head", "01:01"]


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_data_shows_images_of_its_classes(every: dict[str, Any]) -> None:
    """Golden: the pixels of images of the split, as many of each class; augmented ones have the network's size."""
    data = every["ImageData"]
    gallery = data.show(7, "valid")
    assert sorted(card.lines[0] for card in gallery.cards) == sorted([*NAMES, *NAMES, NAMES[0]])
    shown = pictures(gallery.html())
    assert all(any((image == one).all() for one in data.valid.images) for image in shown)
    augmented = pictures(replace(data, size=12).show(3, augmented=True).html())
    assert {image.shape for image in augmented} == {(12, 12, 3)}
    with pytest.raises(DataError, match="split 'dev': does not exist"):
        data.show(3, "dev")


def test_a_gallery_is_saved_as_a_page(tmp_path: Path) -> None:
    """Golden: the page holds every picture, and names as text."""
    Gallery("two", [Card(("data:image/png;base64,", "data:image/png;base64,"), ("<b>",))]).save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2
    assert "<b>&lt;b&gt;</b>" in page


def test_worst_needs_the_images(every: dict[str, Any]) -> None:
    """Predictions alone have no pictures: the error says where there are some."""
    with pytest.raises(InputError, match=r"learn\.evaluate\(\)"):
        every["Evaluation"].worst()


def test_a_run_shows_files_pil_images_and_arrays(every: dict[str, Any], tmp_path: Path) -> None:
    """Golden: a photo has one answer, as a path, a PIL image or an array; a file that is no image is named."""
    run, image = every["SavedRun"], every["ImageData"].valid.images[0]
    Image.fromarray(image).save(tmp_path / "photo.png")
    given = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image), image]
    lines = [card.lines[:3] for card in run.show(given).cards]
    assert lines == [lines[0]] * 4
    assert run.show(tmp_path / "photo.png", top=1).cards[0].lines[1:] == ("photo.png",)
    probabilities = run.predict(image[None])[0]
    best = int(probabilities.argmax())
    row = {"class": run.class_names[best], "probability": pytest.approx(float(probabilities[best]), abs=1e-6)}
    assert run.predict(tmp_path / "photo.png") == [{"image": str(tmp_path / "photo.png"), **row}]
    assert run.predict([Image.fromarray(image)]) == [{"image": "image 0", **row}]
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(DataError, match=r"no\.png'?: "):
        run.show(tmp_path / "no.png")
    with pytest.raises(DataError, match="there are none"):
        run.show([])


def test_editors_complete_the_names_there_are() -> None:
    """Golden: the types of `backbone` and `rule` list the zoo and the rules."""
    assert get_args(BackboneName) == tuple(ZOO)
    assert get_args(Rule) == tuple(RULES)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The outputs of a notebook's cell, each with all that it showed one after another."""
    outputs: list[list[str]] = []

    def display(shown: dict[str, str], *, raw: bool, display_id: bool) -> types.SimpleNamespace:
        assert raw
        assert display_id
        output = [shown["text/html"]]
        outputs.append(output)
        return types.SimpleNamespace(update=lambda shown, raw: output.append(shown["text/html"]))

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(cell, "REDRAW_SECONDS", 0.0)
    return outputs


NOTEBOOK = Console(force_jupyter=True, file=io.StringIO())


def test_a_bar_in_a_notebook_is_one_output_and_goes(cells: list[list[str]]) -> None:
    """Golden: one output, updated with every step, empty at the end; nothing from a quiet console."""
    with Bar(NOTEBOOK, "decoding <x>", 4, patience=0) as bar:
        bar.advance()
        bar.move_to(3, "note")
    ((*drawn, last),) = cells
    assert ['value="' in html for html in drawn] == [True, True, True]
    assert "decoding &lt;x&gt;" in drawn[0]
    assert 'value="3" max="4"' in drawn[-1]
    assert "75 %" in drawn[-1]
    assert "note" in drawn[-1]
    assert last == ""
    with Bar(Console(force_jupyter=True, quiet=True), "decoding", 4, patience=0) as bar:
        bar.advance()
    assert len(cells) == 1
    with status(NOTEBOOK, "report.html"):
        assert "report.html" in cells[1][-1]
    assert cells[1][-1] == ""


def test_the_epoch_table_in_a_notebook_is_all_that_stays(cells: list[list[str]]) -> None:
    """Golden: table and bars share one output, at the end of which there is the table alone."""
    import keras

    table = StageTable("head", 2, 40, NOTEBOOK)
    table.set_params({"epochs": 2, "steps": 4})
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    table.set_model(model)
    with table:
        table.on_train_begin()
        for epoch in range(2):
            table.on_epoch_begin(epoch)
            table.on_train_batch_end(1, {"loss": 0.5})
            table.on_epoch_end(epoch, {"loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.75})
        table.on_train_end()
    (drawn,) = cells
    assert any("<progress" in html and "2/4" in html for html in drawn)
    assert "<progress" not in drawn[-1]
    assert drawn[-1].count("<tr>") == 3
    assert drawn[-1].count("75.00 %") == 2
    assert "<b>head  2 epochs</b>" in drawn[-1]
