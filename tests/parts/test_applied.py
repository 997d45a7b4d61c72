"""The article's verbs read back from the weights: what each compiled step of a real fit did to every variable.

One learner of three groups runs the article's snippet over ten steps a fit. After every step its weights and the
optimizer's averages are copied; together with gradients from `jax.grad` they tell rate, decay and betas of that step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import keras
import numpy as np
import pytest
from keras import layers
from rich.console import Console

from kbaseline import ImageData, Learner
from kbaseline.data.batches import ImageBatches
from kbaseline.lr_finder import LRFinder

STEPS, BATCH, SIDE = 10, 16, 8
TEN = [4e-5, 2.8e-4, 7.6e-4, 1e-3, 9.5048e-4, 8.1175e-4, 6.1126e-4, 3.8874e-4, 1.8826e-4, 4.9519e-5]
TEN_MOMENTA = [0.95, 0.925, 0.875, 0.85, 0.8549516, 0.8688255, 0.8888740, 0.9111260, 0.9311745, 0.9450484]
"""fastai's one-cycle over ten steps, peak 1e-3; its momentum."""


@dataclass(frozen=True)
class Call:
    """What fastai applies in one call of the snippet: rates of the three groups at each step, beta_1, Adam's count."""

    do: Callable[[Learner], object]
    rates: np.ndarray
    momenta: list[float]
    count: int
    frozen: bool


def finetune(learn: Learner) -> None:
    learn.unfreeze()
    learn.fit_one_cycle(1, max_lr=slice(1e-4, 1e-2))


SNIPPET = {
    "fit": Call(lambda learn: learn.fit(1), np.tile([3e-4, 3e-4, 3e-3], (STEPS, 1)), [0.9] * STEPS, 0, True),
    "one_cycle": Call(
        lambda learn: learn.fit_one_cycle(1, max_lr=1e-3), np.outer(TEN, [1, 1, 1]), TEN_MOMENTA, STEPS, True
    ),
    "finetune": Call(finetune, np.outer(TEN, [0.1, 1, 10]), TEN_MOMENTA, 0, False),
    "fit_again": Call(lambda learn: learn.fit(1, 1e-3), np.full((STEPS, 3), 1e-3), [0.95] * STEPS, STEPS, False),
}
"""A plain fit, then one-cycle going on from its averages; unfreezing, which resets them; a fit at the last momentum."""

SWEEP = 1e-4 * 1e4 ** (np.arange(20) / 20)


@dataclass(frozen=True)
class Moment:
    """Copies of everything, by path: weights and averages of what trains in float64, everything else as it is."""

    p: dict[str, np.ndarray]
    m: dict[str, np.ndarray]
    v: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]


def copies(model: keras.Model) -> Moment:
    names = [variable.path for variable in model.trainable_variables]
    slots = model.optimizer.momentums, model.optimizer.velocities
    p, m, v = ([np.array(x, np.float64) for x in column] for column in (model.trainable_variables, *slots))
    columns = [dict(zip(names, column, strict=True)) for column in (p, m, v)]
    return Moment(*columns, {variable.path: np.array(variable) for variable in model.non_trainable_variables})


class Trace(keras.callbacks.Callback):
    """A moment before every fit and after every step of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[list[Moment]] = []

    def on_train_begin(self, logs: object = None) -> None:
        self.fits.append([copies(self.model)])

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.model.jax_state_sync()
        self.fits[-1].append(copies(self.model))


class TracedFinder(LRFinder):
    """The finder, with a moment before the sweep and after every step of it."""

    moments: list[Moment]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        TracedFinder.moments = [copies(self.model)]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        TracedFinder.moments.append(copies(self.model))


def gradients(model: keras.Model, moments: list[Moment], batches: list[tuple]) -> list[dict[str, np.ndarray]]:
    """JAX's gradients of the mean cross-entropy at the weights before each step, on its batch."""

    @jax.jit
    def slopes(values: list, rest: list, images: Any, labels: Any) -> list:
        def loss(values: list) -> Any:
            logits, _ = model.stateless_call(values, rest, images, training=True)
            return -jax.numpy.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        return jax.grad(loss)(values)

    found = []
    for moment, (images, labels) in zip(moments, batches, strict=True):
        values = [moment.p[v.path].astype("float32") for v in model.trainable_variables]
        rest = [moment.rest[v.path] for v in model.non_trainable_variables]
        at = slopes(values, rest, images, labels)
        found.append({v.path: np.array(g, np.float64) for v, g in zip(model.trainable_variables, at, strict=True)})
    return found


