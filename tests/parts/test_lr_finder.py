"""The learning-rate finder: rates applied, losses recorded, where it stops, suggestions, and the restored model."""

import math
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from kbaseline.errors import InputError, LRFinderError
from kbaseline.lr_finder import LRCurve, LRFinder
from kbaseline.optimizer import LayerwiseAdamW
from kbaseline.schedules import OneCycle

# --- what it applied and saw ------------------------------------------------------------------------------------------


class Increments(keras.callbacks.Callback):
    """How far one weight moved at each step; reset to zero each time, so that small steps keep their precision."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.model.jax_state_sync()
        weight = self.model.trainable_variables[0]
        self.moved.append(-float(np.array(weight)[0, 0]))
        weight.assign([[0.0]])


def one_weight(loss: Callable, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential([layers.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizer, loss)
    return model


def slope_of_one(y: object, p: object) -> object:
    """One plus the weight: the gradient is 1, and the loss is 1 while the weight is reset."""
    del y
    return keras.ops.mean(p, axis=-1) + 1


def given_losses(y: object, p: object) -> object:
    """The target itself is the loss."""
    return keras.ops.mean(y + 0 * p, axis=-1)


def sweep(losses: list[float], steps: int | None = None, **options: float) -> LRCurve:
    """The curve of a fit whose batches have these losses."""
    model = one_weight(given_losses, keras.optimizers.SGD(0.1))
    finder = LRFinder(steps=steps or len(losses), **options)
    y = np.array(losses, "float32")[:, None]
    model.fit(np.ones_like(y), y, batch_size=1, shuffle=False, verbose=0, callbacks=[finder])
    return finder.curve


def test_the_rates_applied_are_the_sweep() -> None:
    """Golden: over three epochs the compiled step really moves the weight by 1e-7 * 1e8 ** (i / 100), i = 0..99."""
    model = one_weight(slope_of_one, keras.optimizers.SGD(0.5))
    finder, increments = LRFinder(), Increments()
    x = np.ones((40, 1))
    model.fit(x, x, batch_size=1, epochs=10, verbose=0, callbacks=[increments, finder])
    expected = [1e-7 * 1e8 ** (i / 100) for i in range(100)]
    np.testing.assert_allclose(increments.moved, expected, rtol=1e-5)
    np.testing.assert_allclose(finder.curve.lrs, expected, rtol=1e-12)
    assert finder.curve.lrs[-1] == pytest.approx(8.3176, rel=1e-4)
    np.testing.assert_array_equal(finder.curve.losses, np.ones(100))


def test_the_rates_applied_when_gradients_are_accumulated() -> None:
    """Golden: after three batches, of which two made an update, step i of the sweep still has the sweep's rate.

    The sweep's first batch completes the pair that was begun.
    """
    model = one_weight(slope_of_one, keras.optimizers.SGD(0.5, gradient_accumulation_steps=2))
    finder, increments = LRFinder(1e-3, 1.0, steps=6), Increments()
    x = np.ones((3, 1))
    model.fit(x, x, batch_size=1, verbose=0)
    model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=[increments, finder])
    expected = [1e-3 * 1e3 ** (i / 6) if i % 2 == 0 else 0.0 for i in range(6)]
    # The first pair began where the weight was not zero.
    np.testing.assert_allclose(np.abs(increments.moved[1:]), expected[1:], rtol=1e-5)


def test_smoothing_golden() -> None:
    """Golden: losses 2, 1, 3, 0.5 are smoothed to 2, 1.49495, 2.00680, 1.61861."""
    curve = sweep([2, 1, 3, 0.5])
    np.testing.assert_allclose(curve.losses, [2, 1, 3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(curve.smoothed, [2, 1.49495, 2.00680, 1.61861], atol=5e-6)


def test_losses_are_each_batchs_own(rng: np.random.Generator) -> None:
    """Reference: every loss is its own batch's, with an uneven last batch and across epochs; SGD by hand in numpy."""
    x, y = rng.normal(size=(10, 2)), rng.normal(size=(10, 1))
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1, use_bias=False, name="dense")])
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    weight = np.array(model.get_weights()[0], np.float64)
    finder = LRFinder(1e-3, 0.5, steps=8)
    model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=[finder])
    expected = []
    for i in range(8):
        part = slice(4 * (i % 3), min(4 * (i % 3) + 4, 10))
        error = x[part] @ weight - y[part]
        expected.append(float(np.mean(error**2)))
        weight = weight - 1e-3 * 500 ** (i / 8) * 2 * x[part].T @ error / len(error)
    np.testing.assert_allclose(finder.curve.losses, expected, rtol=1e-4)


