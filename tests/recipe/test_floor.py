"""What a run must beat is measured before it trains; the head starts from the probe; the better of the two is kept."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from kbaseline import ImageData, baseline, resume_run, run_baseline
from kbaseline.baseline import find_learning_rate
from kbaseline.commands.evaluate import evaluate_kept, evaluate_source
from kbaseline.config.load import load_config
from kbaseline.errors import RunError
from kbaseline.metrics import accuracy_interval
from kbaseline.runs import floor, forecast
from kbaseline.runs.floor import below_floor, floor_line, measure_floor
from kbaseline.runs.forecast import forecast_line
from kbaseline.runs.leaks import find_leaked, leak_line
from kbaseline.runs.record import RunFloor, read_run
from kbaseline.runs.run import load
from kbaseline.serve.predictor import Predictor
from kbaseline.training.checkpoint import Checkpoint, Checkpoints

QUIET = Console(quiet=True)


class Cut(Exception):
    """The end of a process, for a test."""


def cut_at(monkeypatch: pytest.MonkeyPatch, *place: int) -> None:
    """Makes a run end right after it has saved a checkpoint of this stage, epoch and batch."""
    save = Checkpoints.save

    def last(self, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        if (checkpoint.stage, checkpoint.epoch, checkpoint.batch) == place:
            raise Cut

    monkeypatch.setattr(Checkpoints, "save", last)


def small(tiny_backbone: str, *stages: dict, **changes) -> dict:
    return {
        "seed": 3,
        "data": {"source": "digits", "size": 8, "limit": 171, "limit_valid": 83, "batch_size": 32},
        "model": {"backbone": tiny_backbone, "head": "linear", "train_bn": False},
        "stages": list(stages),
        "tta": None,
        "runtime": {"checkpoint_minutes": 1e-9},
        **changes,
    }


def facts(folder: Path) -> dict:
    """`result.json` without times."""
    text = (folder / "result.json").read_text()
    times = ("seconds", "images_per_s")
    return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k not in times})


def scored_again(folder: Path) -> float:
    """Validation accuracy of the model in the folder."""
    record = read_run(folder)
    valid = ImageData.from_source("digits", 8, seed=3, limit=171, limit_valid=83).valid
    assert (valid.labels == record.arrays["valid_labels"]).all()
    return float((load(folder).predict(valid.images).argmax(axis=1) == valid.labels).mean())


def test_a_run_of_the_probe_alone(tiny_backbone, tmp_path):
    """A stage of no epochs is the probe: its accuracy, its model, and no step of training (reference, smoke)."""
    result = run_baseline(small(tiny_backbone, {"name": "head", "init": "probe"}), out=tmp_path / "run", console=QUIET)
    assert result.floor.probe == result.accuracy == result.stages["head"] == pytest.approx(scored_again(result.folder))
    assert result.floor.probe > 0.5 > result.floor.majority
    assert [(row["epoch"], row["valid_loss"]) for row in result.history] == [(0, result.floor.probe_loss)]
    assert result.figures["valid"]["plain"]["loss"] == pytest.approx(result.floor.probe_loss, abs=1e-4)
    assert [step.name for step in result.steps] == ["majority class", "linear probe", "head"]
    assert "linear probe" in (result.folder / "report.html").read_text()


def test_training_starts_from_a_less_certain_probe(tiny_backbone, tmp_path):
    """Reference: at a rate of nothing the network is the probe at temperature 4. The probe is kept, no harmful TTA."""
    recipe = small(
        tiny_backbone,
        {"name": "head", "init": "probe"},
        {"name": "all", "freeze": False, "epochs": 1, "max_lr": 1e-12, "lr_find": False},
        keep="best",
        tta={"views": 1, "scale": 10.0, "flip": False},  # one corner, of one pixel
    )
    screen = io.StringIO()
    result = run_baseline(recipe, out=tmp_path / "run", console=Console(file=screen, width=200))
    assert "kept: plain predictions, which are better on validation than" in screen.getvalue()
    assert result.accuracy == result.floor.probe > 0.5
    assert (result.kept, result.tta_accuracy, load(result.folder).config.tta) == ("head", None, None)
    assert result.dropped_tta < result.floor.probe
    report = (result.folder / "report.html").read_text()
    assert "The model is that of <b>head</b>" in report
    assert f"it has {100 * result.dropped_tta:.2f} % there, less than the {100 * result.floor.probe:.2f} %" in report
    assert result.figures["valid"]["plain"]["loss"] == pytest.approx(result.floor.probe_loss, abs=1e-4)
    record = read_run(result.folder)
    powers = record.arrays["valid_plain_probabilities"].astype("float64") ** (1 / 4)
    softened = powers / powers.sum(axis=1, keepdims=True)
    right = softened[np.arange(len(softened)), record.arrays["valid_labels"]]
    trained = result.history[-1]
    assert trained["accuracy"] == result.floor.probe
    assert trained["valid_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-3)
    assert trained["valid_loss"] > 1.5 * result.floor.probe_loss


def test_the_finder_alone_sweeps_the_network_that_a_run_does(tiny_backbone, tmp_path):
    """Invariant: from the same less certain probe, so that both suggest the same; and nothing is kept."""
    stages = {"name": "head", "init": "probe"}, {"name": "all", "freeze": False, "epochs": 1, "lr_find": True}
    recipe = small(tiny_backbone, *stages, keep="best", lr_find={"steps": 20})
    swept = find_learning_rate(recipe, out=tmp_path / "sweep", console=QUIET)
    result = run_baseline(recipe, out=tmp_path / "run", console=QUIET)
    assert result.suggested_lrs["all"] == swept.suggestions()
    trains = small(tiny_backbone, stages[0] | {"epochs": 1}, stages[1], keep="best", lr_find={"steps": 20})
    find_learning_rate(trains, out=tmp_path / "first", console=QUIET)
    assert not list(tmp_path.glob("[sf]*/model.keras"))


def test_the_test_split_is_scored_as_validation_chose(tiny_backbone, tmp_path):
    """Test-time augmentation that is left out on validation is not scored on the test images either (behaviour)."""
    digits = ImageData.from_source("digits", 8, seed=3, limit=171, limit_valid=40)
    for split, part in (("train", digits.train), ("test", digits.valid)):
        for row, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            (tmp_path / "photos" / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "photos" / split / str(label) / f"{row}.png")
    recipe = small(
        tiny_backbone,
        {"name": "head", "init": "probe"},
        keep="best",
        tta={"views": 1, "scale": 10.0, "flip": False},  # one corner, of one pixel
        data={"source": f"folder:{tmp_path / 'photos'}", "size": 8, "valid_fraction": 0.3, "batch_size": 32},
    )
    result = run_baseline(recipe, out=tmp_path / "run", console=QUIET)
    assert result.dropped_tta < result.kept_step.accuracy
    assert set(result.test_accuracy) == set(result.figures["test"]) == {"plain"}
    assert result.accuracy == result.test_accuracy["plain"] == result.final_step.accuracy


def test_nothing_is_chosen_on_images_that_are_trained_on(tiny_backbone, tmp_path):
    """A run on all images keeps its last stage, which an unlucky rate made worse, and compares itself with nothing."""
    recipe = small(
        tiny_backbone,
        {"name": "head", "init": "probe", "epochs": 1, "max_lr": 3.0, "lr_find": False},
        keep="best",
        tta={"views": 1, "scale": 10.0, "flip": False},  # one corner, of one pixel
    )
    recipe["data"]["fold"] = [0, 3]
    screen = io.StringIO()
    result = run_baseline(recipe, out=tmp_path / "run", console=Console(file=screen, width=200))
    assert result.stages["head"] > result.tta_accuracy == result.accuracy
    assert (result.floor, result.kept, result.dropped_tta, result.leaked) == (None, None, None, None)
    printed = screen.getvalue()
    words = ("leak", "linear probe", "to beat", "below its floor", "near-duplicates", "kept")
    assert not any(word in printed for word in words)
    # Nor is a temperature fitted on them.
    assert evaluate_source(read_run(result.folder), "digits").last.calibration.cross_fitted


def test_the_best_is_kept_and_a_cut_run_ends_the_same(tiny_backbone, tmp_path, monkeypatch):
    """A rate that ruins the network leaves the probe as the model; cut twice, the run ends as one that was not."""
    recipe = small(
        tiny_backbone,
        {"name": "head", "init": "probe", "epochs": 1, "max_lr": 3.0, "lr_find": False},
        {"name": "all", "freeze": False, "epochs": 1, "max_lr": 3.0, "lr_find": False},
        keep="best",
    )
    whole = run_baseline(recipe, out=tmp_path / "whole", console=QUIET)
    assert whole.kept == "linear probe"
    assert whole.floor.probe > max(whole.stages.values())
    assert whole.accuracy == whole.floor.probe == pytest.approx(scored_again(whole.folder))
    assert (whole.kept_step.name, whole.final_step) == ("linear probe", whole.kept_step)
    with Predictor(load(whole.folder)) as served:
        assert served.about()["accuracy"]["valid"] == {"plain": whole.floor.probe, "tta": None}
    low, high = accuracy_interval(round(83 * whole.accuracy), 83)
    assert f"(95 % interval {100 * low:.2f} – {100 * high:.2f} %) on 83 images" in repr(whole)
    run, screen = tmp_path / "run", io.StringIO()
    for place, work in (
        ((0, 0, 2), lambda: run_baseline(recipe, out=run, console=QUIET)),
        ((1, 0, 1), lambda: resume_run(run, console=QUIET)),
    ):
        with monkeypatch.context() as patch:
            cut_at(patch, *place)
            with pytest.raises(Cut):
                work()
    monkeypatch.setattr(baseline, "measure_floor", lambda *_: pytest.fail("measured again"))
    resume_run(run, console=Console(file=screen, width=200))
    assert facts(run) == facts(whole.folder)
    with np.load(run / "predictions.npz") as mine, np.load(whole.folder / "predictions.npz") as other:
        for name in other:
            np.testing.assert_array_equal(mine[name], other[name])
    said = screen.getvalue()
    assert "to beat: majority class" in said
    assert f"kept: linear probe, {100 * whole.floor.probe:.2f} %" in said
    assert "below its floor" not in said


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch) -> tuple[ImageData, list[dict[str, int]]]:
    """Images of three classes of 60, 30 and 10, features that follow the labels; how many images were asked for."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    images = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.tile(labels, 2)
    data = ImageData.from_arrays((images[:100], labels), (images[100:], labels))
    asked: list[dict[str, int]] = []

    def found(splits, *_args):
        asked.append({name: len(split.images) for name, split in splits.items()})
        noise = {name: split.images[:, 1, :4, 0] / 128.0 for name, split in splits.items()}
        return {name: noise[name] + np.eye(4)[split.images[:, 0, 0, 0]] for name, split in splits.items()}

    monkeypatch.setattr(floor, "pooled_features", found)
    return data, asked


