"""AdamW with a learning-rate multiplier per layer group and a momentum that can follow a schedule.

I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", https://arxiv.org/abs/1711.05101; per-layer
rates as in J. Howard and S. Ruder, "Universal language model fine-tuning", https://arxiv.org/abs/1801.06146.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kbaseline.errors import InputError


def layer_group_lrs(max_lr: float | slice | Sequence[float | None], groups: int) -> list[float]:
    """Reads `max_lr` as one rate for each layer group, first group first, as fastai v1's `Learner.lr_range` does.

    >>> from kbaseline.optimizer import layer_group_lrs
    >>> [f"{rate:g}" for rate in layer_group_lrs(slice(1e-6, 1e-4), groups=3)]
    ['1e-06', '1e-05', '0.0001']

    Args:
        max_lr: a float, the same everywhere; `slice(lo, hi)` or `(lo, hi)`, spread geometrically; or `slice(hi)` or
            `(None, hi)`, `hi` for the last group and a tenth of it for the others. Rates are above 0.
        groups: number of layer groups, at least 1.

    Returns:
        `groups` rates.

    Raises:
        InputError: rates that are not positive, or a pair of another shape.
    """
    if isinstance(max_lr, slice):
        lo, hi = max_lr.start, max_lr.stop
    elif isinstance(max_lr, Sequence):
        if len(max_lr) != 2:
            raise InputError(f"max_lr: give one rate, slice(lo, hi) or [lo, hi]; got {max_lr!r}.")
        lo, hi = max_lr
    else:
        lo = hi = max_lr
    if hi is None or hi <= 0 or (lo is not None and lo <= 0):
        raise InputError(f"max_lr: rates must be positive; got {max_lr!r}.")
    if lo is None:
        return [hi / 10] * (groups - 1) + [hi]
    if groups == 1:
        return [float(hi)]
    return [float(lo * (hi / lo) ** (index / (groups - 1))) for index in range(groups)]


spread_rates = layer_group_lrs
"""The name it had up to 0.1."""


@keras.saving.register_keras_serializable(package="kbaseline")
class LayerwiseAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """AdamW whose layer groups learn at different rates, and whose `beta_1` may be a schedule.

    A group is a list of layer names; a variable belongs to the group that names a part of its path, which holds for
    nested models, for `Sequential`, and after reloading. The rate of group g is `learning_rate * multipliers[g]`.
    The step is PyTorch's: decay first, `p -= p * weight_decay * rate`, on every variable (biases and BatchNorm too),
    then `p -= rate * m̂ / (sqrt(v̂) + epsilon)` with both averages corrected for their bias by the current betas.
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
        learning_rate: a float or a schedule: the rate of a group whose multiplier is 1.
        groups: layer names, group by group; None for a single group of everything.
        multipliers: one factor a group, at least 0; None for all 1.
        weight_decay: decoupled decay: the fraction of itself that a variable loses in a step, over its group's rate.
        beta_1: decay of the gradient's average (the momentum), in [0, 1): a float, or a schedule read at `iterations`
            inside the compiled step, for instance `OneCycle(...).momentum()`.
        beta_2: decay of the squared gradient's average, in [0, 1).
        epsilon: added to the denominator, after bias correction.
        decay_norm_and_bias: whether vectors (biases, BatchNorm and LayerNorm scales) decay too; fastai v1 does.
        name: the optimizer's name.
        **kwargs: `keras.optimizers.Optimizer`'s other arguments (clipping, EMA, gradient accumulation).

    Raises:
        InputError: multipliers that do not fit the groups or are negative; and when built, as `fit` does, a variable
            in no group or in several, or a group without a trainable variable.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 1e-3,
        groups: Sequence[Sequence[str]] | None = None,
        multipliers: Sequence[float] | None = None,
        weight_decay: float = 0.01,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float = 0.99,
        epsilon: float = 1e-8,
        decay_norm_and_bias: bool = True,
        name: str = "layerwise_adamw",
        **kwargs: Any,
    ) -> None:
        if isinstance(beta_1, dict):
            beta_1 = keras.saving.deserialize_keras_object(beta_1)
        super().__init__(learning_rate, name=name, **kwargs)
        count = len(groups) if groups is not None else 1
        factors = [1.0] * count if multipliers is None else [float(factor) for factor in multipliers]
        if len(factors) != count or min(factors) < 0:
            raise InputError(f"multipliers: give {count} numbers of at least 0, one a group; got {multipliers!r}.")
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.groups = None if groups is None else [list(group) for group in groups]
        self.multipliers = factors
        self.decay = float(weight_decay)
        self.decay_norm_and_bias = decay_norm_and_bias
        self._at_this_step: tuple[Any, ...] = ()

    @property
    def beta_1(self) -> Any:
        """The momentum at the current step: a float, or a traced scalar inside the compiled step."""
        return self._beta_1(self.iterations) if callable(self._beta_1) else self._beta_1

    @beta_1.setter
    def beta_1(self, value: float | LearningRateSchedule) -> None:
        self._beta_1 = value

    @property
    def schedules(self) -> tuple[float | LearningRateSchedule, float | LearningRateSchedule]:
        """Rate and momentum as they were given, each a float or a schedule; `learning_rate` is the one of this step."""
        rate = self.get_config()["learning_rate"]
        return keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else rate, self._beta_1

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Makes the averages, after checking that groups and variables match one to one.

        Raises:
            InputError: see the class.
        """
        if self.built:
            return
        self._multiplier_of_variable = self._multipliers_of(var_list)
        super().build(var_list)
        self.momentums, self.velocities = self.add_optimizer_variables(var_list, ["momentum", "velocity"])

    def _multipliers_of(self, variables: Sequence[keras.Variable]) -> list[float]:
        if self.groups is None:
            return [self.multipliers[0]] * len(variables)
        sets = [set(group) for group in self.groups]
        members = [
            [index for index, names in enumerate(sets) if names.intersection(variable.path.split("/")[:-1])]
            for variable in variables
        ]
        _refuse("variables that no group names", [v.path for v, m in zip(variables, members, strict=True) if not m])
        _refuse("variables in several groups", [v.path for v, m in zip(variables, members, strict=True) if len(m) > 1])
        used = {m[0] for m in members}
        idle = [", ".join(self.groups[i][:3]) or "(empty)" for i in range(len(sets)) if i not in used]
        _refuse("groups that match no trainable variable", idle)
        return [self.multipliers[m[0]] for m in members]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step of every variable."""
        # Once and not for every variable: a ResNet50 has 220, and tracing the momentum's schedule costs as much as the
        # rest of the step's update.
        step, beta_1 = ops.cast(self.iterations + 1, "float32"), ops.cast(self.beta_1, "float32")
        self._at_this_step = beta_1, 1 - ops.power(beta_1, step), 1 - ops.power(ops.cast(self.beta_2, "float32"), step)
        super().apply(grads, trainable_variables)
        self._at_this_step = ()  # while the step is compiled these are tracers, of no use later

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """One variable's step."""
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._multiplier_of_variable[index]
        gradient = ops.cast(gradient, variable.dtype)
        beta_1, correct_m, correct_v = (ops.cast(scalar, variable.dtype) for scalar in self._at_this_step)
        m, v = self.momentums[index], self.velocities[index]
        self.assign(m, m + (gradient - m) * (1 - beta_1))
        self.assign(v, v + (ops.square(gradient) - v) * (1 - self.beta_2))
        decays = self.decay_norm_and_bias or len(variable.shape) > 1
        kept = variable * (1 - rate * self.decay) if decays else variable.value
        size = rate / correct_m
        self.assign(variable, kept - size * m / (ops.sqrt(v / correct_v) + self.epsilon))

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
        }


