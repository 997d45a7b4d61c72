"""Judging finished runs: kept predictions and other sources, with a network whose every answer is known."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kbaseline.calibration import fit_temperature
from kbaseline.cli import main
from kbaseline.commands.evaluate import EvaluationReport, evaluate_kept, evaluate_run
from kbaseline.commands.evaluate_view import print_evaluation
from kbaseline.errors import DataError, InputError
from kbaseline.metrics import accuracy_interval, evaluate_predictions
from kbaseline.runs.record import read_run

SHADES = {"cat": 40, "dog": 120, "emu": 200}
"""The grey a network made by `by_shade` takes for each class."""


def by_shade() -> keras.Model:
    """Says the class whose shade is nearest to the mean of the image: logits 2 c x - c^2, which softmax ranks so."""
    image = keras.Input((None, None, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    dense = keras.layers.Dense(3)
    model = keras.Model(image, dense(mean))
    c = np.array(list(SHADES.values())) / 255
    dense.set_weights([20 * np.stack([2 * c] * 3) / 3, -20 * c**2])
    return model


@pytest.fixture
def run(finished_run) -> Path:
    """A finished run that has that network, at 8 pixels."""
    folder = finished_run("run", images=60, right=45, **{"data.size": 8, "model.backbone": "resnet20"})
    by_shade().save(folder / "model.keras")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve images of each class; three emus are as dark as cats."""
    for name, shade in SHADES.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            value = 45 if name == "emu" and i < 3 else shade + i % 5
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_saved_predictions_are_scored_without_keras(finished_run):
    """Invariant: neither Keras nor JAX is loaded, not even for a version in the JSON."""
    code = "import sys; from kbaseline.cli import main; main(sys.argv[1:], standalone_mode=False)\n"
    code += "assert not {'keras', 'jax'} & set(sys.modules)"
    folder = str(finished_run("kept"))
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", folder, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)["environment"]
    assert stored["keras"] == keras.__version__
    assert "device" not in stored


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_kept_predictions_are_scored_without_a_model(finished_run):
    """Golden: what `predictions.npz` holds, right 45 of 60 times and once more with TTA; nothing is written."""
    folder = finished_run("run", images=60, right=45)
    before = sorted(folder.rglob("*"))
    found = evaluate_kept(read_run(folder))
    assert (found.split, found.evaluations["plain"].accuracy, found.last.accuracy) == ("valid", 45 / 60, 46 / 60)
    assert found.last.interval == accuracy_interval(46, 60)
    assert (found.paired.only_first, found.paired.only_second, found.paired.p_value) == (0, 1, 1.0)
    assert found.last.calibration.cross_fitted
    code, text, _ = call(folder, "--json")
    assert (code, json.loads(text)["figures"]["tta"]["accuracy"]) == (0, 46 / 60)
    assert sorted(folder.rglob("*")) == before


def test_a_test_split_goes_first_at_validations_temperature(finished_run):
    """Invariant: no temperature is fitted on the images it is judged on, if the run kept others."""
    run = read_run(finished_run("run", images=60, right=45, test=40))
    found = evaluate_kept(run)
    assert (found.split, len(found.last.labels)) == ("test", 40)
    for kind, figures in found.evaluations.items():
        assert not figures.calibration.cross_fitted
        fitted = fit_temperature(run.arrays[f"valid_{kind}_probabilities"].astype(float), run.arrays["valid_labels"])
        assert figures.calibration.temperature == pytest.approx(fitted)
    assert evaluate_kept(run, "valid").split == "valid"


def test_no_tta_leaves_plain_alone(finished_run):
    """`--no-tta` scores plain predictions alone; `--tta` is refused where there are no others."""
    run = read_run(finished_run("run"))
    assert set(evaluate_kept(run, tta=False).evaluations) == {"plain"}
    assert evaluate_kept(run, tta=False).paired is None
    plain = read_run(finished_run("plain", tta=False))
    assert set(evaluate_kept(plain).evaluations) == {"plain"}
    with pytest.raises(InputError, match="has no predictions with test-time augmentation"):
        evaluate_kept(plain, tta=True)


def test_another_source_is_predicted_and_written(run, photos):
    """Golden: 33 of 36 right, by a network whose answers are known; the files hold what is printed."""
    code, text, _ = call(run, f"folder:{photos}", "--no-tta")
    assert code == 0, text
    assert "91.67 %" in text
    (folder,) = (run / "evaluations").iterdir()
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "confusion.png"}
    stored = json.loads((folder / "evaluation.json").read_text())
    figures = stored["figures"]["plain"]
    assert (stored["split"], figures["images"], figures["accuracy"]) == ("all", 36, 33 / 36)
    assert figures["confusion"] == [[12, 0, 0], [0, 12, 0], [3, 0, 9]]
    assert not figures["calibration"]["cross_fitted"]
    assert not stored["seen_in_training"]
    call(run, f"folder:{photos}", "--no-tta")
    assert len(list((run / "evaluations").iterdir())) == 2


def test_tta_stands_beside_plain(run, photos):
    """Invariant: even shades look the same zoomed and mirrored, so TTA answers as plain does."""
    found, written = evaluate_run(run, f"folder:{photos}", out=run.parent / "mine")
    assert written == run.parent / "mine"
    assert set(found.evaluations) == set(found.seconds) == {"plain", "tta"}
    np.testing.assert_allclose(
        found.evaluations["tta"].probabilities, found.evaluations["plain"].probabilities, atol=1e-5
    )
    assert found.paired.p_value == 1.0


