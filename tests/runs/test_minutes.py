"""The rule of `minutes`, from what networks cost to network, size and epochs; no clock but a written one is read."""

import io

import numpy as np
import pytest
from rich.console import Console

from kbaseline import resume_run, run_baseline
from kbaseline.cli import main
from kbaseline.config.load import load_config
from kbaseline.data.prepare import Survey
from kbaseline.errors import InputError
from kbaseline.runs import timing
from kbaseline.runs.minutes import (
    MULTIPLY_ADDS,
    PHOTOS,
    SMALL,
    Choice,
    Cost,
    Plan,
    Work,
    arithmetic,
    candidates,
    first_that_fits,
    plan_lines,
    planned_config,
    seconds_needed,
)
from kbaseline.runs.timing import TRAINING, Planner, StepTimer

WORK = Work(train=1600, valid=400, views=8)
LITE2, LITE0, LOW, LOWEST = PHOTOS


def costs(predicting: float, slowdown: float = 10):
    """What each row costs where lite0 at 256 pixels predicts an image in so many seconds."""

    def cost(row: Choice) -> Cost:
        one = predicting * arithmetic(row) / arithmetic(LITE0)
        return Cost(building=2, compiling=3, predicting=one, compiling_step=10, training=slowdown * one)

    return cost


@pytest.mark.parametrize(
    ("predicting", "minutes", "choice", "epochs", "tta"),
    [
        (1 / 6000, 10, LITE2, 10, True),  # a GPU: the best, and no more epochs than enough
        (1 / 60, 70, LITE2, 8, True),  # 262 s, and 447 s an epoch
        (1 / 60, 18.5, LITE2, 2, False),  # without augmentation, which takes 93 s
        (1 / 60, 17, LITE0, 3, True),  # 181 s, and 273 s an epoch
        (1 / 60, 12, LITE0, 2, False),
        (1 / 60, 6, LITE2, 0, True),  # no fine-tuning fits: the probe of the best
        (1 / 60, 2, LITE0, 0, False),
        (1 / 60, 1.5, LOW, 0, False),
        (1 / 60, 1, LOWEST, 0, False),  # nothing fits: the cheapest
    ],
)
def test_the_best_row_that_fits(predicting, minutes, choice, epochs, tta):
    """Golden: what a machine that predicts so fast does in so many minutes."""
    found = first_that_fits(PHOTOS, costs(predicting), WORK, 60 * minutes, minutes, 10)
    assert (found.choice, found.epochs, found.tta) == (choice, epochs, tta)
    assert found.seconds == seconds_needed(costs(predicting)(choice), WORK, epochs, tta)


@pytest.mark.parametrize("minutes", [3, 5, 10, 30, 60, 120])
def test_a_plan_fits_and_uses_its_time(minutes):
    """Invariant: a plan ends in time, and one epoch more would not, unless it has the most."""
    found = first_that_fits(PHOTOS, costs(1 / 60), WORK, 60 * minutes, minutes, 10)
    assert found.seconds <= 60 * minutes
    if 0 < found.epochs < 10:
        assert seconds_needed(costs(1 / 60)(found.choice), WORK, found.epochs + 1, found.tta) > 60 * minutes


def test_every_pass_and_program_counts():
    """Reference: by hand, with numbers that tell their parts."""
    cost = Cost(building=1000, compiling=100_000, predicting=1, compiling_step=1e7, training=10)
    work = Work(train=50, valid=10, test=5, views=3, decoding=0.5, swept=7)
    probe = 65 * 0.5 + 2000 + 500_000 + 15 + 65 + 0.003 * 50 + (15 + 60)
    assert seconds_needed(cost, work, 0, False) == pytest.approx(probe)
    assert seconds_needed(cost, work, 0, True) == pytest.approx(probe + 45 + 200_000)
    assert seconds_needed(cost, work, 2, False) == pytest.approx(probe + 1e7 + 2 * (500 + 10) + 70)


