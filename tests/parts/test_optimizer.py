"""LayerwiseAdamW through `model.fit` against an AdamW written out in numpy, and its groups, saving and resuming."""

import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kbaseline.errors import InputError
from kbaseline.optimizer import LayerwiseAdamW, clone_optimizer, layer_group_lrs, optimizer_state
from kbaseline.schedules import ExponentialSweep, OneCycle

STEPS = 10
GROUPS = [["early"], ["norm"], ["head"]]
FACTORS = [0.01, 0.1, 1.0]
NAMES = ("early", "gamma", "beta", "head", "bias")
GROUP_OF = {"early": 0, "gamma": 1, "beta": 1, "head": 2, "bias": 2}


def network() -> keras.Model:
    """Dense -> BatchNorm -> Dense; no bias before BatchNorm, whose gradient would be rounding noise."""
    image = layers.Input((3,))
    x = layers.Dense(4, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="early")(image)
    x = layers.BatchNormalization(epsilon=1e-2, name="norm")(x)
    x = layers.Dense(2, kernel_initializer=keras.initializers.RandomNormal(seed=2), name="head")(x)
    return keras.Model(image, x, name="net")


def forward_loss(p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The same network's training loss, in float64 numpy."""
    hidden = x @ p["early"]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-2) * p["gamma"] + p["beta"]
    return float(np.mean((hidden @ p["head"] + p["bias"] - y) ** 2))


def gradients(p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Central differences in float64."""
    found = {}
    for name, values in p.items():
        slope = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            moved = {key: value.copy() for key, value in p.items()}
            moved[name][index] += 1e-5
            above = forward_loss(moved, x, y)
            moved[name][index] -= 2e-5
            slope[index] = (above - forward_loss(moved, x, y)) / 2e-5
        found[name] = slope
    return found


def cosine(start: float, peak: float, end: float, step: int) -> float:
    """fastai's cycle over STEPS steps, of which three rise."""
    if step < 3:
        return peak + (start - peak) / 2 * (1 + math.cos(math.pi * step / 3))
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 3)))


class NumpyAdamW:
    """PyTorch's AdamW, with fastai's rate per group and momentum per step."""

    def __init__(self, decay: float, beta_2: float, epsilon: float) -> None:
        self.decay, self.beta_2, self.epsilon = decay, beta_2, epsilon
        self.m: dict[str, np.ndarray] = {}
        self.v: dict[str, np.ndarray] = {}
        self.t = 0

    def step(self, p: dict[str, np.ndarray], g: dict[str, np.ndarray], rates: dict[str, float], beta_1: float) -> None:
        self.t += 1
        for name in p:
            p[name] = p[name] * (1 - rates[name] * self.decay)
            self.m[name] = beta_1 * self.m.get(name, 0) + (1 - beta_1) * g[name]
            self.v[name] = self.beta_2 * self.v.get(name, 0) + (1 - self.beta_2) * g[name] ** 2
            m_hat = self.m[name] / (1 - beta_1**self.t)
            v_hat = self.v[name] / (1 - self.beta_2**self.t)
            p[name] = p[name] - rates[name] * m_hat / (np.sqrt(v_hat) + self.epsilon)


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    values = [np.array(v, dtype=np.float64) for v in model.trainable_variables]
    return dict(zip(NAMES, values, strict=True))


class Record(keras.callbacks.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.model.jax_state_sync()
        self.steps.append(weights(self.model))


def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(6 * STEPS, 3)).astype("float32"), rng.normal(size=(6 * STEPS, 2)).astype("float32")


def train(optimizer: keras.optimizers.Optimizer, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, np.ndarray], Record]:
    model, record = network(), Record()
    model.compile(optimizer, "mse")
    before = weights(model)
    model.fit(x, y, batch_size=6, shuffle=False, verbose=0, callbacks=[record])
    return before, record


