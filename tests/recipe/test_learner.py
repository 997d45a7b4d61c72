"""The verbs on real digits, with a backbone small enough to train in seconds."""

import dataclasses
import io
import os
import random
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kbaseline import ImageData, Learner
from kbaseline.data.batches import ImageBatches
from kbaseline.devices.xla import explain_oom
from kbaseline.errors import ConfigError, DataError, InputError, RunError
from kbaseline.training.signals import Stopped

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData.from_source("digits", size=16, limit=640)


def learner(digits: ImageData, tiny_backbone: str, **config) -> Learner:
    return Learner(digits, tiny_backbone, config={"lr_find": {"steps": 30}, **config}, console=QUIET)


def weights(model: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


def test_the_articles_verbs_learn_digits(digits, tiny_backbone):
    """Find, fit, unfreeze, fit, tta in the article's order reach an accuracy that chance does not (invariant).

    The caller's random generators stay as they were.
    """
    drawn = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the caller's
    learn = learner(digits, tiny_backbone, transforms={"max_zoom": 1.0}, tta={"flip": False, "scale": 1.1})
    before = weights(learn.model)
    curve = learn.lr_find()
    assert all((a == b).all() for a, b in zip(before, weights(learn.model), strict=True))
    assert 1e-7 < curve.suggest() < 10
    learn.fit_one_cycle(4, max_lr=1e-2)
    learn.unfreeze()
    learn.fit_one_cycle(4, max_lr=slice(1e-3, 1e-2))
    result = learn.tta()
    assert result.plain.accuracy > 0.7
    assert result.plain.accuracy == pytest.approx(learn.history[-1]["accuracy"], abs=1e-6)
    assert result.helped == (result.tta.accuracy >= result.plain.accuracy)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn  # noqa: NPY002
    assert [card.lines[-1] for card in result.worst(2).cards] == [
        f"image {row['index']}" for row in result.tta.top_losses(2)
    ]
    assert [row["rate"] for row in learn.summary()] == pytest.approx([1e-3, np.sqrt(1e-3 * 1e-2), 1e-2])
    assert len(learn.history) == 8
    assert [row["stage"] for row in learn.applied][:: len(learn.applied) - 1] == ["one_cycle", "one_cycle"]


def test_lr_find_writes_its_curve_and_leaves_the_rates(digits, tiny_backbone, tmp_path: Path):
    """`lr_find(folder)` writes CSV and PNG; the model is left with a plain fit's rate, not the sweep's (golden)."""
    learn = learner(digits, tiny_backbone)
    learn.lr_find(tmp_path / "sweep")
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"lr_find.csv", "lr_find.png"}
    assert float(learn.model.optimizer.learning_rate) == pytest.approx(3e-3)


def test_only_a_backbone_with_weights_starts_frozen(digits, tiny_backbone):
    """As in fastai, random weights are trained at once (golden)."""
    assert learner(digits, tiny_backbone).frozen
    assert not Learner(digits, tiny_backbone, "none", console=QUIET).frozen


def test_tta_is_the_articles(digits, tiny_backbone, monkeypatch):
    """Eight views at scale 1.35, mirrored but for digits; 0.4 of the plain prediction, 0.6 of their mean (golden)."""
    asked = []

    def predict(model, images, *settings, **_):
        asked.append(settings)
        return (np.tile(row, (len(images), 1)).astype("float32") for row in np.eye(10)[:2])

    monkeypatch.setattr("kbaseline.runs.inference.tta_predict", predict)
    learn = learner(digits, tiny_backbone)
    result = learn.tta()
    np.testing.assert_allclose(result.probabilities, np.tile([0.4, 0.6] + [0] * 8, (len(digits.valid), 1)), rtol=1e-6)
    assert result.plain_probabilities[:, 0].all()
    learn.data = dataclasses.replace(digits, source="folder:photos")
    learn.tta()
    learner(digits, tiny_backbone, tta={"flip": True, "views": 4, "scale": 1.1}).tta()
    assert asked == [(8, None, 1.35, False), (8, None, 1.35, True), (4, None, 1.1, True)]


def test_the_seed_fixes_the_weights_and_the_finder_moves_nothing(digits, tiny_backbone):
    """Two runs with one seed end with the same bits, though one of them swept first; another's differ (determinism)."""
    ends = []
    for seed, find in ((1, False), (1, True), (2, False)):
        learn = learner(digits, tiny_backbone, seed=seed)
        if find:
            learn.lr_sweep()
        learn.fit_one_cycle(1, 1e-2)
        ends.append(weights(learn.model))
    assert all((a == b).all() for a, b in zip(*ends[:2], strict=True))
    assert not all((a == b).all() for a, b in zip(*ends[1:], strict=True))


