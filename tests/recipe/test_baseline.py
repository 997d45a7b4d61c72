"""The whole recipe on real digits: what a run writes, and that it can be trusted."""

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kbaseline import BaselineResult, ImageData, Learner, run_baseline
from kbaseline.baseline import find_learning_rate
from kbaseline.calibration import at_temperature
from kbaseline.config.load import load_config
from kbaseline.errors import ConfigError, DataError, InputError, LRFinderError, ModelError, RunError
from kbaseline.runs.record import fitted_temperatures, read_run
from kbaseline.runs.run import load

QUIET = Console(quiet=True)
STAGES = [
    {"name": "head", "freeze": True, "epochs": 2, "max_lr": "auto"},
    {"name": "finetune", "freeze": False, "epochs": 2, "max_lr": [1e-3, 1e-2], "lr_find": False},
]


@pytest.fixture(scope="module")
def recipe(tiny_backbone) -> dict:
    """Two stages on real digits with a backbone that trains in seconds."""
    return {
        "name": "digits",
        "seed": 3,
        "data": {"source": "digits", "size": 16},
        "model": {"backbone": tiny_backbone},
        "transforms": {"max_zoom": 1.0},
        "lr_find": {"steps": 40},
        "stages": STAGES,
        "probe": False,
        "tta": {"flip": False, "scale": 1.1},
    }


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> BaselineResult:
    return run_baseline(recipe, out=tmp_path_factory.mktemp("runs") / "digits", console=QUIET)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_folder_holds_every_file_and_no_other(run):
    """A run leaves the files the README lists, and no temporary one."""
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(
        [
            *("config.yaml", "history.csv", "lr_find.csv", "lr_find.png", "schedule.png", "history.png"),
            *("confusion.png", "model.keras", "predictions.npz", "result.json", "report.html", "doubt.npz"),
        ]
    )
    for picture in run.folder.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width > 600, picture


def test_the_numbers_agree_with_each_other(run):
    """Accuracy recomputed from the stored probabilities equals what every file and the result say (reference)."""
    stored = json.loads((run.folder / "result.json").read_text())
    with np.load(run.folder / "predictions.npz") as arrays:
        labels = arrays["valid_labels"]
        plain = float((arrays["valid_plain_probabilities"].argmax(axis=1) == labels).mean())
        tta = float((arrays["valid_tta_probabilities"].argmax(axis=1) == labels).mean())
        assert list(arrays["class_names"]) == list("0123456789")
    assert run.stages["finetune"] == pytest.approx(plain, abs=1e-6)
    assert run.tta_accuracy == run.accuracy == pytest.approx(tta, abs=1e-9)
    assert stored["accuracy"] == pytest.approx(tta)
    assert stored["figures"]["valid"]["plain"]["accuracy"] == pytest.approx(plain)
    assert stored["seed"] == 3
    assert stored["environment"]["keras"] == keras.__version__
    assert stored["data"]["images"] == {"train": 1438, "valid": 359}
    assert stored["data"]["image_size"] == [8, 8]
    assert float(rows(run.folder / "history.csv")[-1]["accuracy"]) == pytest.approx(plain, abs=1e-6)
    assert set(stored["seconds"]) >= {"data", "model", "head lr_find", "head", "finetune", "valid tta"}


def test_the_page_shows_the_last_step(run):
    """report.html leads with the accuracy of the result, and has a heat map beside each of the worst mistakes."""
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"<title>digits: {100 * run.tta_accuracy:.2f} %</title>" in page
    wrong = round(359 * (1 - run.tta_accuracy))
    assert wrong > 0
    assert page.count('alt="heat map for') == 2 * min(wrong, 12)


def test_a_learner_goes_on_from_the_run(run):
    """`Learner.load` has the run's data, its predictions and its accuracy, and trains on (reference)."""
    learn = Learner.load(run.folder, console=QUIET)
    with np.load(run.folder / "predictions.npz") as arrays:
        kept = arrays["valid_plain_probabilities"]
        assert (learn.data.valid.labels == arrays["valid_labels"]).all()
    np.testing.assert_allclose(learn.predict(learn.data.valid.images), kept, atol=1e-5)
    assert learn.evaluate().accuracy == pytest.approx(run.stages["finetune"], abs=1e-6)
    assert learn.tta().tta.accuracy == pytest.approx(run.tta_accuracy, abs=1e-6)
    assert not learn.frozen
    (row,) = learn.fit_one_cycle(1, 1e-3)
    assert row["accuracy"] > run.stages["finetune"] - 0.05
    assert not np.allclose(learn.predict(learn.data.valid.images), kept, atol=1e-3)


def test_digits_are_learnt(run):
    """Four epochs of the recipe reach an accuracy on held-out digits that no chance explains."""
    assert run.accuracy > 0.85
    assert [row["stage"] for row in run.history] == ["head", "head", "finetune", "finetune"]