@pytest.mark.parametrize("epsilon", [1e-8, 0.05])
def test_every_variable_moves_as_numpy_says(rng: np.random.Generator, epsilon: float) -> None:
    """Reference: at each of ten one-cycle steps each variable moves as AdamW in numpy says at its group's rate.

    Decay first, on biases and BatchNorm too; epsilon outside the root and after correction; momentum of the cycle.
    """
    x, y = data(rng)
    cycle = OneCycle(0.1, STEPS)
    ours = LayerwiseAdamW(cycle, GROUPS, FACTORS, weight_decay=0.3, beta_1=cycle.momentum(), epsilon=epsilon)
    p, record = train(ours, x, y)
    reference = NumpyAdamW(0.3, 0.99, epsilon)
    for step, after in enumerate(record.steps):
        batch = slice(6 * step, 6 * step + 6)
        lr, beta_1 = cosine(0.1 / 25, 0.1, 0.1 / 2.5e5, step), cosine(0.95, 0.85, 0.95, step)
        before = {name: value.copy() for name, value in p.items()}
        reference.step(p, gradients(p, x[batch], y[batch]), {n: lr * FACTORS[GROUP_OF[n]] for n in NAMES}, beta_1)
        for name in NAMES:
            np.testing.assert_allclose(
                after[name] - before[name], p[name] - before[name], rtol=2e-3, atol=3e-7, err_msg=f"{name} at {step}"
            )
        p = after  # errors do not add up: each step is judged by itself
    assert len(record.steps) == STEPS


def test_the_first_step_golden(rng: np.random.Generator) -> None:
    """Golden: the first step shrinks by rate * decay, then moves by the group's rate against the gradient's sign."""
    x, y = data(rng)
    before, record = train(LayerwiseAdamW(0.01, GROUPS, [1e-2, 1e-1, 1], weight_decay=0.5), x, y)
    slopes = gradients(before, x[:6], y[:6])
    for name, rate in {"early": 1e-4, "gamma": 1e-3, "beta": 1e-3, "head": 1e-2, "bias": 1e-2}.items():
        expected = before[name] * (1 - rate * 0.5) - rate * np.sign(slopes[name])
        np.testing.assert_allclose(record.steps[0][name], expected, atol=1e-4 * rate + 1.5e-7, err_msg=name)


def test_vectors_may_be_spared_the_decay(rng: np.random.Generator) -> None:
    """Invariant: with `decay_norm_and_bias` false only matrices shrink; a multiplier of 0 moves nothing at all."""
    x, y = data(rng)
    optimizer = LayerwiseAdamW(0.01, GROUPS, [0, 1, 1], weight_decay=0.5, decay_norm_and_bias=False)
    before, record = train(optimizer, x, y)
    slopes = gradients(before, x[:6], y[:6])
    after = record.steps[0]
    np.testing.assert_array_equal(record.steps[-1]["early"], before["early"])
    np.testing.assert_allclose(after["gamma"], before["gamma"] - 0.01 * np.sign(slopes["gamma"]), atol=2e-6)
    np.testing.assert_allclose(after["head"], before["head"] * 0.995 - 0.01 * np.sign(slopes["head"]), atol=2e-6)