def test_classes_are_matched_by_name(run, photos):
    """Invariant: a source that lists classes in another order, and fewer of them, is judged by name; strangers not."""
    (photos / "cat").rename(photos / "gnu")
    with pytest.raises(DataError, match=r"it has 'gnu', and the run knows 'cat', 'dog', 'emu'"):
        evaluate_run(run, f"folder:{photos}")
    for file in (photos / "gnu").iterdir():
        file.unlink()
    (photos / "gnu").rmdir()
    found, _ = evaluate_run(run, f"folder:{photos}", tta=False)
    assert found.last.accuracy == 21 / 24
    assert [row["support"] for row in found.last.per_class] == [0, 12, 12]


def test_what_the_run_learnt_from_is_told(finished_run, photos):
    """The run's own source, however its path is written, is called seen; another is not."""
    folder = finished_run("own", **{"data.source": f"folder:{photos}", "data.size": 8, "data.limit": 5})
    by_shade().save(folder / "model.keras")
    found, _ = evaluate_run(folder, f"folder:{photos}/../photos/", tta=False)
    assert found.seen_in_training
    assert len(found.last.labels) == 36
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(found, console)
    assert "Some of these images were used for training; the scores are optimistic." in shown.get()


def test_nothing_is_predicted_for_a_folder_in_use(run, photos):
    """`--out` on a folder with something in it is refused before the work, in one line."""
    code, _, error = call(run, f"folder:{photos}", "--out", run)
    assert (code, error.count("\n"), "not empty" in error) == (2, 1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--split", "test"],
            "has saved predictions of valid, not of test; the run had no such split; name a source that has one",
        ),
        (["--split", "train"], r"has saved predictions of valid.*kbaseline evaluate .* digits --split train"),
        (["folder:nowhere"], "no such folder"),
        (["digits", "--split", "test"], "digits: has no split 'test'"),
    ],
)
def test_what_cannot_be_judged_is_one_line(arguments, message, finished_run):
    """Each rule in one line with exit code 2."""
    code, _, error = call(finished_run("run"), *arguments)
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_tables_fit_80_columns(rng):
    """Of many classes with long names only the worst are shown, whole figures and all, and nothing is cut."""
    names = [f"a-class-with-a-rather-long-name-{i:02d}" for i in range(40)]
    labels = rng.integers(0, 40, size=400)
    figures = {
        kind: evaluate_predictions(rng.dirichlet(np.ones(40), size=400) * 0.5 + np.eye(40)[labels] * 0.5, labels, names)
        for kind in ("plain", "tta")
    }
    found = EvaluationReport(
        Path("runs/x"), "folder:y", "test", figures, skipped=tuple(f"{i}.png: bad" for i in range(9))
    )
    console = Console(width=80)
    with console.capture() as shown:
        print_evaluation(found, console)
    text = shown.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "worst 30 of 40" in text
    assert "skipped: 9 in all" in text
    for word in ("top-5 accuracy", "balanced accuracy", "macro F1", "fitted temperature", "McNemar's exact test"):
        assert word in text


@pytest.fixture
def breeds(run, photos) -> Path:
    """A table beside the photos whose label column is called as nobody would guess, and the run trained on one."""
    rows = [
        f"{file.relative_to(photos)},{file.parent.name},{i % 5}" for i, file in enumerate(sorted(photos.rglob("*.png")))
    ]
    table = photos / "t.csv"
    table.write_text("\n".join(["image,breed,fold", *rows]))
    config = (run / "config.yaml").read_text().replace("label_column: null", "label_column: breed")
    (run / "config.yaml").write_text(config.replace("split_column: null", "split_column: none"))
    return table


def test_the_runs_columns_count_only_where_the_table_has_them(run, breeds):
    """Golden: a table of the same columns needs no word, one of others is read by its own."""
    assert read_run(run).config.data.label_column == "breed"
    other = breeds.with_name("other.csv")
    other.write_text(breeds.read_text().replace("breed,fold", "label,rest"))
    for table in (other, breeds):
        code, text, said = call(run, f"csv:{table}", "--no-tta", "--set", "data.split_column=none")
        assert (code, "91.67 %" in text) == (0, True), said
    code, text, said = call(run, other, "--no-tta")
    assert (code, "91.67 %" in text) == (0, True), said


def test_how_a_source_is_read_can_be_set(run, breeds):
    """Golden: columns and what to do with bad rows; what belongs to the network, and a missing source, are refused."""
    strange = breeds.with_name("strange.csv")
    strange.write_text(breeds.read_text().replace("image,breed", "x,y"))
    assert call(run, strange, "--no-tta")[0] == 2
    code, text, said = call(
        run,
        strange,
        "--no-tta",
        *(f"--set=data.{k}" for k in ("image_column=x", "label_column=y", "split_column=none")),
    )
    assert (code, "91.67 %" in text) == (0, True), said
    code, _, said = call(run, strange, "--set", "data.size=32")
    assert (code, "--set data.size: the run decides it" in said) == (2, True)
    code, _, said = call(run, "--set", "data.label_column=y")
    assert (code, "name the source too" in said) == (2, True)


def test_a_test_set_alone_is_scored(run, photos, tmp_path):
    """Golden: a folder that holds nothing but `test/` is scored, and what it lacks is said."""
    (tmp_path / "only").mkdir()
    photos.rename(tmp_path / "only" / "test")
    for file in (tmp_path / "only" / "test" / "emu").iterdir():
        file.unlink()
    report, _ = evaluate_run(run, str(tmp_path / "only"), tta=False)
    assert (report.split, report.last.accuracy) == ("test", 1.0)
    assert report.skipped == ("test: has no image of 'emu'", "test/emu/: has no image that can be used, ignored")