def smooth(losses: list[float]) -> list[float]:
    """fastai's bias-corrected moving average."""
    average, found = 0.0, []
    for n, loss in enumerate(losses, 1):
        average = 0.98 * average + 0.02 * loss
        found.append(average / (1 - 0.98**n))
    return found


def test_it_stops_at_four_times_the_best() -> None:
    """Reference: the sweep ends at the first step whose smoothed loss exceeds four times the best smoothed one."""
    losses = [2.0] * 5 + [1.0] * 10 + [20.0] * 20
    expected = smooth(losses)
    stop = next(i for i, value in enumerate(expected) if value > 4 * min(expected[: i + 1]))
    assert 15 < stop < 30
    curve = sweep(losses)
    assert len(curve.losses) == stop + 1
    np.testing.assert_allclose(curve.smoothed, expected[: stop + 1], rtol=1e-5)
    assert len(sweep(losses, stop_factor=1e6).losses) == 35


def test_a_loss_below_zero_diverges_only_when_it_rises() -> None:
    """Reference: a cosine similarity that falls to -0.9 is swept to the end; one that explodes there is stopped."""
    falling = list(np.linspace(0.1, -0.9, 30))
    assert len(sweep(falling).losses) == 30
    assert len(sweep(falling + [-0.5] * 5).losses) == 35
    exploding = falling + [5.0] * 20
    expected = smooth(exploding)
    best = min(expected[4:30])
    assert best < -0.3
    stop = next(i for i, value in enumerate(expected) if value > best + 3 * max(-best, 0.1))
    assert 32 < stop < 48
    assert len(sweep(exploding).losses) == stop + 1


def test_an_easy_first_batch_is_no_best_loss() -> None:
    """Losses 0.05, 0.30, 0.33, ... of a nearly trained model: the sweep goes on, though 0.231 is over 4 * 0.05.

    What diverges after the first tenth is still stopped.
    """
    usual = [0.05] + [0.30, 0.33] * 15
    assert smooth(usual)[2] > 4 * usual[0]
    assert len(sweep(usual).losses) == 31
    assert len(sweep(usual + [40.0] * 10).losses) == 32


def test_a_finite_loss_leaves_enough_points() -> None:
    """Golden: 0.058, 0.06, then 0.30: short sweeps run on until 1 + 6 + 5 steps are done, enough for a suggestion.

    fastai's rule alone would end them at step 8.
    """
    easy = [0.058, 0.06] + [0.30, 0.29, 0.31] * 6
    expected = smooth(easy)
    assert next(i for i, value in enumerate(expected, 1) if value > 4 * min(expected[1:i] or [1])) == 8
    assert len(sweep(easy[:9]).losses) == 9
    curve = sweep(easy[:19])
    assert len(curve.losses) == 12
    assert len(LRCurve(curve.lrs, curve.smoothed, -curve.smoothed, 19).suggestions()) == 4


def test_it_stops_at_the_first_nan() -> None:
    """Golden: a loss that is not finite ends the sweep."""
    assert len(sweep([2, 1, math.nan, 1, 1]).losses) == 3
    assert len(sweep([2, 1, 1, math.inf, 1]).losses) == 4


# --- what it suggests -------------------------------------------------------------------------------------------------


def fastai_valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """fastai v2's `valley`, its loops kept."""
    n = len(losses)
    lds, max_start, max_end = [1] * n, 0, 0
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and lds[i] < lds[j] + 1:
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return lrs[max_start + int(sections) + int(sections / 2)]


def fastai_slide(lrs: np.ndarray, losses: np.ndarray) -> float:
    """fastai v2's `slide`."""
    slope = [losses[1] - losses[0], *((losses[2:] - losses[:-2]) / 2), losses[-1] - losses[-2]]
    r, answer = -1, lrs[-16]
    while r - 15 >= -len(losses) and abs(slope[r] - slope[r - 15]) > 0.005:
        answer = lrs[r - 15]
        r -= 1
    return answer


def fastai_steep(lrs: np.ndarray, losses: np.ndarray) -> float:
    """fastai v2's `steep`: the left end of the steepest piece."""
    slopes = [(losses[i + 1] - losses[i]) / math.log(lrs[i + 1] / lrs[i]) for i in range(len(losses) - 1)]
    return lrs[slopes.index(min(slopes))]


def fastai_minimum(lrs: np.ndarray, losses: np.ndarray) -> float:
    """fastai v2's `minimum`."""
    return lrs[list(losses).index(min(losses))] / 10


LRS = 1e-7 * 1e8 ** (np.arange(100) / 100)


