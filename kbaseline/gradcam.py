"""Grad-CAM: which regions of an image support a class.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization"
(https://arxiv.org/abs/1610.02391), equations 1 and 2. Works on any functional or sequential Keras model on JAX.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kbaseline.errors import InputError


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: Sequence[int] | np.ndarray, layer: str | None = None
) -> np.ndarray:
    """Heatmaps of the regions that support a class, one per image, at the resolution of a feature map.

    Each channel of the feature map is weighted by the gradient of the class score, averaged over all positions. The
    weighted channels are summed and negative values are set to 0 (equations 1 and 2 of
    https://arxiv.org/abs/1610.02391). The score is the logit, as in the paper: a softmax at the end is skipped.

    >>> from kbaseline.gradcam import grad_cam
    >>> import keras
    >>> import numpy as np
    >>> images = np.random.default_rng(0).uniform(0, 1, (5, 16, 16, 3)).astype("float32")
    >>> layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    >>> heat = grad_cam(model, images, classes=model.predict(images, verbose=0).argmax(axis=1))
    >>> print(heat.shape, heat.dtype)
    (5, 14, 14) float32

    Args:
        model: a model from images to logits or probabilities `(batch, classes)`, channels last; it is not changed.
        images: `(number, height, width, channels)`, the model's input, computed as one batch.
        classes: integers `(number,)`, the class to explain in each image.
        layer: name of the layer that outputs the feature map; default: the last one with more than one position.

    Returns:
        Float32 `(number, rows, columns)`, 0 to 1: each map divided by its highest value; all 0 if no region supports
        the class.

    Raises:
        InputError: the model has no graph, the layer does not exist or outputs no feature map, or `classes` has a
            wrong shape, dtype or value.
    """
    asked = np.asarray(classes)
    if asked.shape != (len(images),) or not np.issubdtype(asked.dtype, np.integer):
        raise InputError(f"classes: must be {len(images)} integers, one per image; got {asked.dtype} {asked.shape}.")
    body, head = _halves(model, layer)
    known = head.output_shape[-1]
    if len(asked) and not (asked.min() >= 0 and asked.max() < known):
        raise InputError(f"classes: must lie in 0 to {known - 1}; got {asked.min()} to {asked.max()}.")
    if not len(asked):
        return np.zeros((0, 1, 1), np.float32)
    heat: np.ndarray = np.asarray(_program(body, head)(_state(body), _state(head), jnp.asarray(images), asked))
    scaled: np.ndarray = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return scaled


def _program(body: keras.Model, head: keras.Model) -> Any:
    """The compiled equations: (state of body, state of head, images, classes) -> unscaled maps."""

    def run(part: keras.Model, state: Any, values: Any) -> Any:
        return part.stateless_call(*state, values, training=False)[0]

    def score(features: Any, state: Any, classes: Any) -> Any:
        logits = run(head, state, features)
        # At inference images are independent, so the gradient of the sum contains the gradient of every image.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    def maps(body_state: Any, head_state: Any, images: Any, classes: Any) -> Any:
        features = run(body, body_state, images).astype("float32")
        weights = jax.grad(score)(features, head_state, classes).mean(axis=(1, 2))
        return jax.nn.relu(jnp.einsum("nhwc,nc->nhw", features, weights))

    return jax.jit(maps)


def _state(model: keras.Model) -> tuple[list[Any], list[Any]]:
    """Values of a model's variables, in the form `stateless_call` takes."""
    return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]


def _halves(model: keras.Model, layer: str | None) -> tuple[keras.Model, keras.Model]:
    """Splits the model into images -> feature map and feature map -> logits; both share its variables."""
    if not getattr(model, "inputs", None):
        raise InputError(f"model {model.name!r}: must be functional or sequential and have an input; it has no graph.")
    calls: list[tuple[Any, list[Any], list[Any]]] = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        calls.append((operation, keras.tree.flatten((args, kwargs)), keras.tree.flatten(outputs)))
        return outputs

    # A new graph of the same layers, whose tensors `call` records: `layer.output` could be a tensor inside a nested
    # model or of another graph.
    graph = keras.models.clone_model(
        keras.Model(model.inputs, model.outputs), clone_function=lambda operation: operation, call_function=call
    )
    tensors = [(operation.name, outputs[0]) for operation, _, outputs in reversed(calls)]
    name, features = _feature_map(tensors, layer)
    last, before = next((op, args[0]) for op, args, outputs in calls if any(o is graph.outputs[0] for o in outputs))
    try:
        return keras.Model(graph.inputs, features), keras.Model(features, _logits(last, before, graph.outputs[0]))
    except ValueError:
        raise InputError(
            f"layer {name!r}: the output must depend on the image only through this layer; name a later one."
        ) from None


def _feature_map(tensors: list[tuple[str, Any]], layer: str | None) -> tuple[str, Any]:
    """Picks the feature map `(batch, rows, columns, channels)` from pairs (layer name, output), last layer first."""
    maps = [(name, tensor) for name, tensor in tensors if len(tensor.shape) == 4]
    if layer is None:
        maps = [(name, tensor) for name, tensor in maps if tuple(tensor.shape[1:3]) != (1, 1)]
    found = next((one for one in maps if layer in (None, one[0])), None)
    if found is None:
        names = ", ".join(name for name, _ in reversed(maps)) or "none"
        raise InputError(
            f"layer {layer or 'with a feature map'!r}: must give (batch, rows, columns, channels); these do: {names}."
        )
    return found


def _logits(last: Any, before: Any, output: Any) -> Any:
    """The output of the last layer for the input `before`, without its softmax."""
    if not (isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax):
        return output
    if isinstance(last, keras.layers.Softmax | keras.layers.Activation):
        return before
    linear = type(last).from_config({**last.get_config(), "activation": "linear"})
    scores = linear(before)
    linear.set_weights(last.get_weights())
    return scores
