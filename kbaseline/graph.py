"""The graph of a functional or sequential model with one input and one output, nested models taken apart."""

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
        operation: a `keras.Layer` or a `keras.Operation`.
        inputs: Keras tensors.
        outputs: Keras tensors.
    """

    path: str
    operation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


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
    start = keras.Input(batch_shape=inputs[0].shape, dtype=inputs[0].dtype, name=inputs[0].name)
    return Graph(start, _follow(model, start, "", calls, named), tuple(calls), tuple(named))


def _follow(model: keras.Model, start: Any, prefix: str, calls: list[Call], named: list[tuple[str, Any]]) -> Any:
    """Calls every operation of a model, from the tensor `start`; returns the new output."""
    last = layers.Identity()
    found = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation is last:
            found.append(args[0])
            return args[0]
        path = prefix + operation.name
        if _can_be_opened(operation, args, kwargs):
            output = _follow(operation, args[0], f"{path}/", calls, named)
            named.append((path, output))
            return output
        outputs = operation(*args, **kwargs)
        tensors = tuple(one for one in keras.tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor))
        made = tuple(keras.tree.flatten(outputs))
        calls.append(Call(path, operation, tensors, made))
        named.append((path, made[0]))
        return outputs

    marked = keras.Model(model.inputs[0], last(model.outputs[0]))
    keras.models.clone_model(
        marked, input_tensors=start, clone_function=lambda operation: operation, call_function=call
    )
    return found[0]


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


def without_activation(graph: Graph) -> tuple[Any, dict[int, keras.Variable]]:
    """The output before the softmax or sigmoid that it ends in, if it does; else the output.

    Returns:
        The Keras tensor, and by `id` of each variable that had to be copied, the model's own variable.
    """
    tensor = graph.output
    while (call := graph.maker(tensor)) is not None and len(call.inputs) == 1:
        if _activation(call.operation) in ("softmax", "sigmoid"):
            break
        if output_kind(graph, tensor) != "probabilities" or tuple(call.inputs[0].shape) != tuple(tensor.shape):
            return graph.output, {}
        tensor = call.inputs[0]
    else:
        return graph.output, {}
    operation = call.operation
    if not getattr(operation, "weights", None):
        return call.inputs[0], {}
    linear = type(operation).from_config({**operation.get_config(), "activation": "linear"})
    scores = linear(call.inputs[0])
    return scores, {id(mine): own for mine, own in zip(linear.variables, operation.variables, strict=True)}


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