def test_auto_takes_the_finders_suggestion(run):
    """`max_lr: auto` trains at the suggested rate: it stands in the curve's file and in the rule's answer."""
    curve = rows(run.folder / "lr_find.csv")
    assert {row["stage"] for row in curve} == {"head"}
    valley = run.suggested_lrs["head"]["valley"]
    assert any(math.isclose(valley, float(row["learning_rate"]), rel_tol=1e-6) for row in curve)


def test_config_in_the_folder_repeats_the_run(run, recipe, tmp_path):
    """The folder's config.yaml is complete and gives bitwise the same predictions again (determinism)."""
    assert load_config(run.folder / "config.yaml") == load_config(recipe).with_train_bn(images=1_000)
    again = run_baseline(run.folder / "config.yaml", out=tmp_path / "again", console=QUIET)
    assert again.stages == run.stages
    with np.load(run.folder / "predictions.npz") as first, np.load(again.folder / "predictions.npz") as second:
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])


def test_saved_model_gives_the_stored_predictions(run):
    """model.keras takes raw uint8 pixels and gives the logits behind the stored probabilities (invariant)."""
    data = ImageData.from_source("digits", size=16, seed=3)
    model = keras.models.load_model(run.folder / "model.keras")
    probabilities = keras.ops.softmax(model.predict(data.valid.images, verbose=0))
    with np.load(run.folder / "predictions.npz") as arrays:
        np.testing.assert_array_equal(arrays["valid_labels"], data.valid.labels)
        np.testing.assert_allclose(probabilities, arrays["valid_plain_probabilities"], atol=1e-5)


def test_a_sweep_that_suggests_nothing_ends_only_a_run_that_needs_it(recipe, tmp_path, monkeypatch):
    """Where `max_lr` is a number the run goes on and the raw curve is kept; `auto` is an error, curve kept too.

    Trained on what it validates on, the run knows nothing of other images, and says nothing of its doubt.
    """
    from kbaseline.learner import Learner
    from kbaseline.lr_finder import LRCurve

    short = LRCurve(np.array([1e-7, 1e-6]), np.array([2.0, np.nan]), np.array([2.0, np.nan]))
    monkeypatch.setattr(Learner, "lr_sweep", lambda self: short)
    stage = {"name": "head", "freeze": True, "epochs": 1, "max_lr": 1e-2, "lr_find": True}
    small = {"data.limit": 200, "data.fold": [0, 3]}
    result = run_baseline(recipe, out=tmp_path / "number", console=QUIET, stages=[stage], **small)
    assert not (result.folder / "doubt.npz").exists()
    assert result.suggested_lrs == {"head": {}}
    assert len(rows(result.folder / "lr_find.csv")) == 2
    with pytest.raises(LRFinderError, match="0 usable points of 2 steps"):
        run_baseline(recipe, out=tmp_path / "auto", console=QUIET, stages=[{**stage, "max_lr": "auto"}])
    assert (tmp_path / "auto" / "lr_find.csv").exists()


def test_a_run_that_fails_late_keeps_what_it_had(recipe, tmp_path):
    """When the second stage diverges, the first one's model and every epoch's row are there (invariant)."""
    stages = [
        {"name": "good", "freeze": True, "epochs": 1, "max_lr": 1e-2, "lr_find": False},
        {"name": "bad", "freeze": False, "epochs": 2, "max_lr": 100.0, "schedule": "constant", "lr_find": False},
    ]
    changes = {"stages": stages, "data.limit": 200, "optimizer.weight_decay": 1.0}
    with pytest.raises(RunError, match="not finite"):
        run_baseline(recipe, out=tmp_path / "run", console=QUIET, **changes)
    assert keras.models.load_model(tmp_path / "run" / "model.keras").output_shape == (None, 10)
    assert rows(tmp_path / "run" / "history.csv")[0]["stage"] == "good"
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_loaded_run_predicts_as_it_did(run):
    """Reference: the predictions the run kept, plain and with test-time augmentation, from the same images, at the
    temperature of each; without its doubt, uncalibrated. Its threshold parts these images from noise."""
    saved = load(run.folder)
    temperatures = fitted_temperatures(read_run(run.folder).evaluations["valid"], saved.config.data)
    assert saved.doubt.temperatures == temperatures
    assert saved.class_names == tuple("0123456789")
    images = ImageData.from_source("digits", size=16, seed=3).valid.images
    with np.load(run.folder / "predictions.npz") as kept:
        for kind in ("plain", "tta"):
            expected = kept[f"valid_{kind}_probabilities"]
            scaled = at_temperature(expected.astype(float), temperatures[kind])
            np.testing.assert_allclose(saved.predict(images, tta=kind == "tta"), scaled, atol=1e-5)
            plain = replace(saved, doubt=None).predict(images, tta=kind == "tta")
            np.testing.assert_allclose(plain, expected, atol=1e-5)
        answer, labels = saved.answer(images), kept["valid_labels"]
    assert answer.sets[np.arange(len(labels)), labels].mean() >= 0.9
    for share, limit in saved.doubt.limits.items():
        assert (answer.unfamiliarity > limit).mean() <= share
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    assert (saved.answer(noise).unfamiliarity > 1).mean() > 0.9