def test_without_groups_it_is_adamw(rng: np.random.Generator) -> None:
    """Reference: one group at a constant rate is numpy's AdamW over ten steps."""
    x, y = data(rng)
    p, record = train(LayerwiseAdamW(0.003), x, y)
    reference = NumpyAdamW(0.01, 0.99, 1e-8)
    for step in range(STEPS):
        batch = slice(6 * step, 6 * step + 6)
        reference.step(p, gradients(p, x[batch], y[batch]), dict.fromkeys(NAMES, 0.003), 0.9)
    for name in NAMES:
        np.testing.assert_allclose(record.steps[-1][name], p[name], atol=1e-5, err_msg=name)


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([["early"], ["head"]], "variables in no group: .*norm/gamma, .*norm/beta"),
        ([["early", "norm"], ["head", "norm"]], "in several groups: .*norm/gamma, .*norm/beta"),
        ([["early", "norm", "head"], ["haed", "tail"]], "groups without a trainable variable: haed, tail"),
        ([["early", "norm", "head"], []], r"groups without a trainable variable: \(empty\)"),
        ([["early", "norm", "head"], ["early"]], "in several groups: .*early/kernel"),
        ([["nets"]], "variables in no group: .*early/kernel, .*head/bias"),
        ([["net"], ["head"]], "in several groups: .*head/kernel, .*head/bias"),
    ],
)
def test_groups_that_do_not_partition_are_errors(groups: list[list[str]], said: str) -> None:
    """Golden: errors list variables in no group or in several, and groups without a variable."""
    with pytest.raises(InputError, match=said):
        LayerwiseAdamW(groups=groups).build(network().trainable_variables)


def inner_functional() -> keras.Model:
    image = layers.Input((3,))
    return keras.Model(image, layers.Dense(4, name="deep")(layers.Dense(4, name="early")(image)), name="body")


def inner_sequential() -> keras.Model:
    return keras.Sequential([layers.Dense(4, name="early"), layers.Dense(4, name="deep")], name="body")


def around(inner: keras.Model) -> keras.Model:
    """Functional, and the inner model twice nested."""
    image = layers.Input((3,))
    outer = keras.Model(image, inner(image), name="outer")
    return keras.Model(image, layers.Dense(2, name="head")(outer(image)))


NESTED = {
    "functional in functional": lambda: around(inner_functional()),
    "sequential in functional": lambda: around(inner_sequential()),
    "functional in sequential": lambda: keras.Sequential([inner_functional(), layers.Dense(2, name="head")]),
    "built late": lambda: keras.Sequential([layers.Input((3,)), inner_sequential(), layers.Dense(2, name="head")]),
}


def moves(model: keras.Model, optimizer: keras.optimizers.Optimizer, slope: float = 1.0) -> list[np.ndarray]:
    """How far each variable moves in one step on gradients that are all `slope`."""
    before = [np.array(variable) for variable in model.trainable_variables]
    optimizer.apply([slope * keras.ops.ones(variable.shape) for variable in model.trainable_variables])
    return [np.array(variable) - old for variable, old in zip(model.trainable_variables, before, strict=True)]


