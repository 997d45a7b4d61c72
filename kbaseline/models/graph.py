"""The graph of a functional or sequential model with one input and one output, nested models taken apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from kbaseline.errors import InputError

_SAME = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "ExpandDims", "Dropout", "Average"}
"""Operations after which probabilities are still probabilities, and logits still logits."""

_LINEAR = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Concatenate", "Rescaling", "LogSoftmax"}
_LINEAR |= {"GlobalAveragePooling2D", "GlobalMaxPooling2D", "AveragePooling2D", "MaxPooling2D"}
"""Further operations after which logits are still logits."""


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        path: names of the nested models around it and its own, joined by "/".
        operation: a `keras.Layer`, a `keras.Operation`, or a `_Door` of a nested model.
        arguments: positional and keyword arguments, as given.
        outputs: Keras tensors.
    """

    path: str
    operation: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: tuple[Any, ...]

    @property
    def is_door(self) -> bool:
        """Whether it leads into a nested model or out of one and computes nothing."""
        return isinstance(self.operation, _Door)

    @property
    def inputs(self) -> list[Any]:
        """The Keras tensors among the arguments."""
        return [one for one in keras.tree.flatten(self.arguments) if isinstance(one, keras.KerasTensor)]


class _Door:
    """Leads from a tensor outside a nested model to its counterpart inside, or back."""

    name = "door"

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __call__(self, values: Any) -> Any:
        return keras.ops.cast(values, self.dtype)  # as a nested model does with its input


@dataclass(frozen=True)
class Graph:
    """All calls from one input to one output, in order.

    Attributes:
        input: Keras tensor.
        output: Keras tensor.
        calls: no call of a nested model that was taken apart.
        named: path and first output of every call, and of every nested model after the calls in it.
    """

    input: Any
    output: Any
    calls: tuple[Call, ...]
    named: tuple[tuple[str, Any], ...]

    def maker(self, tensor: Any) -> Call | None:
        """The call that made a tensor; None for the input."""
        return next((call for call in self.calls if any(made is tensor for made in call.outputs)), None)

    def part(self, start: Any, end: Any) -> "Part":
        """The calls between two tensors, as a layer.

        Raises:
            ValueError: `end` depends on the input in another way than through `start`.
        """
        wanted, needed = {id(end)} - {id(start)}, []
        for call in reversed(self.calls):
            if any(id(made) in wanted for made in call.outputs):
                needed.append(call)
                wanted |= {id(one) for one in call.inputs} - {id(start)}
        if id(self.input) in wanted:
            raise ValueError("the end depends on the input in another way than through the start")
        return Part(needed[::-1], start, end)


class Part(layers.Layer):  # type: ignore[misc]
    """Calls of a model as a layer of their own. A `keras.Model` would not do: in it every name must be unique."""

    def __init__(self, calls: Sequence[Call], start: Any, end: Any) -> None:
        super().__init__(autocast=False, dtype="float32")
        self._calls, self._start, self._end = _Opaque(calls), id(start), _Opaque(end)
        self.within = [call.operation for call in calls if isinstance(call.operation, layers.Layer)]

    def call(self, values: Any, training: bool | None = None) -> Any:
        """The value of `end`, given that of `start`."""
        known = {self._start: values}

        def given(one: Any) -> Any:
            return known[id(one)] if isinstance(one, keras.KerasTensor) else one

        for call in self._calls.held:
            args, kwargs = keras.tree.map_structure(given, call.arguments)
            outputs = keras.tree.flatten(call.operation(*args, **kwargs))
            known |= {id(made): value for made, value in zip(call.outputs, outputs, strict=True)}
        return known[id(self._end.held)]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of `end`."""
        return tuple(self._end.held.shape)


class _Opaque:
    """Holds what Keras must not take for a part of a layer."""

    def __init__(self, held: Any) -> None:
        self.held = held


def read_graph(model: keras.Model) -> Graph:
    """The graph of a model on new tensors; its layers, and so its variables, are the model's own.

    A `layer.output` would not do: it may be a tensor inside a nested model, or of an earlier graph of the layer.

    Raises:
        InputError: the model is neither functional nor sequential, was not built, or has several inputs or outputs, or
            an output that is not `(batch, classes)`.
    """
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    if not inputs or not _is_plain(model):
        raise InputError(
            f"model {model.name!r}: must be a functional or sequential model with an input; it has no graph. Give a "
            "Sequential a keras.Input; wrap a subclass's layers in keras.Model(inputs, outputs)."
        )
    if (len(inputs), len(outputs)) != (1, 1):
        raise InputError(
            f"model {model.name!r}: must have one input and one output; it has {len(inputs)} and {len(outputs)}. "
            "Choose with keras.Model(input, output)."
        )
    if len(outputs[0].shape) != 2:
        raise InputError(
            f"model {model.name!r}: must output (batch, classes); its output has the shape {tuple(outputs[0].shape)}."
        )
    calls: list[Call] = []
    named: list[tuple[str, Any]] = []
    start, end = _follow(model, "", calls, named)
    return Graph(start, end, tuple(calls), tuple(named))


def _follow(model: keras.Model, prefix: str, calls: list[Call], named: list[tuple[str, Any]]) -> tuple[Any, Any]:
    """Calls every operation of a model on new tensors, and records it; returns the new input and output."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        path, outputs = prefix + operation.name, operation(*args, **kwargs)
        made = tuple(keras.tree.flatten(outputs))
        if _can_be_opened(operation, args, kwargs):
            place = len(calls)
            start, end = _follow(operation, f"{path}/", calls, named)
            calls.insert(place, Call(path, _Door(start.dtype), (args, {}), (start,)))
            calls.append(Call(path, _Door(end.dtype), ((end,), {}), made))
        else:
            calls.append(Call(path, operation, (args, kwargs), made))
        named.append((path, made[0]))
        return outputs

    one = keras.Model(model.inputs[0], model.outputs[0])
    copy = keras.models.clone_model(one, clone_function=lambda operation: operation, call_function=call)
    return copy.inputs[0], copy.outputs[0]