@dataclass
class Run:
    """The snippet, as it went; `around_sweep` is everything before and after a sweep between its first two calls."""

    learn: Learner
    moments: dict[str, list[Moment]]
    slopes: dict[str, list[dict[str, np.ndarray]]]
    batches: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    sweep: list[Moment]
    around_sweep: list[list[tuple[str, np.ndarray]]]


def everything(learn: Learner) -> list[tuple[str, np.ndarray]]:
    return [(v.path, np.array(v)) for v in [*learn.model.variables, *learn.model.optimizer.variables]]


def learner(folder: Any) -> Learner:
    """Three groups with kernels, biases and BatchNorm each; no dropout and still transforms, which draw nothing."""
    keras.utils.set_random_seed(1)
    body = keras.Sequential(
        [
            layers.Input((None, None, 3)),
            layers.Rescaling(1 / 127.5, -1),
            # ReLU before each BatchNorm, and a beta before the last: else some gradients would be mere rounding, for
            # BatchNorm, the head's first layer too, undoes a bias before it and a factor.
            *(layers.Conv2D(6, 3, 2, "same", activation="relu", name="c1"), layers.BatchNormalization(name="n1")),
            layers.Conv2D(8, 3, 1, "same", activation="relu", name="c2"),
            layers.BatchNormalization(beta_initializer=keras.initializers.Constant(0.5), name="n2"),
            layers.ReLU(),
        ]
    )
    body.save(folder / "body.keras")
    count = STEPS * BATCH
    rng = np.random.default_rng(5)
    images, labels = rng.integers(0, 256, (count + 8, SIDE, SIDE, 3), np.uint8), np.arange(count + 8) % 3
    data = ImageData.from_arrays((images[:count], labels[:count]), (images[count:], labels[count:]))
    config = {
        "transforms": {"max_rotate": 0, "max_zoom": 1, "max_lighting": 0, "max_warp": 0},
        "lr_find": {"start_lr": 1e-4, "end_lr": 1, "steps": 20, "stop_factor": 1e9},
        "model": {"dropout": 0, "hidden": 16, "train_bn": True},
        "data": {"batch_size": BATCH},
    }
    return Learner(data, str(folder / "body.keras"), config=config, console=Console(quiet=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The article's snippet, every step of it watched."""
    learn, trace = learner(tmp_path_factory.mktemp("body")), Trace()
    learn.callbacks.append(trace)
    slopes, batches, around = {}, {}, []
    fed: dict[int, tuple] = {}
    give = ImageBatches.__getitem__

    def spied(self: ImageBatches, index: int) -> tuple:
        given = give(self, index)
        if self is learn._batches:
            fed[index] = given
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kbaseline.learner.LRFinder", TracedFinder)
        patch.setattr(ImageBatches, "__getitem__", spied)
        for name, call in SNIPPET.items():
            call.do(learn)
            batches[name] = [fed[index] for index in range(STEPS)]
            slopes[name] = gradients(learn.model, trace.fits[-1][:-1], batches[name])
            if name == "fit":
                around = [everything(learn)]
                learn.lr_sweep()
                around.append(everything(learn))
    return Run(learn, dict(zip(SNIPPET, trace.fits, strict=True)), slopes, batches, TracedFinder.moments, around)


def group(path: str) -> int:
    """Early body, late body, head."""
    name = path.split("/")[-2]
    return 2 if name.startswith("head_") else {"c1": 0, "n1": 0, "c2": 1, "n2": 1}[name]


def adamw(
    p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, *, rate: float, beta_1: float, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PyTorch's AdamW with fastai's decay 0.01 and beta_2 0.99: one step, the `count`-th since the averages began."""
    p = p - rate * 0.01 * p
    m, v = beta_1 * m + (1 - beta_1) * g, 0.99 * v + 0.01 * g**2
    return p - rate * m / (1 - beta_1**count) / (np.sqrt(v / (1 - 0.99**count)) + 1e-8), m, v


@pytest.mark.parametrize("name", SNIPPET)
def test_every_variable_moves_as_numpy_says(run: Run, name: str) -> None:
    """Reference: weight and averages of every variable after each step are those of AdamW in numpy, at fastai's rates.

    BatchNorm's gamma and beta and all biases decay and move like kernels. Frozen, they are all of the body that does.
    """
    call, moments = SNIPPET[name], run.moments[name]
    for step, (before, after, slope) in enumerate(zip(moments, moments[1:], run.slopes[name], strict=False)):
        for path, p in before.p.items():
            at = {"rate": call.rates[step, group(path)], "beta_1": call.momenta[step], "count": call.count + step + 1}
            new, m, v = adamw(p, before.m[path], before.v[path], slope[path], **at)
            where = f"{path} at step {step}"
            size = np.abs(slope[path]).max()
            np.testing.assert_allclose(after.m[path], m, rtol=1e-4, atol=1e-4 * size, err_msg=where)
            np.testing.assert_allclose(after.v[path], v, rtol=1e-4, atol=1e-4 * size**2, err_msg=where)
            # Where gradients were mere rounding, so is their ratio to their own root mean square.
            sound = np.sqrt(after.v[path] / 0.01) > 1e-3 * size
            tolerance = 2e-3 * at["rate"] + 1.5e-7 * np.abs(p)
            assert (np.abs(after.p[path] - new) < tolerance)[sound].all(), where
            assert sound.mean() > 0.5, where
    assert len(moments) == STEPS + 1
    kinds = {path.split("/")[-1] for path in moments[0].p if group(path) < 2}
    assert kinds == ({"gamma", "beta"} if call.frozen else {"gamma", "beta", "kernel", "bias"})
    assert {group(path) for path in moments[0].p} == {0, 1, 2}


def joined(values: dict[str, np.ndarray], index: int) -> np.ndarray:
    """All numbers of one group's variables."""
    return np.concatenate([value.ravel() for path, value in values.items() if group(path) == index])


def read_back(before: Moment, after: Moment, slope: dict[str, np.ndarray], count: int, index: int) -> dict[str, float]:
    """Betas, rate and decay of one step in one group, by least squares over its variables."""
    p, m, v, g = (joined(values, index) for values in (before.p, before.m, before.v, slope))
    new_p, new_m, new_v = (joined(values, index) for values in (after.p, after.m, after.v))
    beta_1 = 1 - (new_m - m) @ (g - m) / ((g - m) @ (g - m))
    beta_2 = 1 - (new_v - v) @ (g**2 - v) / ((g**2 - v) @ (g**2 - v))
    direction = new_m / (1 - beta_1**count) / (np.sqrt(new_v / (1 - beta_2**count)) + 1e-8)
    (rate, rate_decay), *_ = np.linalg.lstsq(np.stack([direction, p], axis=1), p - new_p, rcond=None)
    return {"beta_1": beta_1, "beta_2": beta_2, "rate": rate, "decay": rate_decay / rate}


@pytest.mark.parametrize("name", SNIPPET)
def test_what_the_compiled_step_applied(run: Run, name: str) -> None:
    """Golden: rates and momentum of every step, solved for in the weights themselves, are fastai's; so is the record.

    The decay shows where the rate is large enough for float32.
    """
    call, moments = SNIPPET[name], run.moments[name]
    rows = run.learn.applied[list(SNIPPET).index(name) * STEPS :][:STEPS]
    for step in range(STEPS):
        for index in range(3):
            pair = moments[step], moments[step + 1]
            found = read_back(*pair, run.slopes[name][step], call.count + step + 1, index)
            rate = call.rates[step, index]
            assert found["rate"] == pytest.approx(rate, rel=5e-3), (step, index)
            assert found["beta_1"] == pytest.approx(call.momenta[step], abs=2e-4), (step, index)
            assert found["beta_2"] == pytest.approx(0.99, abs=2e-4), (step, index)
            if rate >= 3e-4:
                assert found["decay"] == pytest.approx(0.01, rel=0.2), (step, index)
            assert rows[step][f"lr_{index}"] == pytest.approx(rate, rel=1e-4)
        assert rows[step]["momentum"] == pytest.approx(call.momenta[step], rel=1e-5)
        assert rows[step]["lr"] == rows[step]["lr_2"]


def test_the_finder_applies_one_rate_to_all_groups(run: Run) -> None:
    """Golden: in a sweep after a plain fit every group moves at start * (end / start) ** (i / steps), momentum 0.9."""
    assert len(run.sweep) == 21
    for step, (before, after) in enumerate(zip(run.sweep, run.sweep[1:], strict=False)):
        count = STEPS + step + 1  # the averages go on from the fit before
        for index in range(3):
            old, new, m, v = (joined(values, index) for values in (before.p, after.p, after.m, after.v))
            direction = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.99**count)) + 1e-8) + 0.01 * old
            rate = direction @ (old - new) / (direction @ direction)
            assert rate == pytest.approx(SWEEP[step], rel=5e-3), (step, index)


