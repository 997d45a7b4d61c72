"""AdamW with a learning-rate multiplier per layer group and an optional momentum schedule.

I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", https://arxiv.org/abs/1711.05101; per-layer
rates as in J. Howard and S. Ruder, "Universal language model fine-tuning", https://arxiv.org/abs/1801.06146.
"""

import gc
import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kbaseline.errors import InputError, checked_count, checked_number
from kbaseline.schedules import NUMBERS, as_numbers, value_at


def layer_group_lrs(max_lr: float | slice | Sequence[float | None], groups: int) -> list[float]:
    """Converts `max_lr` to one learning rate per layer group, as fastai v1's `Learner.lr_range` does.

    >>> from kbaseline.optimizer import layer_group_lrs
    >>> [f"{rate:g}" for rate in layer_group_lrs(slice(1e-6, 1e-4), groups=3)]
    ['1e-06', '1e-05', '0.0001']

    Args:
        max_lr: a float, the rate of all groups; `slice(lo, hi)` or `(lo, hi)`, spaced geometrically from `lo` for the
            first group to `hi` for the last; or `slice(hi)` or `(None, hi)`, `hi` for the last group and a tenth of it
            for the others. Rates are above 0.
        groups: number of layer groups, at least 1.

    Returns:
        `groups` rates, first group first.

    Raises:
        InputError: a rate is not positive, a sequence has not exactly two, or there are no groups.
    """
    lo: Any
    hi: Any
    if isinstance(max_lr, np.ndarray):
        max_lr = max_lr.tolist()
    if isinstance(max_lr, slice):
        lo, hi = max_lr.start, max_lr.stop
    elif isinstance(max_lr, Sequence) and not isinstance(max_lr, str):
        if len(max_lr) != 2:
            raise InputError(f"max_lr: give one rate, slice(lo, hi) or [lo, hi]; got {max_lr!r}.")
        lo, hi = max_lr
    else:
        lo = hi = max_lr
    groups = checked_count("groups", groups)
    hi = checked_number("max_lr: a rate", hi, "a positive number", lambda rate: 0 < rate < math.inf)
    if lo is None:
        return [hi / 10] * (groups - 1) + [hi]
    lo = checked_number("max_lr: a rate", lo, "a positive number", lambda rate: 0 < rate < math.inf)
    if groups == 1:
        return [hi]
    return [float(lo * (hi / lo) ** (index / (groups - 1))) for index in range(groups)]


spread_rates = layer_group_lrs
"""The name of `layer_group_lrs` up to version 0.1."""