@pytest.mark.parametrize("groups", [[["body"], ["head"]], [["early", "deep"], ["head"]], [["early"], ["deep", "head"]]])
@pytest.mark.parametrize("build", NESTED.values(), ids=NESTED)
def test_groups_name_nested_models_or_their_layers(
    tmp_path: Path, build: Callable[[], keras.Model], groups: list[list[str]]
) -> None:
    """Golden: Adam's first step is the group's rate; by either name, before and after reloading, and in a clone."""
    model = build()
    model.compile(LayerwiseAdamW(0.1, groups, [0.01, 1.0], weight_decay=0), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    cloned = keras.models.clone_model(model)
    cloned.compile(LayerwiseAdamW.from_config(model.optimizer.get_config()), "mse")
    cloned.optimizer.build(cloned.trainable_variables)
    slow = 2 if groups[0] == ["early"] else 4
    for one in (model, loaded, cloned):
        found = [float(abs(moved).max()) for moved in moves(one, one.optimizer)]
        assert found == pytest.approx([1e-3] * slow + [0.1] * (6 - slow), rel=1e-4), one.name


def test_a_model_may_be_a_group_by_itself() -> None:
    """Golden: the model's own name stands for all its layers."""
    model = network()
    optimizer = LayerwiseAdamW(0.1, [["net"]], [0.5], weight_decay=0)
    optimizer.build(model.trainable_variables)
    assert [float(abs(moved).max()) for moved in moves(model, optimizer)] == pytest.approx([0.05] * 5, rel=1e-4)


# --- decay, the maximum, and gradients that are gathered --------------------------------------------------------------


@pytest.mark.parametrize("make", [LayerwiseAdamW, keras.optimizers.AdamW])
def test_what_is_excluded_does_not_decay_nor_does_it_in_a_copy(make: Callable) -> None:
    """Golden: at gradient 0 kernels shrink by 1 - rate * decay, the excluded bias and layer stay, in a copy too."""
    model = network()
    optimizer = make(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([model.get_layer("norm").gamma], ["bias", "beta"])
    optimizer.build(model.trainable_variables)
    for one in (optimizer, clone_optimizer(optimizer, model.trainable_variables, learning_rate=0.2)):
        before, rate = weights(model), float(one.learning_rate)
        for name, moved in zip(NAMES, moves(model, one, 0.0), strict=True):
            expected = -rate * 0.5 * before[name] if name in ("early", "head") else np.zeros_like(moved)
            np.testing.assert_allclose(moved, expected, atol=1e-7, err_msg=name)


def test_no_decay_is_a_decay_of_zero() -> None:
    """Golden: `weight_decay=None` decays nothing, as in Keras' other optimizers."""
    model, optimizer = network(), LayerwiseAdamW(0.1, weight_decay=None)
    optimizer.build(model.trainable_variables)
    assert not any(moved.any() for moved in moves(model, optimizer, 0.0))


def test_amsgrad_is_pytorchs() -> None:
    """Reference: PyTorch's AdamW with `amsgrad=True` in numpy, on a gradient that is large once."""
    variable = keras.Variable([1.0])
    optimizer = LayerwiseAdamW(0.1, weight_decay=0, beta_2=0.5, amsgrad=True)
    optimizer.build([variable])
    p, m, v, most = 1.0, 0.0, 0.0, 0.0
    for step, g in enumerate([4.0, 1.0, -0.5, 0.25, 1.0], 1):
        optimizer.apply([keras.ops.array([g])])
        m, v = 0.9 * m + 0.1 * g, 0.5 * v + 0.5 * g * g
        most = max(most, v)
        p -= 0.1 / (1 - 0.9**step) * m / (np.sqrt(most / (1 - 0.5**step)) + 1e-8)
        assert float(variable.value[0]) == pytest.approx(p, rel=1e-5), step
    assert LayerwiseAdamW.from_config(optimizer.get_config()).amsgrad
    assert len(LayerwiseAdamW().get_config()) == len(optimizer.get_config())


def test_momentum_follows_the_rate_when_gradients_are_accumulated() -> None:
    """Golden: both are those of the training step: one cycle over ten batches, whatever number makes an update."""
    variable, cycle = keras.Variable([1.0]), OneCycle(1.0, STEPS)
    optimizer = LayerwiseAdamW(cycle, beta_1=cycle.momentum(), gradient_accumulation_steps=4)
    optimizer.build([variable])
    for step in range(STEPS):
        assert float(optimizer.learning_rate) == pytest.approx(cosine(1 / 25, 1, 1 / 2.5e5, step), rel=1e-4)
        assert float(optimizer.beta_1) == pytest.approx(cosine(0.95, 0.85, 0.95, step), rel=1e-5)
        optimizer.apply([keras.ops.array([1.0])])
    assert float(optimizer.beta_1) == pytest.approx(0.95)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"learning_rate": -1}, "learning_rate must be a schedule or at least 0; got -1"),
        ({"learning_rate": math.nan}, "learning_rate must be a schedule or at least 0; got nan"),
        ({"learning_rate": "auto"}, "learning_rate must be .*got 'auto'"),
        ({"weight_decay": -1}, "weight_decay must be None or at least 0; got -1"),
        ({"weight_decay": math.inf}, "weight_decay must be None or at least 0; got inf"),
        ({"beta_1": 1.5}, r"beta_1 must be in \[0, 1\); got 1.5"),
        ({"beta_1": "0.9"}, r"beta_1 must be in \[0, 1\); got '0.9'"),
        ({"beta_2": 1}, r"beta_2 must be in \[0, 1\); got 1"),
        ({"epsilon": -1e-8}, "epsilon must be at least 0; got -1e-08"),
        ({"groups": []}, r"groups: give a list of layer names for each group; got \[\]"),
        ({"groups": ["body", "head"]}, "groups: give a list of layer names for each group; got .'body'"),
        ({"groups": "body"}, "groups: give a list of layer names for each group; got 'body'"),
        ({"multipliers": [math.nan]}, r"multipliers: give 1 numbers of at least 0, one per group; got \[nan\]"),
        ({"multipliers": ["1"]}, "multipliers: give 1 numbers of at least 0"),
    ],
)
def test_values_that_are_forbidden_are_errors(arguments: dict, said: str) -> None:
    """Golden: what the docstring forbids is refused with the rule, as a ValueError too."""
    with pytest.raises(InputError, match=said) as caught:
        LayerwiseAdamW(**arguments)
    assert isinstance(caught.value, ValueError)