def test_the_finder_puts_back_every_bit(run: Run) -> None:
    """Invariant: weights, averages, count, BatchNorm statistics and seeds all move in a sweep, and are as before it."""
    before, after = run.around_sweep
    for (path, old), (again, new) in zip(before, after, strict=True):
        assert path == again
        np.testing.assert_array_equal(new, old, err_msg=path)
    first, last = run.sweep[0], run.sweep[-1]
    moved = {path.split("/")[-1] for path in first.rest if (first.rest[path] != last.rest[path]).any()}
    assert moved == {"moving_mean", "moving_variance", "seed_generator_state"}
    assert all((first.p[path] != last.p[path]).any() and (first.m[path] != last.m[path]).any() for path in first.p)
    assert any("momentum" in path for path, _ in before)


def test_frozen_batchnorm_sees_batches_and_keeps_their_statistics(run: Run) -> None:
    """Reference: in a frozen body running statistics become 0.9 of themselves and 0.1 of the batch's, as in PyTorch.

    Numpy takes mean and (biased) variance of what the frozen first convolution gives.
    """
    body = run.learn.model.get_layer("backbone")
    c1, n1 = body.get_layer("c1"), body.get_layer("n1")
    kernel, bias = (run.moments["fit"][0].rest[v.path] for v in (c1.kernel, c1.bias))
    for step, (images, _) in enumerate(run.batches["fit"]):
        scaled = images.astype("float32") / 127.5 - 1
        seen = np.array(jax.nn.relu(keras.ops.conv(scaled, kernel, 2, "same") + bias), np.float64)
        before, after = run.moments["fit"][step].rest, run.moments["fit"][step + 1].rest
        for variable, of_batch in ((n1.moving_mean, seen.mean((0, 1, 2))), (n1.moving_variance, seen.var((0, 1, 2)))):
            expected = 0.9 * before[variable.path] + 0.1 * of_batch
            np.testing.assert_allclose(after[variable.path], expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_body_keeps_its_convolutions_to_the_bit(run: Run) -> None:
    """Invariant: through fit, sweep and one-cycle no bit of a frozen convolution's kernel or bias changes."""
    first, last = run.moments["fit"][0].rest, run.moments["one_cycle"][-1].rest
    held = [path for path in first if path.split("/")[-2] in ("c1", "c2")]
    assert len(held) == 4
    for path in held:
        np.testing.assert_array_equal(last[path], first[path], err_msg=path)