@keras.saving.register_keras_serializable(package="kbaseline")
class LayerwiseAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """AdamW whose layer groups learn at different rates, and whose `beta_1` may be a schedule.

    A group is a list of names: of layers, or of models used as layers, which stand for all layers inside. A name means
    the same before and after reloading or cloning. The rate of group g is `learning_rate * multipliers[g]`.
    The update is PyTorch's: first the decay, `p -= p * weight_decay * rate`, on every variable (biases and BatchNorm
    too), then `p -= rate * m̂ / (sqrt(v̂) + epsilon)`, with both averages bias-corrected by the current betas.
    The defaults are fastai v1's (`basic_train.py`); AdamW is https://arxiv.org/abs/1711.05101.

    >>> from kbaseline import LayerwiseAdamW
    >>> import keras
    >>> import numpy as np
    >>> body, head = keras.layers.Dense(16, name="body"), keras.layers.Dense(2, name="head")
    >>> model = keras.Sequential([keras.Input((8,)), body, head])
    >>> model.compile(LayerwiseAdamW(1e-3, groups=[["body"], ["head"]], multipliers=[0.01, 1.0]), "mse")
    >>> before = model.get_weights()  # kernel and bias of body, kernel and bias of head
    >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    >>> [f"{abs(new - old).max():.0e}" for new, old in zip(model.get_weights(), before)]
    ['1e-05', '1e-05', '1e-03', '1e-03']

    Args:
        learning_rate: a number of at least 0, or a schedule: the rate of a group whose multiplier is 1.
        groups: layer names of each group, at least one group; None for a single group of all layers.
        multipliers: one factor per group, at least 0; None for 1 everywhere.
        weight_decay: decoupled weight decay, at least 0; None is 0. Each step multiplies a variable by
            `1 - weight_decay * rate`, with its group's rate, unless `exclude_from_weight_decay` excludes it.
        beta_1: decay of the gradient's average (the momentum), in [0, 1): a float, or a schedule, for instance
            `OneCycle(...).momentum()`, which the compiled step evaluates where it evaluates that of the rate.
        beta_2: decay of the squared gradient's average, in [0, 1).
        epsilon: added to the denominator, after bias correction; at least 0.
        decay_norm_and_bias: also decay vectors (biases, BatchNorm and LayerNorm scales), as fastai v1 does.
        amsgrad: divide by the largest average of the squared gradient so far (https://arxiv.org/abs/1904.09237),
            as PyTorch's AdamW does.
        name: the optimizer's name.
        **kwargs: `keras.optimizers.Optimizer`'s other arguments (clipping, EMA, gradient accumulation).

    Raises:
        InputError: a value is outside its range, or there is not one multiplier per group; when the optimizer is
            built, as in `fit`: a variable is in no group or in several, or a group has no trainable variable.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 1e-3,
        groups: Sequence[Sequence[str]] | None = None,
        multipliers: Sequence[float] | None = None,
        weight_decay: float | None = 0.01,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float = 0.99,
        epsilon: float = 1e-8,
        decay_norm_and_bias: bool = True,
        amsgrad: bool = False,
        name: str = "layerwise_adamw",
        **kwargs: Any,
    ) -> None:
        if isinstance(beta_1, dict):
            beta_1 = keras.saving.deserialize_keras_object(beta_1)
        if not callable(learning_rate):
            learning_rate = checked_number("learning_rate", learning_rate, "a schedule or at least 0", _is_factor)
        super().__init__(learning_rate, name=name, **kwargs)
        if groups is not None and (isinstance(groups, str) or not groups or any(isinstance(g, str) for g in groups)):
            raise InputError(f"groups: give a list of layer names for each group; got {groups!r}.")
        count = len(groups) if groups is not None else 1
        factors = [1.0] * count if multipliers is None else list(multipliers)
        if len(factors) != count or not all(map(_is_factor, factors)):
            raise InputError(f"multipliers: give {count} numbers of at least 0, one per group; got {multipliers!r}.")
        self.beta_1 = beta_1
        self.beta_2 = checked_number("beta_2", beta_2, "in [0, 1)", _is_decay)
        self.epsilon = checked_number("epsilon", epsilon, "at least 0", _is_factor)
        self.groups = None if groups is None else [list(group) for group in groups]
        self.multipliers = [float(factor) for factor in factors]
        decay = 0 if weight_decay is None else weight_decay
        self.decay = checked_number("weight_decay", decay, "None or at least 0", _is_factor)
        self.decay_norm_and_bias, self.amsgrad = decay_norm_and_bias, amsgrad
        self._at_this_step: tuple[Any, ...] = ()
        self._rate_at_this_step: Any = None
        self._factors_at_this_step: Any = None
        if isinstance(self._learning_rate, keras.Variable):
            # Part of `rates`; as a variable beside them it would give a constant rate a program of its own.
            self._untrack_variable(self._learning_rate)

    @property
    def learning_rate(self) -> Any:
        """The rate at the current step, of a group whose multiplier is 1."""
        if self._rate_at_this_step is not None:
            return self._rate_at_this_step
        return keras.optimizers.Optimizer.learning_rate.fget(self)

    @learning_rate.setter
    def learning_rate(self, value: float | LearningRateSchedule) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, value)
        self._update_rates()

    @property
    def beta_1(self) -> Any:
        """The momentum at the current step: a float, or a traced scalar inside the compiled step."""
        # Not at `iterations`, which counts updates: with gradient accumulation rate and momentum would drift apart.
        return self._beta_1(self._iterations) if callable(self._beta_1) else self._beta_1

    @beta_1.setter
    def beta_1(self, value: float | LearningRateSchedule) -> None:
        self._beta_1 = value if callable(value) else checked_number("beta_1", value, "in [0, 1)", _is_decay)
        self._update_rates()

    @property
    def schedules(self) -> tuple[float | LearningRateSchedule, float | LearningRateSchedule]:
        """Rate and momentum as configured, each a float or a schedule; `learning_rate` is the current step's value."""
        rate = self.get_config()["learning_rate"]
        return keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else rate, self._beta_1

    def __repr__(self) -> str:
        rate, beta_1 = (repr(one) if callable(one) else f"{float(one):.3g}" for one in self.schedules)
        factors = ", ".join(f"{factor:.3g}" for factor in self.multipliers[:8])
        more = f" and {len(self.multipliers) - 8} more" if len(self.multipliers) > 8 else ""
        return (
            f"LayerwiseAdamW: rate {rate[:200]}, times {factors}{more} by layer group\n"
            f"weight decay {self.decay:g}, beta_1 {beta_1[:200]}, beta_2 {self.beta_2:g}"
        )

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Creates the moving averages, after checking that every variable is in exactly one group.

        And `rates`, float32: rate and momentum as `schedules.as_numbers` gives them, then the multipliers. A compiled
        step reads them as state. So one program serves every rate, momentum and multiplier.

        Raises:
            InputError: see the class.
        """
        if self.built:
            return
        self._group_of_variable = self._groups_of(var_list)
        given = self._numbers()
        self.rates = self.add_variable(
            given.shape, lambda shape, dtype: ops.cast(given, dtype), "float32", name="rates"
        )
        super().build(var_list)
        self.momentums, self.velocities = self.add_optimizer_variables(var_list, ["momentum", "velocity"])
        self.peaks = self.add_optimizer_variables(var_list, "velocity_hat") if self.amsgrad else []

    def _numbers(self) -> np.ndarray:
        schedules = self._learning_rate, self._beta_1
        described = [as_numbers(schedule) or [0.0] * NUMBERS for schedule in schedules]
        return np.array([*described[0], *described[1], *self.multipliers], np.float32)

    def _update_rates(self) -> None:
        if self.built:
            self.rates.assign(self._numbers())

    @property
    def rates_are_state(self) -> bool:
        """Whether a compiled step reads rate and momentum as state; false with a schedule that is not kbaseline's."""
        return None not in (as_numbers(self._learning_rate), as_numbers(self._beta_1))

    def _groups_of(self, variables: Sequence[keras.Variable]) -> list[int]:
        if self.groups is None:
            return [0] * len(variables)
        sets = [set(group) for group in self.groups]

        def members_by(names_of: Sequence[set[str]]) -> list[list[int]]:
            return [[index for index, group in enumerate(sets) if group & names] for names in names_of]

        names = [set(variable.path.split("/")[:-1]) for variable in variables]
        members = members_by(names)
        if not all(members) or len({index for m in members for index in m}) < len(sets):
            held = _holders(variables, set().union(*sets))
            members = members_by([path | holders for path, holders in zip(names, held, strict=True)])
        _refuse("variables in no group", [v.path for v, m in zip(variables, members, strict=True) if not m])
        _refuse("variables in several groups", [v.path for v, m in zip(variables, members, strict=True) if len(m) > 1])
        used = {m[0] for m in members}
        idle = [", ".join(self.groups[i][:3]) or "(empty)" for i in range(len(sets)) if i not in used]
        _refuse("groups without a trainable variable", idle)
        return [m[0] for m in members]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates all variables by one step."""
        # Computed once, not per variable: a ResNet50 has 220, and tracing the momentum schedule costs as much as the
        # rest of the update.
        numbers = self.rates if self.built else self._numbers()
        rate, beta_1 = self.learning_rate, self.beta_1
        if as_numbers(self._learning_rate) is not None:
            rate = value_at(numbers[:NUMBERS], self._iterations)
        if as_numbers(self._beta_1) is not None:
            beta_1 = value_at(numbers[NUMBERS : 2 * NUMBERS], self._iterations)
        step, beta_1 = ops.cast(self.iterations + 1, "float32"), ops.cast(beta_1, "float32")
        self._at_this_step = beta_1, 1 - ops.power(beta_1, step), 1 - ops.power(ops.cast(self.beta_2, "float32"), step)
        self._rate_at_this_step = rate
        self._factors_at_this_step = [numbers[2 * NUMBERS + group] for group in range(len(self.multipliers))]
        try:
            super().apply(grads, trainable_variables)
        finally:
            # Tracers of this compilation must not be kept.
            self._at_this_step, self._rate_at_this_step, self._factors_at_this_step = (), None, None

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable."""
        index = self._get_variable_index(variable)
        factor = ops.cast(self._factors_at_this_step[self._group_of_variable[index]], variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) * factor
        gradient = ops.cast(gradient, variable.dtype)
        beta_1, correct_m, correct_v = (ops.cast(scalar, variable.dtype) for scalar in self._at_this_step)
        m, v = self.momentums[index], self.velocities[index]
        self.assign(m, m + (gradient - m) * (1 - beta_1))
        self.assign(v, v + (ops.square(gradient) - v) * (1 - self.beta_2))
        if self.amsgrad:
            peak = self.peaks[index]
            self.assign(peak, ops.maximum(peak, v))
            v = peak
        decays = (self.decay_norm_and_bias or len(variable.shape) > 1) and self._use_weight_decay(variable)
        kept = variable * (1 - rate * self.decay) if decays else variable.value
        size = rate / correct_m
        self.assign(variable, kept - size * m / (ops.sqrt(v / correct_v) + self.epsilon))

    def save_own_variables(self, store: Any) -> None:
        """Saves the state, but not `rates`, which the configuration gives."""
        for index, variable in enumerate(optimizer_state(self)):
            store[str(index)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; files of version 0.1 hold a constant rate after the count of steps."""
        state, arrays = optimizer_state(self), [store[str(index)] for index in range(len(store.keys()))]
        if len(arrays) == len(state) + 1:
            del arrays[1]
        if len(arrays) != len(state):
            warnings.warn(
                f"{self.name}: the file's state is of another optimizer; the state starts empty.", stacklevel=2
            )
            return
        for variable, array in zip(state, arrays, strict=True):
            variable.assign(array)

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation; a momentum schedule is kept as a schedule."""
        beta_1 = self._beta_1
        return {
            **super().get_config(),
            "groups": self.groups,
            "multipliers": self.multipliers,
            "weight_decay": self.decay,
            "beta_1": keras.saving.serialize_keras_object(beta_1) if callable(beta_1) else float(beta_1),
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "decay_norm_and_bias": self.decay_norm_and_bias,
            "amsgrad": self.amsgrad,
        }


def _is_factor(number: object) -> bool:
    return isinstance(number, numbers.Real) and 0 <= float(number) < math.inf


def _is_decay(number: float) -> bool:
    return 0 <= number < 1


def _holders(variables: Sequence[keras.Variable], names: set[str]) -> list[set[str]]:
    """For each variable, which of `names` are those of layers and models that hold it.

    An optimizer is given variables and not their model, and the path of a variable names the models around its layer
    only if the layer was built inside them: in `Sequential([Dense(4)])`, but not in what `keras.applications` gives,
    nor after reloading. So the layers themselves are asked, all that this process has.
    """
    number = {id(variable): index for index, variable in enumerate(variables)}
    held: list[set[str]] = [set() for _ in variables]
    for layer in gc.get_objects():
        # Not isinstance, which asks for `__class__`: a lazy proxy would import or connect.
        if issubclass(type(layer), keras.Layer) and getattr(layer, "name", None) in names:
            for variable in layer.variables:
                if id(variable) in number:
                    held[number[id(variable)]].add(layer.name)
    return held


def _refuse(what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(f"LayerwiseAdamW groups: {what}: {shown}. Every variable needs exactly one group.")


def clone_optimizer(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], **changes: Any
) -> keras.optimizers.Optimizer:
    """Copies an optimizer with its state and changes some arguments; the original does not change.

    Keras cannot set the rate of an optimizer that has a schedule, and betas are constants of the compiled step. A copy
    that is compiled again avoids both.

    Args:
        optimizer: the optimizer to copy, built or not.
        variables: the variables it trains, e.g. `model.trainable_variables`.
        **changes: constructor arguments to change, e.g. `learning_rate=0.1`.

    Returns:
        The copy, built for `variables`, with the state of `optimizer` if that is built.

    Raises:
        InputError: the optimizer has no such argument, for instance because it wraps another one (loss scaling).
    """
    config = optimizer.get_config()
    if missing := sorted(set(changes) - set(config)):
        raise InputError(f"optimizer {optimizer.name!r}: has no argument {', '.join(missing)}; give a plain optimizer.")
    copy = type(optimizer).from_config({**config, **changes})
    # An exclusion is no argument.
    if excluded := [variable for variable in variables if not optimizer._use_weight_decay(variable)]:
        copy.exclude_from_weight_decay(excluded)
    copy.build(variables)
    if optimizer.built:
        # Through the host: the compiled step overwrites its input buffers, so the copy needs buffers of its own, and a
        # copy on the device would compile a program for every shape.
        for new, old in zip(optimizer_state(copy), optimizer_state(optimizer), strict=True):
            new.assign(ops.convert_to_numpy(old).copy())
    return copy


def optimizer_state(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that training changes, in Keras' order: not those that hold arguments, such as the rate."""
    arguments = optimizer.learning_rate, getattr(optimizer, "rates", None)
    return [variable for variable in optimizer.variables if all(variable is not held for held in arguments)]


def share_step(one: keras.optimizers.Optimizer, other: keras.optimizers.Optimizer) -> bool:
    """Whether a compiled step of one optimizer serves the other, a clone with other rates, momenta or multipliers."""
    return all(isinstance(each, LayerwiseAdamW) and each.rates_are_state for each in (one, other))