def test_the_floor_is_scikit_learns(clouds):
    """Accuracy and loss on validation agree with a logistic regression on the same features (reference)."""
    data, _ = clouds
    found = measure_floor(data, load_config(), QUIET)
    measured, probe = found.floor, found.probe
    features = {
        name: split.images[:, 1, :4, 0] / 128.0 + np.eye(4)[split.images[:, 0, 0, 0]]
        for name, split in data.splits.items()
    }
    mean, spread = features["train"].mean(axis=0), features["train"].std(axis=0)
    model = LogisticRegression(C=probe.strength).fit((features["train"] - mean) / spread, data.train.labels)
    expected = model.score((features["valid"] - mean) / spread, data.valid.labels)
    assert measured.probe == pytest.approx(expected, abs=0.011)
    assert measured.majority == 0.6
    assert (measured.train_images, measured.valid_images) == (100, 100)
    assert found.features["valid"].shape == (100, 4)
    assert floor_line(measured, {"train": 100, "valid": 100}, 61).endswith(
        f"linear probe {100 * measured.probe:.2f} % (01:01)"
    )


def test_the_floor_weighs_classes_as_training_does(clouds):
    """Invariant: with `data.class_weights` the probe answers the class that weighs more, more often."""
    data, _ = clouds

    def answers(weights) -> int:
        found = measure_floor(data, load_config({"data": {"class_weights": weights}}), QUIET)
        return int((found.probe.logits(found.features["valid"]).argmax(axis=1) == 2).sum())

    assert answers({data.class_names[2]: 1e4}) > answers("auto") >= answers("none") > 0