def test_a_rate_may_be_any_number() -> None:
    """Golden: integers and NumPy's numbers are rates; Keras' own optimizers take only Python's float."""
    assert [float(LayerwiseAdamW(rate).learning_rate) for rate in (1, np.float32(0.5), 0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("multipliers", [[1.0], [1.0, -0.1], []])
def test_bad_multipliers_are_errors(multipliers: list[float]) -> None:
    """Golden: one multiplier per group, none negative."""
    with pytest.raises(InputError, match="multipliers: give 2 numbers of at least 0"):
        LayerwiseAdamW(groups=[["a"], ["b"]], multipliers=multipliers)


@pytest.mark.parametrize(
    ("max_lr", "groups", "rates"),
    [
        (slice(1e-6, 1e-4), 3, [1e-6, 1e-5, 1e-4]),
        ((1e-6, 1e-4), 3, [1e-6, 1e-5, 1e-4]),
        (slice(3e-3), 3, [3e-4, 3e-4, 3e-3]),
        ((None, 3e-3), 3, [3e-4, 3e-4, 3e-3]),
        (1e-3, 3, [1e-3, 1e-3, 1e-3]),
        (slice(1, 8), 4, [1, 2, 4, 8]),
        (slice(1e-6, 1e-4), 1, [1e-4]),
        (slice(2e-3), 1, [2e-3]),
        (np.array([1e-6, 1e-4]), np.int64(3), [1e-6, 1e-5, 1e-4]),
        (np.float32(0.5), 2, [0.5, 0.5]),
    ],
)
def test_spread_rates_golden(max_lr: float | slice | tuple, groups: int, rates: list[float]) -> None:
    """Golden: fastai's reading of a float, of slice(lo, hi) and of slice(hi)."""
    assert layer_group_lrs(max_lr, groups) == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    "max_lr",
    [
        0.0,
        -1.0,
        math.nan,
        "auto",
        "ab",
        slice(None),
        slice(0.0, 1.0),
        slice(1e-3, math.inf),
        (1e-3,),
        (1e-5, 1e-4, 1e-3),
    ],
)
def test_rates_that_make_no_sense_are_errors(max_lr: float | slice | tuple) -> None:
    """Golden: rates are positive, pairs are pairs."""
    with pytest.raises(InputError, match="max_lr"):
        layer_group_lrs(max_lr, 3)


# --- saving, resuming, copying ----------------------------------------------------------------------------------------


def sequential() -> keras.Model:
    return keras.Sequential(
        [layers.Input((3,)), layers.Dense(4, name="early"), layers.ReLU(), layers.Dense(2, name="head")]
    )


def nested() -> keras.Model:
    inner = keras.Sequential([layers.Input((3,)), layers.Dense(4, name="early"), layers.ReLU()], name="body")
    image = layers.Input((3,))
    return keras.Model(image, layers.Dense(2, name="head")(inner(image)))


@pytest.mark.parametrize("build", [sequential, nested])
def test_saving_and_resuming_is_as_if_nothing_happened(
    rng: np.random.Generator, tmp_path: Path, build: Callable[[], keras.Model]
) -> None:
    """Invariant: three steps, save, load, three more equal six in one go, to the last bit; variables' paths differ."""
    x, y = rng.normal(size=(24, 3)), rng.normal(size=(24, 2))
    straight = build()
    resumed = build()
    resumed.set_weights(straight.get_weights())
    for model in (straight, resumed):
        cycle = OneCycle(0.05, 6)
        groups = [["early"], ["head"]]
        model.compile(LayerwiseAdamW(cycle, groups, [0.1, 1], weight_decay=0.2, beta_1=cycle.momentum()), "mse")
    straight.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    resumed.fit(x[:12], y[:12], batch_size=4, shuffle=False, verbose=0)
    resumed.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.optimizer
    assert isinstance(again, LayerwiseAdamW)
    assert again.get_config() == resumed.optimizer.get_config()
    assert int(again.iterations) == 3
    loaded.fit(x[12:], y[12:], batch_size=4, shuffle=False, verbose=0)
    for a, b in zip(loaded.variables + again.variables, straight.variables + straight.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def state(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    return [np.array(variable) for variable in optimizer.variables]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerwiseAdamW(OneCycle(0.05, 9), [["early"], ["head"]], [0.1, 1], beta_1=OneCycle(1, 9).momentum()),
        lambda: keras.optimizers.Adam(1e-2),
        lambda: keras.optimizers.SGD(OneCycle(0.05, 9), momentum=0.9),
    ],
    ids=["layerwise", "adam", "sgd"],
)
def test_a_clone_goes_on_and_leaves_the_original_alone(
    rng: np.random.Generator, make: Callable[[], keras.optimizers.Optimizer]
) -> None:
    """Invariant: a copy has the original's averages and step count and the new rate; training it moves only it."""
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    model = sequential()
    model.compile(make(), "mse")
    model.fit(x, y, batch_size=4, verbose=0)
    original = model.optimizer
    before = state(original)
    copy = clone_optimizer(original, model.trainable_variables, learning_rate=0.125)
    assert type(copy) is type(original)
    assert float(copy.learning_rate) == 0.125
    assert int(copy.iterations) == 3
    averages, olds = optimizer_state(copy), optimizer_state(original)
    assert not any(v.path.split("/")[-1] in ("learning_rate", "rates") for v in olds)
    assert len(averages) == len(olds) > 3
    for new, old in zip(averages, olds, strict=True):
        np.testing.assert_array_equal(np.array(new), np.array(old))
    model.compile(copy, "mse")
    model.fit(x, y, batch_size=4, verbose=0)
    assert int(copy.iterations) == 6
    for now, then in zip(state(original), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_clone_of_a_fresh_optimizer_is_fresh() -> None:
    """Invariant: an optimizer that has not trained is copied without being built."""
    model = sequential()
    original = keras.optimizers.Adam(0.1)
    copy = clone_optimizer(original, model.trainable_variables, learning_rate=0.2)
    assert not original.built
    assert int(copy.iterations) == 0
    assert float(original.learning_rate) == pytest.approx(0.1)


def test_a_wrapped_optimizer_is_refused() -> None:
    """Golden: an optimizer that wraps another one is an error."""
    wrapped = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1))
    with pytest.raises(InputError, match="has no argument learning_rate; give a plain optimizer"):
        clone_optimizer(wrapped, sequential().trainable_variables, learning_rate=0.2)


