"""One-cycle, its momentum and the sweep: fastai's values, and what the compiled training step really applied."""

import math

import keras
import numpy as np
import pytest

from kbaseline.errors import InputError
from kbaseline.schedules import CosineCycle, ExponentialSweep, OneCycle

TEN = [4e-5, 2.8e-4, 7.6e-4, 1e-3, 9.5048e-4, 8.1175e-4, 6.1126e-4, 3.8874e-4, 1.8826e-4, 4.9519e-5]
"""fastai's rates at n = 10, max 1e-3."""

TEN_MOMENTA = [0.95, 0.925, 0.875, 0.85, 0.8549516, 0.8688255, 0.8888740, 0.9111260, 0.9311745, 0.9450484]
"""Its momentum: 0.9 + 0.05 cos(πp) for three steps, then 0.9 - 0.05 cos(πp) for seven."""


def fastai_cycle(start: float, peak: float, end: float, n: int, pct: float = 0.3) -> np.ndarray:
    """The n values a fastai v1 OneCycleScheduler applies: `Scheduler.step` counted out, in float64.

    Only where int(n * pct) is 0 it differs: fastai then takes one step up and falls over n more, of which the last is
    never taken; ours falls over n - 1 and so ends where a cycle should.
    """

    def anneal_cos(a: float, b: float, p: float) -> float:
        return b + (a - b) / 2 * (1 + math.cos(math.pi * p))

    a1 = max(1, int(n * pct))
    values, current = [], start
    phases = [(start, peak, a1), (peak, end, n - a1)]
    phase, count = 0, 0
    for _ in range(n):
        values.append(current)
        lo, hi, length = phases[min(phase, 1)]
        count += 1
        current = anneal_cos(lo, hi, count / length)
        if count >= length:
            phase, count = phase + 1, 0
    return np.array(values)


def values(schedule: CosineCycle | ExponentialSweep, steps: range) -> np.ndarray:
    return np.array([float(schedule(step)) for step in steps])


def test_one_cycle_golden_ten_steps() -> None:
    """Golden: the ten rates and momenta of a ten-step cycle are fastai's."""
    schedule = OneCycle(1e-3, 10)
    np.testing.assert_allclose(values(schedule, range(10)), TEN, rtol=2e-5)
    np.testing.assert_allclose(values(schedule.momentum(), range(10)), TEN_MOMENTA, rtol=1e-6)


def test_one_cycle_golden_cifar() -> None:
    """Golden: three epochs of CIFAR-10 at batch 64 start, climb, peak and end where fastai's do; momentum mirrors."""
    schedule = OneCycle(1e-3, 3 * 781)
    assert schedule.total_steps == 2343
    assert schedule.peak_step == 702
    expected = {0: 4e-5, 351: 5.2e-4, 702: 1e-3, 2342: 4.916e-9}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=2e-4)
    for step, momentum in {0: 0.95, 351: 0.9, 702: 0.85, 2342: 0.95}.items():
        assert float(schedule.momentum()(step)) == pytest.approx(momentum, abs=1e-6)


def test_annealing_golden() -> None:
    """Golden: the values of fastai v2's own notebook: SchedCos(0, 2), SchedExp(1, 2), combined_cos(.25, .5, 1, 0)."""
    cosine = CosineCycle(9.0, 0.0, 2.0, 5, pct_start=0.2)  # falls, here rises, over the four steps from its peak
    assert [float(cosine(step)) for step in range(1, 6)] == pytest.approx([0, 0.29289, 1, 1.70711, 2], abs=1e-5)
    combined = CosineCycle(0.5, 1.0, 0.0, 100, pct_start=0.25)
    assert [float(combined(step)) for step in (0, 10, 25, 50, 100)] == pytest.approx(
        [0.5, 0.67275, 1, 0.75, 0], abs=1e-5
    )
    exponential = ExponentialSweep(1.0, 2.0, 4)
    assert [float(exponential(step)) for step in range(4)] == pytest.approx([1, 1.18921, 1.41421, 1.68179], abs=1e-5)