def test_of_many_images_a_stated_part(clouds, monkeypatch):
    """More images than the cap: a stratified part that the line states; where a stage starts from the probe, all."""
    data, asked = clouds
    monkeypatch.setattr(floor, "MOST", 40)
    found = measure_floor(data, load_config(), QUIET)
    measured = found.floor
    assert not found.features
    assert (measured.train_images, measured.valid_images) == (40, 40)
    said = floor_line(measured, {"train": 100, "valid": 100}, 2)
    assert "(fitted to 40 of 100 images and scored on 40 of 100, 00:02)" in said
    needed = load_config({"model": {"head": "linear"}, "stages": [{"name": "a", "init": "probe"}]})
    assert measure_floor(data, needed, QUIET).floor.train_images == 100
    assert asked == [{"train": 40, "valid": 40}, {"train": 100, "valid": 100}]


def test_without_a_probe_the_reason(clouds, monkeypatch):
    """Random weights have no probe; a failure costs the probe, and the run only where a stage needs it."""
    data, _ = clouds
    found = measure_floor(data, load_config({"model": {"weights": "none"}}), QUIET)
    measured = found.floor
    assert found.probe is measured.probe is None
    assert (
        floor_line(measured, {}, 1)
        == "to beat: majority class 60.00 %; no linear probe, for features of random weights are random"
    )

    def full(*_args):
        raise RunError("cache folder: the disk is full.")

    monkeypatch.setattr(floor, "pooled_features", full)
    assert measure_floor(data, load_config(), QUIET).floor.note == "no linear probe: cache folder: the disk is full."
    with pytest.raises(RunError, match="disk is full"):
        measure_floor(
            data, load_config({"model": {"head": "linear"}, "stages": [{"name": "a", "init": "probe"}]}), QUIET
        )