def test_the_probe_stands_after_a_tenth():
    """With a slow pass over many images that leaves more than a tenth to wait, a cheaper row is fine-tuned."""
    fast = Cost(building=0, compiling=0, predicting=1 / 10, compiling_step=0, training=1 / 100)
    rows = [Choice("a.keras", 100), Choice("a.keras", 50)]
    half = {rows[0]: fast, rows[1]: fast.scaled(0.25)}
    found = first_that_fits(rows, half.__getitem__, Work(train=1000, valid=100), 600, 10, 10)
    assert (found.choice, found.epochs) == (rows[1], 10)


def test_the_rows_for_a_source_and_what_the_user_says():
    """Small images have sizes of their own; a network without weights is left out; the user's are kept."""

    def rows(side: int = 500, here=lambda name: True, **changes) -> list[Choice]:
        return candidates(load_config({"minutes": 5}, changes), side, here)

    assert rows() == list(PHOTOS)
    assert rows(64) == list(SMALL)
    assert rows(65) == list(PHOTOS)
    assert rows(here=lambda name: name == "efficientnet_lite0") == [LITE0, LOW, LOWEST]
    assert rows(**{"data.size": 96}) == [Choice("efficientnet_lite2", 96), Choice("efficientnet_lite0", 96)]
    own = rows(here=lambda name: False, **{"model.backbone": "resnet50"})
    assert [(row.size, row.finetuned) for row in own] == [(256, True), (160, False), (128, False)]
    assert {row.backbone for row in own} == {"resnet50"}
    assert rows(**{"model.backbone": "resnet50", "data.size": 300}) == [Choice("resnet50", 300)]
    assert set(MULTIPLY_ADDS) == {row.backbone for row in (*PHOTOS, *SMALL)}


def test_minutes_is_light_under_what_the_user_says():
    """The configuration is light's with the user's own over it; stages of one's own and several runs are refused."""
    light, config = load_config("light"), load_config({"tta": {"views": 4}}, {"minutes": 5, "data.source": "digits"})
    assert config.stages == light.stages == load_config("light", {"minutes": 5}).stages
    assert (config.tta.views, config.tta.scale, config.keep) == (4, light.tta.scale, "best")
    assert load_config(config) == config
    for changes, said in (
        ({"stages.1.epochs": 5}, "minutes 5: chooses the stages itself; leave out stages"),
        ({"stages": [{"name": "all", "freeze": False, "epochs": 1}]}, "leave out stages"),
        ({"data.batch_size": "auto"}, "needs data.batch_size as a number"),
        ({"minutes": 0}, "minutes: Input should be greater than 0"),
    ):
        with pytest.raises(InputError, match=said):
            load_config(None, {"minutes": 5, **changes})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--resume", "run"], "--resume: the run folder holds the configuration"),
        (["--seeds", "2"], "minutes 5: plans one run"),
        (["--set", "stages.0.epochs=3"], "minutes 5: chooses the stages itself"),
    ],
)
def test_what_does_not_go_with_minutes(options, said, tmp_path, monkeypatch):
    """One line and exit code 2, before anything is written."""
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["fit", "--minutes", "5", "--data", "digits", *options])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_the_plan_is_the_whole_configuration():
    """What is written needs no timing: no minutes, the network, the size, the epochs; a probe alone has one stage."""
    config = load_config({"minutes": 5})
    found = planned_config(config, Plan(LITE2, 4, True, 100))
    assert (found.minutes, found.model.backbone, found.data.size) == (None, "efficientnet_lite2", 260)
    assert [stage.epochs for stage in found.stages] == [0, 4]
    assert found.stages[1].max_lr == config.stages[1].max_lr
    alone = planned_config(config, Plan(LOW, 0, False, 100))
    assert [stage.name for stage in alone.stages] == [config.stages[0].name]
    assert alone.tta is None
    assert load_config(alone.model_dump(mode="json")) == alone