@pytest.mark.parametrize("n", [3, 4, 7, 10, 33, 100])
@pytest.mark.parametrize("pct", [0.1, 0.25, 0.3, 0.9])
def test_one_cycle_follows_fastai_at_every_step(n: int, pct: float) -> None:
    """Reference: every rate and momentum equals fastai's scheduler counted out in float64, a1 = 0 included."""
    schedule = OneCycle(3e-3, n, pct_start=pct)
    np.testing.assert_allclose(
        values(schedule, range(n)), fastai_cycle(3e-3 / 25, 3e-3, 3e-3 / 2.5e5, n, pct), rtol=1e-4, atol=1e-12
    )
    np.testing.assert_allclose(values(schedule.momentum(), range(n)), fastai_cycle(0.95, 0.85, 0.95, n, pct), rtol=1e-6)


def test_a_cycle_too_short_for_its_rise_still_takes_one_step_up() -> None:
    """Golden: with int(0.3 * 3) = 0 rising steps the first step has the start value and the second the peak."""
    schedule = OneCycle(1e-3, 3)
    np.testing.assert_allclose(values(schedule, range(2)), [4e-5, 1e-3], rtol=1e-6)


def test_the_tail_keeps_its_digits() -> None:
    """Reference: the last rates of a long cycle, a millionth of the peak, are right to four digits in float32."""
    n = 20_000
    expected = fastai_cycle(4e-5, 1e-3, 4e-9, n)
    np.testing.assert_allclose(values(OneCycle(1e-3, n), range(n - 5, n)), expected[-5:], rtol=1e-4)


def test_momentum_mirrors_the_rate() -> None:
    """Invariant: momentum is 0.95 at the ends, 0.85 at the peak, and lowest exactly where the rate is highest."""
    schedule = OneCycle(1e-3, 100)
    rates, momenta = values(schedule, range(101)), values(schedule.momentum(), range(101))
    assert np.argmax(rates) == np.argmin(momenta) == 30
    np.testing.assert_allclose(momenta[[0, 30, 100]], [0.95, 0.85, 0.95], rtol=1e-6)
    assert (rates == rates.max()).sum() == 1
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()


def test_after_the_last_step_it_stays() -> None:
    """Invariant: before its first step a cycle has its start value, after its last its end value."""
    schedule = OneCycle(1e-3, 10, start_step=5)
    np.testing.assert_allclose(values(schedule, range(15, 40, 8)), 4e-9, rtol=1e-5)
    np.testing.assert_allclose(values(schedule, range(5)), 4e-5, rtol=1e-6)


def test_start_step_shifts_the_cycle() -> None:
    """Invariant: a cycle that begins at step 17 has at 17 + i what one from 0 has at i; its momentum too."""
    late = OneCycle(1e-3, 10, start_step=17)
    np.testing.assert_allclose(values(late, range(17, 27)), TEN, rtol=2e-5)
    early = OneCycle(1e-3, 10)
    np.testing.assert_array_equal(values(late.momentum(), range(17, 27)), values(early.momentum(), range(10)))