def test_train_bn_false_leaves_the_body_alone(digits, tiny_backbone):
    """With `train_bn: false` no variable of a frozen body moves, and its groups may be empty (invariant).

    Unfrozen, its BatchNorm still stays as it was pretrained; random weights have nothing to keep.
    """
    learn = learner(digits, tiny_backbone, model={"train_bn": False})
    body = [keras.ops.convert_to_numpy(v).copy() for v in learn.model.get_layer("backbone").variables]
    learn.fit_one_cycle(1, slice(1e-3, 1e-2))
    after = [keras.ops.convert_to_numpy(v) for v in learn.model.get_layer("backbone").variables]
    assert all((a == b).all() for a, b in zip(body, after, strict=True))
    learn.unfreeze()
    names = [v.path.split("/")[-1] for v in learn.model.get_layer("backbone").trainable_variables]
    assert "kernel" in names
    assert "gamma" not in names
    scratch = Learner(digits, tiny_backbone, "none", config={"model": {"train_bn": False}}, console=QUIET)
    scratch.unfreeze()
    assert any(v.path.endswith("gamma") for v in scratch.model.get_layer("backbone").trainable_variables)


def test_of_few_photos_batchnorm_stays_and_that_is_said(tiny_backbone: str, tmp_path: Path) -> None:
    """Golden: the line, what trains, and the choice in the configuration; set by hand, nothing is said."""
    for number in range(8):
        path = tmp_path / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 30 * number, np.uint8)).save(path)
    photos = ImageData.from_source(f"folder:{tmp_path}", size=16, batch_size=2)
    console = Console(record=True, file=io.StringIO(), width=200)
    learn = Learner(photos, tiny_backbone, console=console)
    said = "BatchNorm stays as it was trained: 6 training images are fewer than 10,000 (model.train_bn: auto)"
    assert said in console.export_text()
    assert learn.config.model.train_bn is False
    assert not learn.model.get_layer("backbone").trainable_variables
    learn = Learner(photos, tiny_backbone, config={"model": {"train_bn": True}}, console=console)
    assert said not in console.export_text()
    assert learn.model.get_layer("backbone").trainable_variables


@pytest.mark.parametrize(("train_size", "header"), [(12, "head  2 epochs, at 12 pixels"), (16, "head  2 epochs")])
def test_training_at_another_size_is_said(digits: ImageData, tiny_backbone: str, train_size: int, header: str) -> None:
    """Golden: the stage's header names the size of the training images, if the network's own is larger."""
    console = Console(record=True, file=io.StringIO(), width=200)
    learn = Learner(digits, tiny_backbone, config={"transforms": {"train_size": train_size}}, console=console)
    learn.fit_one_cycle(2, max_lr=1e-2, title="head")
    assert header in console.export_text().splitlines()
    assert learn.tta().plain.accuracy == pytest.approx(learn.history[-1]["accuracy"], abs=1e-6)


def test_predict_gives_probabilities_of_uint8_images(digits, tiny_backbone):
    """`predict` gives rows that sum to one, the same whatever the batch size (invariant)."""
    learn = learner(digits, tiny_backbone)
    whole = learn.predict(digits.valid.images[:30])
    parts = learn.predict(digits.valid.images[:30], batch_size=7)
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_saved_model_predicts_the_same(digits, tiny_backbone, tmp_path: Path):
    """A saved learner loads with Keras alone and gives the same logits (invariant)."""
    learn = learner(digits, tiny_backbone)
    learn.fit(1, 1e-3)
    learn.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = digits.valid.images[:16]
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), learn.model.predict(images, verbose=0))


def test_a_callback_that_stops_training_ends_the_recorded_schedule(digits, tiny_backbone):
    """Golden: of four epochs two are trained and recorded, and the next fit goes on from there."""
    learn = learner(digits, tiny_backbone)
    steps = len(digits.train) // 64
    learn.callbacks.append(keras.callbacks.EarlyStopping("loss", min_delta=1e9))
    assert len(learn.fit_one_cycle(4, 1e-2)) == 2
    assert [row["step"] for row in learn.applied] == list(range(2 * steps))
    learn.callbacks.clear()
    learn.fit_one_cycle(1, 1e-2)
    assert [row["step"] for row in learn.applied] == list(range(3 * steps))
    # A new cycle, from its own start.
    assert learn.applied[2 * steps]["lr"] == pytest.approx(1e-2 / 25)
    assert learn.applied[2 * steps - 1]["lr"] > 1e-3


