"""Comparing finished runs: the figures are the runs', the differences the configurations', the tables readable."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kbaseline import ImageData
from kbaseline.cli import main
from kbaseline.commands.compare import comparison, print_comparison
from kbaseline.config.keys import flattened
from kbaseline.data import Split
from kbaseline.errors import InputError
from kbaseline.metrics import accuracy_interval
from kbaseline.runs.record import read_run, same_images

SMALL = {"model.backbone": "resnet20", "data.size": 32}


def test_flattened_reaches_into_lists():
    """Golden: every plain value stands under its dotted key, as `--set` takes it."""
    tree = {"a": {"b": 1, "c": None}, "stages": [{"epochs": 5}, {"epochs": 6}], "empty": []}
    assert flattened(tree) == {"a.b": 1, "a.c": None, "stages.0.epochs": 5, "stages.1.epochs": 6}


def test_figures_are_the_runs(finished_run):
    """Golden: a step for each stage, TTA and the test split, each with the interval of its own images."""
    run = read_run(finished_run("one", images=100, right=80, test=40, **SMALL))
    (summary,) = comparison([run])["runs"]
    assert [step["name"] for step in summary["steps"]] == ["head", "finetune", "tta", "test plain", "test tta"]
    assert [step["accuracy"] for step in summary["steps"]] == [0.5, 0.8, 0.81, 1.0, 1.0]
    assert summary["steps"][2]["interval"] == list(accuracy_interval(81, 100))
    assert summary["steps"][4]["interval"] == list(accuracy_interval(40, 40))
    assert [step["seconds"] for step in summary["steps"]] == [3.0, 4.0, 2.0, None, 2.0]
    assert (summary["seconds"], summary["images_per_s"]) == (12.0, 200.0)
    assert (summary["backbone"], summary["size"], summary["seed"]) == ("resnet20", 32, 42)


def test_only_what_differs_is_listed(finished_run):
    """Golden: dotted keys with each run's value, the name left out; a section that one run lacks is told."""
    a = finished_run("a", **SMALL, name="first")
    b = finished_run("b", **SMALL, **{"stages.1.epochs": 9, "seed": 7})
    c = finished_run("c", tta=False, **SMALL)
    found = comparison([read_run(folder) for folder in (a, b, c)])
    assert found["differences"]["seed"] == [42, 7, 42]
    assert found["differences"]["stages.1.epochs"] == [3, 9, 3]
    assert {key.split(".")[0] for key in found["differences"]} == {"seed", "stages", "tta"}
    assert found["differences"]["tta.views"] == [8, 8, None]
    assert not found["same_images"]  # another seed holds out others


def test_tables_fit_80_columns(finished_run):
    """Every figure stands whole on a narrow terminal, and runs on other images are told from runs on the same."""
    a = finished_run("a-run-with-a-long-name", **SMALL)
    b = finished_run("b", images=60, right=30, **SMALL)
    console = Console(width=80)
    with console.capture() as shown:
        print_comparison(comparison([read_run(a), read_run(b)]), console)
    text = shown.get()
    low, high = accuracy_interval(81, 100)
    assert f"81.00 %  {100 * low:.2f} – {100 * high:.2f} %  00:02" in text
    assert "a-run-with-a-long-name" in text
    assert "…" not in text
    assert "The runs were scored on different images" in text


def test_the_command_prints_json_and_draws(finished_run, tmp_path):
    """`compare` gives the same figures as JSON, and a plot of the promised width."""
    folders = [str(finished_run(name, **SMALL)) for name in ("a", "b", "c")]
    done = CliRunner().invoke(main, ["compare", *folders, "--json", "--out", str(tmp_path / "plot.png")])
    assert done.exit_code == 0, done.output
    assert [run["run"] for run in json.loads(done.stdout)["runs"]] == ["a", "b", "c"]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == pytest.approx(900, abs=5)


def test_runs_of_one_name_are_told_apart(finished_run):
    """Two folders of the same name stand there with their paths."""
    runs = [read_run(finished_run(f"{parent}/run", **SMALL)) for parent in ("x", "y")]
    assert [run["run"] for run in comparison(runs)["runs"]] == [str(run.folder) for run in runs]


