"""Several runs, one number: seeds and folds, with runs that take no time in place of training."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from kbaseline import repeats
from kbaseline.commands.compare import comparison
from kbaseline.commands.evaluate import evaluate_kept
from kbaseline.config.load import load_config
from kbaseline.console.format import interval, percent
from kbaseline.errors import ConfigError, InputError
from kbaseline.export.card import render_card
from kbaseline.metrics import accuracy_interval
from kbaseline.repeats import as_chosen
from kbaseline.runs.record import read_run
from kbaseline.runs.run import SavedRun
from kbaseline.serve.page import Page
from kbaseline.serve.predictor import Predictor


@pytest.fixture
def trained(monkeypatch, finished_run):
    """The configurations that were run, in order; each leaves a folder as a run does."""
    seen = []

    def run(config, *, out, console):
        seen.append(config)
        if len(seen) == getattr(run, "stop", 0):
            raise KeyboardInterrupt("stopped")
        # The fixture joins the path to its own folder, which an absolute one replaces.
        changes = {"seed": config.seed} | ({"data.fold": list(config.data.fold)} if config.data.fold else {})
        finished_run(out, images=50, right=30 + len(seen), **changes)

    def resume(folder, *, console, **changes):
        read_run(folder)
        run.resumed.append((folder.name, changes))

    run.resumed = []
    monkeypatch.setattr(repeats, "run_baseline", run)
    monkeypatch.setattr(repeats, "resume_run", resume)
    return seen, run


def test_seeds_differ_in_nothing_but_the_seed(trained, tmp_path, capsys):
    seen, _ = trained
    found = repeats.run_seeds({"data": {"source": "digits"}}, 3, out=tmp_path / "all", seed=7)
    assert [config.seed for config in seen] == [7, 8, 9]
    assert len({config.model_copy(update={"seed": 0}).to_yaml() for config in seen}) == 1
    accuracies = [0.64, 0.66, 0.68]  # 31, 32 and 33 of 50, and one more with TTA
    assert found.accuracies == pytest.approx(accuracies)
    assert found.mean == pytest.approx(0.66)
    assert found.spread == pytest.approx(np.std(accuracies, ddof=1))
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["interval"] == pytest.approx(
        list(found.interval)
    )
    assert "seeds: 66.00 %, spread 2.00 points" in capsys.readouterr().out


def test_folds_hold_out_each_part_once_and_end_with_all(trained, tmp_path):
    seen, _ = trained
    found = repeats.run_folds({"data": {"source": "digits"}}, 4, out=tmp_path / "all")
    assert [config.data.fold for config in seen] == [(1, 4), (2, 4), (3, 4), (4, 4), (0, 4)]
    assert found.runs == ("fold-1", "fold-2", "fold-3", "fold-4")
    assert found.interval == pytest.approx(accuracy_interval(round(200 * found.mean), 200))
    with pytest.raises(ConfigError, match="valid_fraction"):
        repeats.run_folds({"data": {"valid_fraction": 0.2}}, 4, out=tmp_path / "other")
    with pytest.raises(ConfigError, match="at least 2; got 1"):
        repeats.run_seeds({}, 1, out=tmp_path / "other")


def test_the_final_model_has_no_accuracy_of_its_own(trained, tmp_path):
    """Behaviour: it is trained on all images; whatever shows its accuracy says so, and what its folds had instead."""
    found = repeats.run_folds({"data": {"source": "digits"}}, 2, out=tmp_path / "all")
    with pytest.raises(InputError, match=r"holds several runs; give one of them, for instance '.*/all/final'"):
        read_run(tmp_path / "all")
    final, fold = (read_run(tmp_path / "all" / name) for name in ("final", "fold-1"))
    assert (evaluate_kept(final).seen_in_training, evaluate_kept(fold).seen_in_training) == (True, False)
    assert comparison([final, fold])["trained_on"] == ["final"]
    (tmp_path / "model.onnx").write_bytes(b"1234")
    card = render_card(final, "onnx", tmp_path / "model.onnx", (8, 8), "checked")
    assert f"of its folds {percent(found.mean)} (95 % interval {interval(found.interval)}) |" in card
    assert "the scores prove nothing" in card
    assert "prove nothing" not in render_card(fold, "onnx", tmp_path / "model.onnx", (8, 8), "checked")
    about = {}
    for run in (final, fold):
        with Predictor(SavedRun(run.folder, run.config, None, run.class_names, run.result)) as predictor:
            about[run.folder.name] = predictor.about() | {"input": {"max_bytes": 1}, "kbaseline": "1"}
    assert (about["final"]["accuracy"]["valid"], about["final"]["folds"]) == (None, found.mean)
    assert (about["fold-1"]["accuracy"]["valid"]["plain"], about["fold-1"]["folds"]) == (0.62, None)
    pages = [Page("serve", "blob:").response(about=one, address="").body.decode() for one in about.values()]
    assert f'predicted <span class="whole">{percent(found.mean)}</span> of the others' in pages[0]
    assert "It predicted" in pages[1]
    assert "It predicted" not in pages[0]


def folds(*found: tuple[str, float | None]) -> list:
    return [SimpleNamespace(kept_step=SimpleNamespace(name=name), dropped_tta=tta) for name, tta in found]


def test_the_final_model_is_what_most_folds_kept():
    """Behaviour: it cannot choose for itself, because it has no images to choose on."""
    config = load_config("light")
    as_it_is = folds(("finetune", None), ("finetune", 0.9), ("linear probe", None))
    assert as_chosen(config, as_it_is) == config
    trained = as_chosen(config, folds(("linear probe", 0.9), ("finetune", 0.8), ("finetune", None)))
    assert (trained.stages, trained.tta) == (config.stages, None)
    probes = as_chosen(config, folds(("linear probe", None), ("linear probe", None), ("finetune", None)))
    assert [(stage.name, stage.init, stage.epochs) for stage in probes.stages] == [("head", "probe", 0)]
    equals = as_chosen(config, folds(("finetune", None), ("head", None)))
    assert [stage.name for stage in equals.stages] == ["head"]
    last = config.model_copy(update={"keep": "last"})
    assert as_chosen(last, folds(("linear probe", 0.9))) == last
    assert load_config(yaml.safe_load(probes.to_yaml())) == probes


def test_a_stop_says_how_to_continue_and_nothing_is_run_twice(trained, tmp_path):
    seen, run = trained
    run.stop = 2
    with pytest.raises(KeyboardInterrupt, match=r"fit --resume .*all"):
        repeats.run_seeds({"data": {"source": "digits"}}, 3, out=tmp_path / "all")
    run.stop = 0
    assert repeats.is_repeats(tmp_path / "all")
    found = repeats.resume_repeats(tmp_path / "all")
    assert [config.seed for config in seen] == [42, 43, 43, 44]
    assert len(found.accuracies) == 3


def test_a_resume_from_another_folder_reads_the_same_images(trained, tmp_path, monkeypatch):
    """Invariant: runs that were not begun have the images of those that were, wherever the resume starts."""
    seen, run = trained
    for place in ("here", "there"):
        (tmp_path / place / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    run.stop = 2
    with pytest.raises(KeyboardInterrupt):
        repeats.run_seeds({"data": {"source": "folder:photos"}}, 3, out=tmp_path / "all")
    run.stop = 0
    monkeypatch.chdir(tmp_path / "there")
    repeats.resume_repeats(tmp_path / "all")
    assert {config.data.source for config in seen} == {f"folder:{tmp_path / 'here' / 'photos'}"}


def test_images_that_moved_are_read_from_their_new_place(trained, tmp_path):
    seen, run = trained
    run.stop = 2
    with pytest.raises(KeyboardInterrupt):
        repeats.run_seeds({"data": {"source": "digits"}}, 2, out=tmp_path / "all")
    run.stop = 0
    moved = {"data.source": "folder:moved"}
    repeats.resume_repeats(tmp_path / "all", **moved)
    assert run.resumed == [("seed-42", moved)]
    assert seen[-1].data.source == "folder:moved"
    with pytest.raises(InputError, match=r"holds data\.size; only .*data\.source"):
        repeats.resume_repeats(tmp_path / "all", **{"data.size": 64})


def test_one_of_several_processes_repeats_nothing(tmp_path):
    """Golden: it is refused before there is a folder."""
    several = {"coordinator": "localhost:1234", "num_processes": 2, "process_id": 0}
    with pytest.raises(InputError, match="seeds: repeats the run of one process"):
        repeats.run_seeds({"data": {"source": "digits"}, "runtime": several}, 2, out=tmp_path / "all")
    assert not list(tmp_path.iterdir())


def test_the_interval_adds_the_doubt_of_seeds_to_that_of_images():
    """By simulation: of 400 experiments with images and seeds drawn anew, 95 in 100 intervals hold the true mean."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        ease = rng.beta(4, 1, 300)
        runs = []
        for _ in range(8):
            right = rng.random(300) < np.clip(ease + rng.normal(0, 0.03), 0, 1)
            p = np.where(right, 0.9, 0.1)
            # What the interval reads of an evaluation; a real one also fits a temperature, 3,200 times.
            of_run = {"accuracy": right.mean(), "probabilities": np.stack([p, 1 - p], 1), "labels": np.zeros(300, int)}
            runs.append(SimpleNamespace(**of_run))
        low, high = repeats.seeds_interval(runs, paired=True)
        hits += low <= 0.797 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_images_of_other_seeds_are_not_paired(trained, tmp_path, monkeypatch):
    """Behaviour: a seed holds out images of its own, though with the same labels."""
    seen = []
    monkeypatch.setattr(repeats, "seeds_interval", lambda runs, paired: seen.append(paired) or (0.0, 1.0))
    for name, same in (("other", False), ("same", True)):
        monkeypatch.setattr(repeats, "same_images", lambda a, b, split, same=same: same and split == "valid")
        repeats.run_seeds({"data": {"source": "digits"}}, 2, out=tmp_path / name)
    assert seen == [False, True]


def test_a_fold_needs_as_many_images():
    with pytest.raises(ConfigError, match="k must be at most K"):
        load_config({"data": {"fold": [4, 3]}})