def _is_plain(model: keras.Model) -> bool:
    """Whether the model computes what its graph says: a subclass may have a `call` of its own."""
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    return type(model).call is type(keras.Model(model.inputs, model.outputs)).call


def _can_be_opened(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is that of a nested model, in inference mode, whose graph stands for it."""
    if not isinstance(operation, keras.Model) or len(args) != 1 or not isinstance(args[0], keras.KerasTensor):
        return False
    if not all(value is None or value is False for value in kwargs.values()):  # `training=False`, `mask=None`
        return False
    inputs, outputs = (getattr(operation, name, None) or [] for name in ("inputs", "outputs"))
    return len(inputs) == len(outputs) == 1 and _is_plain(operation)


def output_kind(graph: Graph, tensor: Any = None) -> str | None:
    """`"probabilities"` after a softmax or sigmoid, `"logits"` after a layer without activation, None if unknown."""
    call = graph.maker(graph.output if tensor is None else tensor)
    if call is None or isinstance(call.operation, keras.Model | layers.Wrapper):
        return None
    operation, activation = call.operation, _activation(call.operation)
    if call.is_door:
        return output_kind(graph, call.inputs[0])
    if not type(operation).__module__.startswith("keras."):
        return None
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    if activation not in (None, "linear", "log_softmax"):
        return None
    if getattr(operation, "weights", None):
        return "logits"
    kinds, name = {output_kind(graph, one) for one in call.inputs}, type(operation).__name__
    same = name in _SAME or (isinstance(operation, layers.Activation) and activation == "linear")
    if len(kinds) == 1 and same:
        return kinds.pop()
    return "logits" if kinds == {"logits"} and (name in _LINEAR or activation == "log_softmax") else None


def without_activation(graph: Graph) -> tuple[Any, Any]:
    """The output before the softmax or sigmoid that it ends in, if it does; else the output.

    Returns:
        A Keras tensor, and the layer that makes it the output if that is all it lacks: one whose own activation is the
        softmax or sigmoid. Otherwise None.
    """
    tensor = graph.output
    while (call := graph.maker(tensor)) is not None and len(call.inputs) == 1:
        before = call.inputs[0]
        if _activation(call.operation) in ("softmax", "sigmoid"):
            return before, call.operation if getattr(call.operation, "weights", None) else None
        if output_kind(graph, tensor) != "probabilities" or tuple(before.shape) != tuple(tensor.shape):
            break
        tensor = before
    return graph.output, None


def takes_bytes(graph: Graph) -> bool:
    """Whether a layer rescales values of 0-255 to about 1."""
    rescaling = (call.operation for call in graph.calls if isinstance(call.operation, layers.Rescaling))
    return any(0 < np.max(operation.scale) < 0.02 for operation in rescaling)


def _activation(operation: Any) -> str | None:
    """The activation by name: that of a layer, or the operation itself."""
    if (name := type(operation).__name__.lower()) in ("softmax", "sigmoid"):
        return name
    function = getattr(operation, "activation", None)
    return None if function is None else getattr(function, "__name__", "unknown")