# --- one program ------------------------------------------------------------------------------------------------------


def test_one_compiled_step_serves_every_rate_and_momentum(rng: np.random.Generator) -> None:
    """Reference: a step that JAX traced once moves as one compiled for each of these schedules moves, to rounding."""
    x, y = rng.normal(size=(24, 3)), rng.normal(size=(24, 2))
    model = sequential()
    cycle = OneCycle(0.05, 6)
    groups, traces = [["early"], ["head"]], []
    given = [
        {"learning_rate": 0.02, "beta_1": 0.8, "multipliers": [1.0, 1.0]},
        {"learning_rate": cycle, "beta_1": cycle.momentum(), "multipliers": [0.1, 1.0]},
        {"learning_rate": ExponentialSweep(1e-3, 0.1, 6, 2), "beta_1": 0.9, "multipliers": [0.0, 1.0]},
    ]
    start = model.get_weights()
    train_step = model.train_step
    step = None
    for arguments in given:
        ends = []
        for shared in (False, True):
            model.set_weights(start)
            optimizer = clone_optimizer(LayerwiseAdamW(0.1, groups), model.trainable_variables, **arguments)
            model.compile(optimizer, "mse")
            model.train_function = step if shared else None
            if not shared:  # a new function, for JAX traces the same one only once
                model.train_step = lambda *inputs: traces.append(1) or train_step(*inputs)
            traces.clear()
            model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
            ends.append(model.get_weights())
            assert len(traces) == (0 if shared and step else 1)
            step = step or model.train_function
        for alone, together in zip(*ends, strict=True):
            np.testing.assert_array_equal(alone, together)
        assert all((a == b).all() for a, b in zip(start, ends[0], strict=True)) is False