def test_a_plot_that_would_be_another_file_is_refused(finished_run):
    """A plot's name must be that of a PNG, so that a slip cannot replace a run's own file."""
    run = finished_run("a", **SMALL)
    before = (run / "config.yaml").read_text()
    done = CliRunner().invoke(main, ["compare", str(run), "--out", str(run / "nowhere" / "x.png")])
    assert done.exit_code == 2
    assert f"there is no folder '{run}/nowhere'; make it, or name another." in done.stderr
    done = CliRunner().invoke(main, ["compare", str(run), "--out", str(run / "config.yaml")])
    assert (done.exit_code, "must end in .png" in done.stderr) == (2, True)
    assert (run / "config.yaml").read_text() == before


def test_what_is_no_run_is_refused(finished_run, tmp_path):
    """Each rule in one line with the folder's name: absent, no run, damaged, of another version."""
    with pytest.raises(InputError, match=r"'.*nowhere': no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.yaml; it is not a run folder"):
        read_run(tmp_path)
    for name, text, message in (
        ("result.json", "{", "files cannot be read"),
        ("result.json", "{}", "result.json lacks accuracy, data, environment, history, seconds"),
        ("predictions.npz", "no zip", "files cannot be read"),
    ):
        run = finished_run(f"run-{message[:5]}-{name}", **SMALL)
        (run / name).write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_run(run)
        assert "\n" not in str(caught.value)


def test_pairs_are_compared_image_by_image(finished_run):
    """Golden: `right` images of 100 are right with TTA one more; McNemar's exact test on those that differ."""
    runs = [read_run(finished_run(name, images=100, right=right, **SMALL)) for name, right in (("a", 60), ("b", 80))]
    (pair,) = comparison(runs)["pairs"]
    assert (pair["first"], pair["second"], pair["images"]) == ("a", "b", 100)
    assert pair["difference"] == pytest.approx(0.2)
    assert (pair["only_first"], pair["only_second"]) == (0, 20)
    assert pair["p_value"] == pytest.approx(2 * 0.5**20)
    # Connor's formula with z 1.95996 and 0.84162: (1.95996 sqrt(0.2) + 0.84162 sqrt(0.2 - 0.04))² / 0.04 = 36.7.
    assert pair["images_to_settle"] == 37


def test_images_with_equal_labels_may_be_others(finished_run):
    """Golden: what a run says of its images decides; where it says nothing, its source and seed must be the same."""
    a, b, c = (read_run(finished_run(name, **SMALL, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))

    def saying(run, digest):
        data = run.result.data.model_copy(update={"scored": {"valid": digest}})
        return replace(run, result=run.result.model_copy(update={"data": data}))

    assert same_images(a, b, "valid")
    assert not same_images(a, b, "test")
    assert not same_images(a, c, "valid")
    assert same_images(saying(a, "x"), saying(c, "x"), "valid")
    apart = [saying(a, "x"), saying(b, "y")]
    found = comparison(apart)
    assert (found["same_images"], found["pairs"]) == (False, [])


def test_images_are_the_same_at_another_size(tmp_path, rng):
    """Invariant: which images a split holds depends on the files and their order, not on how they are decoded."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(20):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / label / f"{number}.png")

    def valid(seed, size):
        return ImageData.from_source(f"folder:{tmp_path}", size, seed=seed).valid

    one, other, larger = valid(1, 8), valid(2, 8), valid(1, 16)
    assert one.labels.tolist() == other.labels.tolist()
    assert one.identity == larger.identity != other.identity
    assert one.images.shape != larger.images.shape
    pixels = np.asarray(one.images)
    arrays = [Split(images, one.labels).identity for images in (pixels, pixels.copy(), pixels[::-1])]
    assert arrays[0] == arrays[1] != arrays[2]


def test_runs_that_do_not_differ_need_no_images(finished_run):
    runs = [read_run(finished_run(name, **SMALL)) for name in ("a", "b")]
    (pair,) = comparison(runs)["pairs"]
    assert (pair["difference"], pair["p_value"], pair["images_to_settle"]) == (0, 1, None)