def test_what_is_said_before_training():
    """The choice, what was timed, and why nothing better; a time too short for anything says so."""
    cost = Cost(1, 1, 1 / 60, 1, 1 / 5)
    said = plan_lines(Plan(LITE0, 3, False, 500), cost, WORK, [LITE2], 0, 60, 10)
    assert said == [
        "10 minutes: efficientnet_lite0 at 256 pixels, a linear probe, then 3 epochs of fine-tuning, "
        "no test-time augmentation; planned to end after 09:20",
        "timed here: 60 images/s predicted, 5 trained; the probe takes a pass over 2,000 images, an epoch 05:27",
        "better, but without the time for 2 epochs: efficientnet_lite2 at 260 pixels",
    ]
    alone = plan_lines(Plan(LITE2, 0, True, 500), cost, WORK, [], 700, 60, 10)
    assert alone[-1] == "fine-tuning for 2 epochs would take about 12 minutes"
    assert plan_lines(Plan(LOWEST, 0, False, 500), cost, WORK, [], 700, 60, 5)[-1].startswith(
        "not even the cheapest fits"
    )


def test_steps_are_timed_until_enough():
    """The step timer stops after two seconds of steps, the first, which compiles, aside; or after twenty."""
    for each, count in ((1.5, 3), (0.01, 21)):
        clock = iter(np.arange(1, 50) * each)
        timer = StepTimer(clock=lambda ticks=clock: next(ticks))
        timer.set_model(type("Model", (), {"stop_training": False})())
        while not timer.model.stop_training:
            timer.on_train_batch_end(0, {"loss": 1.0})
        assert len(timer.ends) == count


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch):
    """A planner whose clock moves only by timing: costs by row, and which rows were timed in full."""

    def planner(minutes: float, slowdown: float) -> tuple[Planner, list[Choice]]:
        clock, timed = [0.0], []

        class Written:
            def __init__(self, *_args) -> None:
                pass

            def prediction(self, row: Choice) -> Cost:
                clock[0] += 5
                return costs(1 / 60)(row)

            def training(self, row: Choice) -> Cost:
                clock[0] += 60
                timed.append(row)
                return costs(1 / 60, slowdown)(row)

        counts = {"train": WORK.train, "valid": WORK.valid}
        monkeypatch.setattr(timing, "survey", lambda *_: Survey(counts, ("a", "b"), (224, 224), False, 0.01))
        monkeypatch.setattr(timing, "Timer", Written)
        config = load_config({"minutes": minutes})
        return Planner(config, Console(quiet=True), lambda: None, now=lambda: clock[0]), timed

    return planner


def test_timing_decides_and_not_the_guess(written):
    """A row that is slower than guessed is left for the next, and what is not worth compiling is not timed."""
    found, timed = written(30, TRAINING)
    assert timed == [LITE2]
    assert found.config.model.backbone == "efficientnet_lite2"
    found, timed = written(30, 4.2 * TRAINING)
    assert timed == [LITE2, LITE0]
    assert found.config.data.size == 256
    found, timed = written(5, TRAINING)
    assert timed == []
    assert len(found.config.stages) == 1


def test_a_planned_run(tiny_backbone, tmp_path, monkeypatch):
    """From the command's configuration to a finished run; its folder repeats and resumes it without timing (smoke)."""
    screen, out = io.StringIO(), tmp_path / "run"
    data = {"source": "digits", "size": 8, "limit": 171, "limit_valid": 83}
    settings = {"minutes": 60, "data": data, "model.backbone": tiny_backbone, "tta": None}
    result = run_baseline(out=out, console=Console(file=screen, width=200), **settings)
    said = screen.getvalue()
    assert f"60 minutes: {tiny_backbone} at 8 pixels, a linear probe, then 10 epochs" in said
    light = load_config("light").stages
    assert said.index("timed here") < said.index(f"{light[-1].name}  10 epochs")
    assert said.splitlines()[-1].endswith("of 1:00:00")
    assert result.seconds["planning"] > 0
    assert list(result.stages) == [light[0].name, light[-1].name]
    monkeypatch.setattr(timing, "survey", lambda *_: pytest.fail("timed again"))
    again = run_baseline(out / "config.yaml", out=tmp_path / "again", console=Console(quiet=True))
    assert again.stages == result.stages
    with np.load(out / "predictions.npz") as mine, np.load(again.folder / "predictions.npz") as other:
        np.testing.assert_array_equal(mine["valid_plain_probabilities"], other["valid_plain_probabilities"])
    assert resume_run(out, console=Console(quiet=True)).stages == result.stages