def test_a_rate_set_later_is_applied_without_compiling(rng: np.random.Generator) -> None:
    """Golden: `learning_rate` and `beta_1` of a compiled optimizer can be set, as callbacks do between epochs."""
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model = sequential()
    model.compile(LayerwiseAdamW(0.0), "mse")
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    averages = [np.array(m) for m in model.optimizer.momentums]
    model.optimizer.learning_rate, model.optimizer.beta_1 = 0.25, 0.5
    model.fit(x, y, verbose=0)
    # At the same weights the gradient g is the same, and the first average was 0.1 g.
    for old, new in zip(averages, model.optimizer.momentums, strict=True):
        np.testing.assert_allclose(new, 0.5 * old + 0.5 * old / 0.1, rtol=1e-5, atol=1e-7)
    assert float(model.optimizer.learning_rate) == 0.25
    assert all((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


def test_a_schedule_of_keras_is_compiled_in(rng: np.random.Generator) -> None:
    """Golden: a schedule that is no kbaseline's moves the weights at its own rate: a first step of Adam is the rate."""
    model = sequential()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.25, 0.5])
    optimizer = LayerwiseAdamW(schedule, weight_decay=0.0)
    assert not optimizer.rates_are_state
    model.compile(optimizer, "mse")
    before = model.get_weights()
    model.fit(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), verbose=0)
    moves = [np.abs(new - old).max() for new, old in zip(model.get_weights(), before, strict=True)]
    np.testing.assert_allclose(moves, 0.25, rtol=1e-3)


def test_a_constant_rate_saved_by_version_0_1_is_passed_over() -> None:
    """Golden: its state had the rate after the count of steps; rates of today are no part of the saved state."""
    model = sequential()
    optimizer = LayerwiseAdamW(0.1)
    optimizer.build(model.trainable_variables)
    store: dict[str, np.ndarray] = {}
    optimizer.save_own_variables(store)
    assert len(store) == 1 + 2 * len(model.trainable_variables)
    arrays = [np.int32(7), np.float32(0.1), *(np.ones_like(array) for array in list(store.values())[1:])]
    optimizer.load_own_variables({str(index): array for index, array in enumerate(arrays)})
    assert int(optimizer.iterations) == 7
    assert all((np.array(m) == 1).all() for m in optimizer.momentums)
    with pytest.warns(UserWarning, match="of another optimizer"):
        optimizer.load_own_variables({"0": np.int32(1)})
    assert int(optimizer.iterations) == 7