@pytest.mark.parametrize(
    "schedule",
    [
        OneCycle(2e-3, 50, 0.4, 10.0, 1e3, 7),
        OneCycle(2e-3, 50, start_step=3).momentum(0.9, 0.8),
        ExponentialSweep(1e-6, 1.0, 40, 2),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_serialisation_round_trip(schedule: CosineCycle | ExponentialSweep) -> None:
    """Invariant: a schedule read back from its configuration has the same class and the same values."""
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule)
    np.testing.assert_array_equal(values(again, range(60)), values(schedule, range(60)))


def test_sweep_golden() -> None:
    """Golden: step i of the sweep has 1e-7 * 1e8 ** (i / 100); the last one is 8.32, never 10."""
    sweep = ExponentialSweep()
    expected = [1e-7 * 1e8 ** (i / 100) for i in range(100)]
    np.testing.assert_allclose(values(sweep, range(100)), expected, rtol=1e-5)
    assert float(sweep(99)) == pytest.approx(8.3176, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OneCycle(1e-3, 0), "total_steps must be a whole number of at least 1; got 0"),
        (lambda: OneCycle(1e-3, 10, pct_start=0.0), "pct_start"),
        (lambda: OneCycle(1e-3, 10, pct_start=1.0), "pct_start"),
        (lambda: OneCycle(0.0, 10), "positive"),
        (lambda: OneCycle(1e-3, 10, div=-1.0), "positive"),
        (lambda: OneCycle(math.nan, 10), "max_lr must be one positive number.*got nan"),
        (lambda: OneCycle(math.inf, 10), "max_lr must be one positive number.*got inf"),
        (
            lambda: OneCycle(slice(1e-6, 1e-4), 10),
            r"max_lr must be one positive number .*multipliers.*got slice\(1e-06",
        ),
        (lambda: OneCycle("auto", 10), "max_lr must be one positive number.*got 'auto'"),
        (lambda: OneCycle([1e-3, 1e-2], 10), "max_lr must be one positive number"),
        (lambda: OneCycle(1e-3, 640 / 64 + 0.5), "total_steps must be a whole number of at least 1; got 10.5"),
        (lambda: OneCycle(1e-3, math.nan), "total_steps must be a whole number"),
        (lambda: OneCycle(1e-3, math.inf), "total_steps must be a whole number"),
        (lambda: OneCycle(1e-3, 10, start_step=-1), "start_step must be a whole number of at least 0; got -1"),
        (lambda: OneCycle(1e-3, 10).momentum(1.5), r"ends must be in \[0, 1\); got 1.5"),
        (lambda: OneCycle(1e-3, 10).momentum(middle=math.nan), r"middle must be in \[0, 1\); got nan"),
        (lambda: CosineCycle(0.0, math.nan, 0.0, 10), "peak must be a finite number; got nan"),
        (lambda: ExponentialSweep(1.0, 0.1), "start_lr must be below end_lr; got start_lr 1.0, end_lr 0.1"),
        (lambda: ExponentialSweep(0.0, 0.1), "start_lr must be a positive number; got 0.0"),
        (lambda: ExponentialSweep(end_lr=math.inf), "end_lr must be a positive number; got inf"),
        (lambda: ExponentialSweep(steps=0), "steps must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_arguments_are_errors(make: object, match: str) -> None:
    """Golden: a value outside its range raises with the rule."""
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.array, keras.Variable])
def test_numbers_of_numpy_are_numbers(kind: type) -> None:
    """Golden: a rate and a length may be of NumPy's types; the configuration has Python's, as JSON needs."""
    assert OneCycle(kind(2), kind(10)).get_config() == OneCycle(2.0, 10).get_config()
    assert {type(value) for value in OneCycle(kind(2), kind(10)).get_config().values()} == {int, float}


def increments(optimizer: keras.optimizers.Optimizer, steps: int, epochs: int) -> np.ndarray:
    """How far one weight with gradient 1 moved at each step of a real `fit`."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    # The loss is the weight itself: its gradient is 1 at every step.
    model.compile(optimizer, lambda y, p: keras.ops.mean(p, axis=-1))
    seen = [0.0]

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.model.jax_state_sync()
            seen.append(float(keras.ops.convert_to_numpy(self.model.trainable_variables[0])[0, 0]))
            # Back to zero, so that increments far below the weight's own size keep their digits.
            self.model.trainable_variables[0].assign([[0.0]])
            seen.append(0.0)

    count = steps // epochs
    model.fit(np.ones((count, 1)), np.zeros((count, 1)), batch_size=1, epochs=epochs, verbose=0, callbacks=[Watch()])
    return -np.array(seen[1::2])


def test_the_compiled_step_applied_the_cycle() -> None:
    """Golden: in a real fit over two epochs the weight moves at each step by fastai's rate for that step."""
    moved = increments(keras.optimizers.SGD(OneCycle(1e-3, 10)), 10, 2)
    np.testing.assert_allclose(moved, TEN, rtol=2e-5)


def test_the_compiled_step_applied_the_sweep() -> None:
    """Golden: in a real fit the weight moves at step i by 1e-7 * 1e8 ** (i / 20)."""
    moved = increments(keras.optimizers.SGD(ExponentialSweep(steps=20)), 20, 1)
    np.testing.assert_allclose(moved, [1e-7 * 1e8 ** (i / 20) for i in range(20)], rtol=1e-5)