def curve_of(smoothed: np.ndarray) -> LRCurve:
    smoothed = np.asarray(smoothed, float)
    return LRCurve(LRS[: len(smoothed)], smoothed, smoothed, 100)


def lines(*points: tuple[int, float]) -> np.ndarray:
    """A curve of straight pieces through (step, loss)."""
    steps, losses = zip(*points, strict=True)
    return np.interp(np.arange(steps[-1] + 1), steps, losses)


def test_suggestions_golden() -> None:
    """Golden: flat to step 40, falling to 70, exploding after: each rule's answer, worked out by hand.

    valley: 31 points strictly fall and end at 70, so it starts at 39 and 39 + int(31 / 3) + int(31 / 6) is step 54.
    minimum: a tenth of step 70's rate. steep: the piece made steepest, at 55.
    """
    losses = lines((0, 2.0), (40, 2.0), (55, 1.7), (56, 1.4), (70, 1.2), (80, 2.5), (99, 6.0))
    curve = curve_of(losses)
    assert curve.suggest("valley") == pytest.approx(LRS[54])
    assert curve.suggest() == curve.suggest("valley")
    assert curve.suggest("minimum") == pytest.approx(LRS[70] / 10)
    assert curve.suggest("steep") == pytest.approx(LRS[55])


def test_slide_golden() -> None:
    """Golden: slide walks left while the slopes 15 steps apart differ, and stops where both are flat alike."""
    losses = lines((0, 2.0), (60, 2.0), (80, 1.0), (99, 1.0))
    # Of the kept steps 10..94 the pair (94, 79) differs by slope, and so on down to (81, 66); (80, 65) still does, by
    # the corner's half slope; the pair (79, 64) falls alike on both sides, so the answer is step 65.
    assert curve_of(losses).suggest("slide") == pytest.approx(LRS[65])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("rule", "reference"),
    [("valley", fastai_valley), ("slide", fastai_slide), ("steep", fastai_steep), ("minimum", fastai_minimum)],
)
def test_rules_are_fastais(seed: int, rule: str, reference: Callable) -> None:
    """Reference: on noisy valleys that stop early or late each rule answers what fastai's does, trimmed as fastai's."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(40, 101))
    bottom = rng.uniform(25, 80)
    losses = 2 + 0.02 * rng.normal(size=count) + 1e-3 * (np.arange(count) - bottom) ** 2 * rng.uniform(0.1, 1)
    expected = reference(LRS[10 : count - 5], losses[10 : count - 5])
    assert curve_of(losses).suggest(rule) == pytest.approx(expected, rel=1e-12)


def test_losses_after_the_first_nan_are_left_out() -> None:
    """Reference: the curve is cut at its first loss that is not finite."""
    losses = lines((0, 2.0), (30, 2.0), (60, 1.0), (99, 0.1))
    losses[65] = math.nan
    assert curve_of(losses).suggest("minimum") == pytest.approx(LRS[64] / 10)


def test_every_rule_answers_within_the_sweep() -> None:
    """Invariant: all four suggestions are rates between the sweep's first (a tenth of it for minimum) and last."""
    found = curve_of(lines((0, 2.0), (40, 2.0), (70, 1.0), (99, 9.0))).suggestions()
    assert set(found) == {"valley", "steep", "slide", "minimum"}
    assert all(1e-8 <= rate <= 10 for rate in found.values())


@pytest.mark.parametrize(
    ("smoothed", "said"),
    [
        (np.linspace(2, 1, 20), "5 usable points of 20 steps, but 6 are needed"),
        (np.full(100, math.nan), "0 usable points of 100"),
        (np.linspace(1, 3, 100), "the loss never fell"),
        (np.ones(100), "the loss never fell"),
        (np.linspace(2, 1, 3), "0 usable points of 3"),
    ],
)
def test_a_curve_that_shows_nothing_is_an_error(smoothed: np.ndarray, said: str) -> None:
    """Golden: too few points, nothing finite, or a loss that never falls is an error, never None."""
    with pytest.raises(LRFinderError, match=said):
        curve_of(smoothed).suggest()
    with pytest.raises(LRFinderError, match=said):
        curve_of(smoothed).suggestions()