def test_a_run_below_its_floor_says_so(finished_run):
    """One line where the kept model is worse than probe or majority, with the remedy; else none."""
    result = read_run(finished_run("run", images=100, right=80)).result  # 81 with TTA
    assert below_floor(result) == ""
    for floor_, expected in (
        (RunFloor(majority=0.3, probe=0.81), ""),
        (
            RunFloor(majority=0.3, probe=0.9),
            "below its floor: 81.00 % on validation, the linear probe has 90.00 %; `k",
        ),
        (RunFloor(majority=0.85, probe=0.5), "below its floor: 81.00 % on validation, the majority class has 85.00 %"),
    ):
        said = below_floor(result.model_copy(update={"floor": floor_}))
        assert said.startswith(expected)
        assert bool(said) == bool(expected)


def test_the_articles_recipe_on_a_cpu_is_forecast(clouds, monkeypatch):
    """Time of the second prediction, times the passes of the recipe (reference); said of the article's recipe alone."""
    data, _ = clouds
    clock = iter([10.0, 130.0, 10.0, 130.0])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(forecast.jax, "default_backend", lambda: "cpu")
    asked: list[int] = []
    # 100 images in 120 seconds; 3 epochs of 100 + 100, frozen with BatchNorm left, 3 of 3 x 100 + 100, both too short
    # for a sweep; 9 x 100 at last.
    photos = load_config({"data": {"source": "folder:photos"}})
    said = forecast_line(photos, data, asked.append)
    assert f"takes about {round(1.2 * (3 * 200 + 3 * 400 + 900) / 60)} minutes; `--config light`" in said
    assert asked == [100, 100]
    assert forecast_line(photos.with_train_bn(len(data.train)), data, lambda _: None) == said, "as a run asks for it"
    assert forecast_line(load_config(), data, asked.append) == ""
    # A stage that is long enough, or asks for it, has its sweep: 3 passes of 20 steps of 64.
    stage = {"name": "a", "freeze": True, "epochs": 1, "max_lr": 1e-3}
    for lr_find, epochs, sweeps in (("auto", 1, 0), ("auto", 40, 1), (True, 1, 1), (False, 40, 0)):
        changes = {"stages": [{**stage, "lr_find": lr_find, "epochs": epochs}], "lr_find.steps": 20, "tta": None}
        expected = epochs * 400 + sweeps * 3 * 20 * 64 + 100
        assert forecast._passes(load_config(None, changes), data) == expected
    assert forecast_line(load_config("light", {"data.source": "folder:photos"}), data, asked.append) == ""
    monkeypatch.setattr(forecast.jax, "default_backend", lambda: "gpu")
    assert forecast_line(load_config({"data": {"source": "folder:photos"}}), data, asked.append) == ""
    assert asked == [100, 100]


def test_leaks_and_the_accuracy_without_them(rng, finished_run):
    """A mirrored copy of a training image in validation is found; the accuracy is said with and without it."""
    images = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    images[25] = images[3][:, ::-1]
    data = ImageData.from_arrays((images[:20], np.arange(20) % 2), (images[20:], np.arange(20) % 2))
    features = rng.normal(size=(40, 8))
    features[25] = features[3] + 0.01
    assert find_leaked(data, {"train": features[:20], "valid": features[20:]}, None) == {"valid": [5]}
    folder = finished_run("run", images=50, right=40, tta=False)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "leaked": {"valid": list(range(10))}}))
    report = evaluate_kept(read_run(folder))
    assert report.to_dict()["near_duplicates"] == {"images": 10, "accuracy_without": {"plain": 0.75}}
    said = leak_line("valid", report.leaked, report.last)
    assert said == (
        "near-duplicates: 10 of 50 validation images have a copy in train; "
        "accuracy without them 75.00 %, with them 80.00 %"
    )
    assert leak_line("valid", [], report.last) == ""
    assert "accuracy" not in leak_line("valid", range(50), report.last)