def test_a_test_split_is_scored_once_and_decides(recipe, tmp_path):
    """With a validation split held out of train, the accuracy reported is that of the untouched test split.

    The finder is left out, and says so: its steps are more than half of the stage's, whose rate is given.
    """
    for split, count in (("train", 30), ("test", 8)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                shade = np.full((20, 20, 3), 40 + 150 * label + i, np.uint8)
                Image.fromarray(shade).save(tmp_path / "photos" / split / name / f"{i}.png")
    result = run_baseline(
        recipe,
        out=tmp_path / "run",
        console=Console(file=(told := StringIO()), width=200),
        data={"source": f"folder:{tmp_path / 'photos'}", "valid_fraction": 0.2, "batch_size": 8},
        **{"stages.0.max_lr": 1e-2, "stages.1.epochs": 9, "stages.1.steps": 15},
    )
    assert load_config(tmp_path / "run" / "config.yaml").stages[1].epochs == 3
    assert max(int(row["epoch"]) for row in rows(tmp_path / "run" / "history.csv")) == 3
    assert "head lr_find: left out, for its 40 steps are more than half of the stage's 12" in told.getvalue()
    assert result.test_accuracy is not None
    assert result.accuracy == result.test_accuracy["tta"]
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert len(arrays["test_labels"]) == 16
        assert len(arrays["valid_labels"]) == 12
    figures = json.loads((tmp_path / "run" / "result.json").read_text())["figures"]
    for kind in ("plain", "tta"):
        valid, test = (figures[split][kind]["calibration"] for split in ("valid", "test"))
        assert test["temperature"] == valid["temperature"]
        assert (valid["cross_fitted"], test["cross_fitted"]) == (True, False)
    assert not (tmp_path / "run" / "lr_find.csv").exists()


def test_without_tta_the_last_stage_decides(recipe, tmp_path):
    """`tta: null` leaves test-time augmentation out of result and files; the summary ends with the last stage's."""
    console = Console(file=StringIO(), width=80)
    changes = {"stages": [{**STAGES[0], "max_lr": 1e-2, "lr_find": False, "epochs": 1}], "data.limit": 200}
    result = run_baseline(recipe, out=tmp_path / "run", console=console, tta=None, **changes)
    assert result.tta_accuracy is None
    assert result.accuracy == pytest.approx(result.stages["head"], abs=1e-6)
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert "valid_tta_probabilities" not in arrays
    figures = json.loads((tmp_path / "run" / "result.json").read_text())["figures"]["valid"]["plain"]
    low, high = figures["interval"]
    assert low < result.accuracy < high
    summary = f"head: 95 % interval {100 * low:.2f} – {100 * high:.2f} %, on {figures['images']} images"
    assert summary in console.file.getvalue()


def test_find_learning_rate_trains_nothing(recipe, tmp_path):
    """The finder alone writes its curve and its plot, and no model."""
    curve = find_learning_rate(recipe, stage="finetune", out=tmp_path / "sweep", console=QUIET)
    assert set(curve.suggestions()) == {"valley", "steep", "slide", "minimum"}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"config.yaml", "lr_find.csv", "lr_find.png"}
    with pytest.raises(ConfigError, match=r"stage 'hed'.*Did you mean 'head'"):
        find_learning_rate(recipe, stage="hed", out=tmp_path / "none", console=QUIET)


def test_a_run_that_cannot_begin_leaves_nothing(recipe, tmp_path):
    """Bad data, a bad backbone and a folder in use are refused before anything is written."""
    out = tmp_path / "run"
    with pytest.raises(DataError):
        run_baseline(recipe, out=out, console=QUIET, data={"source": f"folder:{tmp_path / 'nowhere'}"})
    with pytest.raises(ModelError):
        run_baseline(recipe, out=out, console=QUIET, model={"backbone": "resnet51"})
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="run"):
        run_baseline(recipe, out=out, console=QUIET)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_overrides_change_only_what_they_name():
    """A mapping given as an override leaves its section's other keys alone."""
    from kbaseline.config.load import dotted

    changed = load_config("quickstart", dotted({"data": {"limit": 5}, "seed": 9}))
    assert (changed.data.source, changed.data.size, changed.data.limit, changed.seed) == ("digits", 32, 5, 9)