def test_words_for_misuse() -> None:
    """Golden: an unknown rule gets a suggestion; a finder that has not run has no curve; rates must rise."""
    with pytest.raises(InputError, match=r"rule 'vally': must be one of .*Did you mean 'valley'"):
        curve_of(np.linspace(2, 1, 100)).suggest("vally")
    with pytest.raises(LRFinderError, match="no curve yet"):
        _ = LRFinder().curve
    assert not hasattr(LRFinder(), "curve")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"start_lr": 1.0, "end_lr": 0.1}, "start_lr must be below end_lr"),
        ({"start_lr": "auto"}, "start_lr must be a positive number; got 'auto'"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1; got 2.5"),
        ({"beta": 2}, r"beta must be in \[0, 1\); got 2"),
        ({"beta": math.nan}, r"beta must be in \[0, 1\); got nan"),
        ({"stop_factor": 1}, "stop_factor must be above 1; got 1"),
        ({"stop_factor": math.nan}, "stop_factor must be above 1; got nan"),
    ],
)
def test_values_that_are_forbidden_are_errors(arguments: dict, said: str) -> None:
    """Golden: what the docstring forbids is refused with the rule."""
    with pytest.raises(InputError, match=said):
        LRFinder(**arguments)


def test_rows_are_the_curve() -> None:
    """Golden: one row per step, for the CSV file."""
    curve = LRCurve(np.array([1e-3, 1e-2]), np.array([2.0, 1.0]), np.array([2.0, 1.5]), 2)
    assert curve.rows()[1] == {"step": 1, "learning_rate": 1e-2, "loss": 1.0, "smoothed_loss": 1.5}


# --- no trace ---------------------------------------------------------------------------------------------------------


def cycling() -> LayerwiseAdamW:
    cycle = OneCycle(0.02, 40)
    return LayerwiseAdamW(cycle, [["early", "norm"], ["head"]], [0.1, 1.0], beta_1=cycle.momentum())


OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam-schedule": lambda: keras.optimizers.Adam(OneCycle(0.01, 40)),
    "sgd-momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "layerwise": cycling,
}


def noisy_network(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Dense, BatchNorm with its statistics, Dropout with its seed."""
    initializer = keras.initializers.RandomNormal(seed=1)
    model = keras.Sequential(
        [
            layers.Input((3,)),
            layers.Dense(4, name="early", kernel_initializer=initializer),
            layers.BatchNormalization(momentum=0.5, name="norm"),
            layers.Dropout(0.3, seed=5),
            layers.Dense(2, name="head", kernel_initializer=keras.initializers.RandomNormal(seed=2)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


X = np.random.default_rng(1).normal(size=(12, 3)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


def fit(model: keras.Model, epochs: int = 1, *callbacks: keras.callbacks.Callback) -> list[float]:
    history = model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return history.history["loss"]


def everything(model: keras.Model) -> dict[str, np.ndarray]:
    """Weights, BatchNorm statistics, seeds, optimizer state and rate, each as it is."""
    owned = [*model.variables, *(model.optimizer.variables if model.optimizer.built else [])]
    return {f"{i} {variable.path}": np.array(variable) for i, variable in enumerate(owned)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    # Keras gives the layers of the second model other numbers, so variables are matched by order.
    for (name, new), old in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_array_equal(new, old, err_msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_leaves_no_trace(name: str) -> None:
    """Invariant: a sweep restores everything bit for bit and does not affect any later fit.

    Before any fit and again after one: weights, BatchNorm statistics, seeds, optimizer state and rate.
    """
    model, control = noisy_network(OPTIMIZERS[name]()), noisy_network(OPTIMIZERS[name]())
    optimizer = model.optimizer
    for epochs, steps_before in ((1, 0), (2, 3)):
        before = everything(model)
        assert any("seed" in key for key in before)
        assert any("moving_variance" in key for key in before)
        finder = LRFinder(1e-5, 1.0, steps=10)
        fit(model, 4, finder)
        assert len(finder.curve.losses) == 10
        assert model.optimizer is optimizer
        # A first fit adds the optimizer's own variables.
        assert_same(dict(list(everything(model).items())[: len(before)]), before)
        assert int(optimizer.iterations) == steps_before
        assert fit(model, epochs) == fit(control, epochs)
        assert_same(everything(model), everything(control))


class Breaks(keras.callbacks.Callback):
    """Stops the fit as a full disk or Ctrl-C does."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch == 2:
            raise KeyboardInterrupt


class Refuses(keras.callbacks.Callback):
    """Raises before the first step."""

    def on_train_begin(self, logs: object = None) -> None:
        raise RuntimeError("a callback of another kind")


def test_an_interrupted_fit_restores() -> None:
    """Invariant: Ctrl-C in a sweep leaves no trace, nor does the next sweep bring back what was before it."""
    model, control = noisy_network(cycling()), noisy_network(cycling())
    fit(model)
    fit(control)
    before = everything(model)
    finder = LRFinder(1e-3, 1.0, steps=10)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, finder, Breaks())
    assert_same(everything(model), before)
    assert fit(model) == fit(control)
    finder.restore()
    fit(model, 4, finder)
    assert_same(everything(model), everything(control))