def _refuse(what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(f"LayerwiseAdamW groups: {what}: {shown}. Every variable needs exactly one group.")


def clone_optimizer(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], **changes: Any
) -> keras.optimizers.Optimizer:
    """A copy that goes on from where `optimizer` stands, with some arguments changed; the original is not touched.

    Keras refuses to give a rate to an optimizer that has a schedule, and bakes betas into the compiled step. A copy
    that is compiled anew has neither problem.

    Args:
        optimizer: built or not.
        variables: what both train, e.g. `model.trainable_variables`.
        **changes: constructor arguments that differ, e.g. `learning_rate=0.1`.

    Raises:
        InputError: an optimizer that wraps another one (loss scaling), whose rate is not its own argument.
    """
    config = optimizer.get_config()
    if missing := sorted(set(changes) - set(config)):
        raise InputError(f"optimizer {optimizer.name!r}: has no argument {', '.join(missing)}; give a plain optimizer.")
    copy = type(optimizer).from_config({**config, **changes})
    copy.build(variables)
    if optimizer.built:
        # The rate, where it is a variable, is an argument and not state. The compiled step overwrites the buffers it
        # is given, so the copy needs its own.
        for new, old in zip(_state(copy), _state(optimizer), strict=True):
            new.assign(ops.copy(old.value))
    return copy


def _state(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    rate = optimizer.learning_rate
    return [variable for variable in optimizer.variables if variable is not rate]