def test_a_loss_that_is_not_finite_is_an_error(digits, tiny_backbone):
    """Training that diverges stops with the rate and the remedy."""
    learn = learner(digits, tiny_backbone)
    learn.unfreeze()
    with pytest.raises(RunError, match=r"not finite .* lower max_lr"):
        learn.fit(3, 1e30)


def test_the_step_whose_loss_is_not_finite_is_named(digits, tiny_backbone):
    """Found without waiting at every step, it is the first one that a callback which does wait sees (reference)."""
    seen: list[float] = []

    class Waiting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    learn = learner(digits, tiny_backbone, data={"batch_size": 16})
    learn.unfreeze()
    batches = ImageBatches(digits.train.images, digits.train.labels, 16, shuffle=True, seed=42)
    learn._compile(learn._make_optimizer([1e12] * 3, 1e12, 0.9))
    learn.model.fit(batches, shuffle=False, verbose=0, callbacks=[Waiting()])
    step = 1 + next(index for index, loss in enumerate(seen) if not np.isfinite(loss))
    learn = learner(digits, tiny_backbone, data={"batch_size": 16})
    learn.unfreeze()
    with pytest.raises(
        RunError, match=rf"loss is not finite at step {step} of 120, after learning rates up to 1.0e\+12; lower"
    ):
        learn.fit(3, 1e12)
    assert 1 < step < 10


def test_memory_that_does_not_suffice_is_one_line():
    """XLA's own report of an array of 128 TiB becomes the batch size that was tried and what to set."""
    with pytest.raises(RunError, match=r"head: data.batch_size 64 does not fit .* set data.batch_size to 32 or less"):
        too_large()
    with pytest.raises(RuntimeError, match="another"), explain_oom("head", 64):
        raise RuntimeError("another")


def too_large() -> None:
    with explain_oom("head", 64):
        keras.ops.zeros(2**47, "uint8").block_until_ready()


def test_what_the_learner_refuses(digits, tiny_backbone):
    """A split there is none of, augmentation that was left out, an unknown key."""
    learn = learner(digits, tiny_backbone, tta=None)
    with pytest.raises(DataError, match=r"split 'test'.*train, valid"):
        learn.evaluate("test")
    with pytest.raises(InputError, match="tta"):
        learn.tta()
    with pytest.raises(ConfigError, match="model"):
        learner(digits, tiny_backbone, modle={})
    with pytest.raises(DataError, match=r"values must lie in 0-255; got 0-1"):
        learn.predict(np.full((2, 8, 8, 3), 0.5))
    with pytest.raises(DataError, match="there are none"):
        learn.predict(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="epochs must be at least 1"):
        learn.fit(0)


def test_a_run_whose_data_has_other_classes_is_not_loaded(finished_run):
    """The labels of other classes would be another network's: the classes of both are named."""
    run = finished_run("run")
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image))).save(run / "model.keras")
    with pytest.raises(
        DataError, match=r"source 'digits': its classes are '0', .*, but the run was trained on 'cat', 'dog'"
    ):
        Learner.load(run, console=QUIET)


class InterruptAt(keras.callbacks.Callback):
    """Interrupts, as a notebook's stop button does, in a step of the second epoch."""

    epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interruptible():
    """A process that SIGINT interrupts, also where a shell started the tests in the background and turned that off."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_fit_keeps_its_steps_and_says_so(digits, tiny_backbone):
    """Golden: the step is finished, the message counts what was trained, as do the rates; the next fit runs."""
    learn = learner(digits, tiny_backbone)
    per_epoch = len(learn._batches)
    learn.callbacks.append(InterruptAt())
    with pytest.raises(Stopped) as caught:
        learn.fit_one_cycle(3, 1e-2)
    done = per_epoch + 3
    message = f"one_cycle: the model keeps what it learned in {done} of {3 * per_epoch} steps"
    assert message in str(caught.value)
    assert str(caught.value).endswith("learn.history 1 of 3 epochs")
    assert caught.value._render_traceback_() == [str(caught.value)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(learn.history) == 1
    assert len(learn.applied) == done == int(learn.model.optimizer.iterations)
    learn.callbacks.clear()
    assert learn.fit(1, 1e-3)[0]["accuracy"] > 0.3


def test_a_fit_that_fails_before_its_first_step_leaves_the_weights(digits, tiny_backbone, monkeypatch):
    """Keras takes the values out of the variables before the first step, which is compiled for long (regression)."""
    learn = learner(digits, tiny_backbone)
    before = weights(learn.model)

    def impatient(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn.model, "make_train_function", lambda: setattr(learn.model, "train_function", impatient))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert all((a == b).all() for a, b in zip(before, weights(learn.model), strict=True))