@pytest.mark.parametrize("again", [LRFinder.restore, lambda finder: fit(finder.model, 4, finder)])
def test_a_sweep_that_did_not_begin_is_undone(again: Callable[[LRFinder], Any]) -> None:
    """Invariant: another callback raises in `on_train_begin`: `restore` restores, and so does the next sweep."""
    model = noisy_network(keras.optimizers.Adam(0.01))
    optimizer, before, finder = model.optimizer, everything(model), LRFinder(1e-3, 1.0, steps=10)
    with pytest.raises(RuntimeError, match="another kind"):
        fit(model, 4, finder, Refuses())
    assert model.optimizer is not optimizer
    again(finder)
    assert model.optimizer is optimizer
    assert_same(dict(list(everything(model).items())[: len(before)]), before)


def meddlers() -> list[keras.callbacks.Callback]:
    """They set weights at the end, and the rate after the first epoch and before every one."""
    return [
        keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=1e9),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 3.0),
        keras.callbacks.LambdaCallback(on_train_end=lambda logs: meddled.append(True)),
    ]


meddled: list[bool] = []


@pytest.mark.parametrize(
    "given",
    [
        lambda finder: [finder, *meddlers()],
        lambda finder: [*meddlers(), finder],
        lambda finder: [keras.callbacks.History(), *meddlers(), finder],
    ],
    ids=["first", "last", "after History"],
)
def test_other_callbacks_may_stand_before_or_after(given: Callable[[LRFinder], list]) -> None:
    """Invariant: EarlyStopping and callbacks that set the rate change neither the sweep nor the model after it."""
    model, control = noisy_network(keras.optimizers.Adam(0.01)), noisy_network(keras.optimizers.Adam(0.01))
    finder, alone = LRFinder(1e-5, 1.0, steps=10), LRFinder(1e-5, 1.0, steps=10)
    for one in (model, control):
        fit(one)
    before = everything(model)
    callbacks = given(finder)
    fit(model, 4, *callbacks)
    assert meddled
    fit(control, 4, alone)
    np.testing.assert_array_equal(finder.curve.losses, alone.curve.losses)
    assert model.history.history["loss"] == [float(np.float32(alone.curve.losses[step])) for step in (2, 5, 8, 9)]
    assert_same(everything(model), before)
    history = [one for one in callbacks if isinstance(one, keras.callbacks.History)]
    assert fit(model, 1, *history)[-1:] == fit(control)  # a History that is used again brings nothing back
    assert_same(everything(model), everything(control))


class Rows(keras.utils.PyDataset):
    """Three batches."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


@pytest.mark.parametrize("data", [{"x": X, "y": Y, "batch_size": 4}, {"x": Rows()}], ids=["arrays", "PyDataset"])
def test_global_generators_are_restored(data: dict[str, Any]) -> None:
    """Invariant: Keras shuffles arrays with `np.random` and a PyDataset with `random`; a sweep moves neither."""
    found = []
    for callbacks in ([LRFinder(1e-5, 1.0, steps=10)], []):
        model = noisy_network(keras.optimizers.Adam(0.01))
        keras.utils.set_random_seed(7)
        if callbacks:
            model.fit(**data, epochs=4, verbose=0, callbacks=callbacks)
        losses = model.fit(**data, epochs=2, verbose=0).history["loss"]
        found.append((losses, random.random(), np.random.random()))  # noqa: NPY002, S311
    assert found[0] == found[1]


def test_one_finder_can_be_used_twice() -> None:
    """Determinism: a second sweep with the same callback has the same curve."""
    model = noisy_network(keras.optimizers.Adam(0.01))
    finder = LRFinder(1e-5, 1.0, steps=8)
    fit(model, 3, finder)
    first = finder.curve
    fit(model, 3, finder)
    np.testing.assert_array_equal(finder.curve.losses, first.losses)


def test_hidden_steps_are_refused() -> None:
    """Golden: `steps_per_execution` above 1 hides steps, a wrapped optimizer hides its rate; both are errors."""
    model = noisy_network(keras.optimizers.Adam(0.01))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=2)
    with pytest.raises(InputError, match=r"steps_per_execution must be 1.*got 2"):
        fit(model, 1, LRFinder())
    wrapped = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    model.compile(wrapped, loss)
    with pytest.raises(InputError, match="give a plain optimizer"):
        fit(model, 1, LRFinder())
    assert model.optimizer is wrapped
