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

from kbaseline.devices.programs import kept, values
from kbaseline.errors import InputError
from kbaseline.models.graph import Graph, read_graph, without_activation


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: Sequence[int] | np.ndarray, layer: str | None = None
) -> np.ndarray:
    """Heatmaps of the regions that support a class, one per image, at the resolution of a feature map.

    Each channel of the feature map is weighted by the gradient of the class score, averaged over all positions. The
    weighted channels are summed and negative values are set to 0 (equations 1 and 2 of
    https://arxiv.org/abs/1610.02391). The score is the logit, as in the paper: a softmax or sigmoid at the end is
    skipped.

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
        model: a functional or sequential model from images to logits or probabilities `(batch, classes)`, channels
            last; its variables are not changed. The compiled program is kept as long as the model.
        images: `(number, height, width, channels)`, the model's input, computed as one batch.
        classes: integers `(number,)`, the class to explain in each image.
        layer: name of the layer that outputs the feature map, also inside a nested model; `"outer/inner"` where two
            have one name. Default: the last one with more than one position.

    Returns:
        Float32 `(number, rows, columns)`, 0 to 1: each map divided by its highest value; all 0 if no region supports
        the class.

    Raises:
        InputError: the model has no graph, or several inputs or outputs; the layer does not exist or outputs no
            feature map; `images` or `classes` have a wrong shape, dtype or value; or Keras' backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise InputError(
            f"grad_cam: works on Keras' JAX backend, and Keras uses {keras.backend.backend()!r}; set KERAS_BACKEND=jax "
            "before Keras is imported."
        )
    pixels, asked = _checked(images), np.asarray(classes)
    if asked.shape != (len(pixels),) or not np.issubdtype(asked.dtype, np.integer):
        raise InputError(f"classes: must be {len(pixels)} integers, one per image; got {asked.dtype} {asked.shape}.")
    outputs = tuple(getattr(model, "outputs", None) or ())
    # The tensors stand in the value too, so that their ids stay theirs.
    program = kept(model, "grad_cam", (layer, *map(id, outputs)), lambda: (_Maps(model, layer), outputs))[0]
    known = program.classes
    if len(asked) and not (asked.min() >= 0 and asked.max() < known):
        raise InputError(f"classes: must lie in 0 to {known - 1}; got {asked.min()} to {asked.max()}.")
    if not len(asked):
        return np.zeros((0, 1, 1), np.float32)
    heat: np.ndarray = np.asarray(program(model, pixels, asked))
    scaled: np.ndarray = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return scaled


def _checked(images: Any) -> np.ndarray:
    try:
        pixels = np.asarray(images)
    except ValueError:
        raise InputError("images: must be one array, all of one size; got images of several sizes.") from None
    if pixels.ndim != 4:
        raise InputError(f"images: must be (number, height, width, channels); got {pixels.shape}.")
    return pixels


class _Maps:
    """The compiled equations of one model and layer."""

    def __init__(self, model: keras.Model, layer: str | None) -> None:
        graph = read_graph(model)
        name, features = _feature_map(graph, layer)
        scores, last = without_activation(graph)
        try:
            self._body, self._head = graph.part(graph.input, features), graph.part(features, scores)
        except ValueError:
            raise InputError(
                f"layer {name!r}: the output must depend on the image only through this layer; name a later one."
            ) from None
        self._last: Any = None
        own = {id(variable): variable for part in (self._body, self._head) for variable in part.variables}
        self._own, self._used = list(own.values()), list(own.values())
        if last is not None:
            self._last = type(last).from_config({**last.get_config(), "activation": "linear"})
            self._last.build(scores.shape)
            # The copy computes with the values that the layer has at the time.
            self._own += last.variables
            self._used += self._last.variables
        self._program = jax.jit(self._maps)
        self.classes, self._dtype = graph.output.shape[-1], graph.input.dtype

    def __call__(self, model: keras.Model, images: np.ndarray, classes: np.ndarray) -> Any:
        """Unscaled maps `(number, rows, columns)`."""
        return self._program(values(model, self._own), jnp.asarray(images), classes)

    def _maps(self, state: list[Any], images: Any, classes: Any) -> Any:
        def score(features: Any) -> Any:
            logits = self._head(features, training=False)
            logits = logits if self._last is None else self._last(logits)
            # At inference images are independent, so the gradient of the sum contains the gradient of every image.
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        with keras.StatelessScope(state_mapping=list(zip(self._used, state, strict=True))):
            features = self._body(images.astype(self._dtype), training=False).astype("float32")
            weights = jax.grad(score)(features).mean(axis=(1, 2))
            return jax.nn.relu(jnp.einsum("nhwc,nc->nhw", features, weights))


def _feature_map(graph: Graph, layer: str | None) -> tuple[str, Any]:
    """Picks the feature map `(batch, rows, columns, channels)`: that of a layer by name or path, or the last one."""
    maps = [(path, tensor) for path, tensor in graph.named if len(tensor.shape) == 4]
    if layer is None:
        found = [one for one in maps if tuple(one[1].shape[1:3]) != (1, 1)]
    else:
        found = [one for one in maps if one[0] == layer] or [one for one in maps if one[0].endswith(f"/{layer}")]
        if len(paths := {path for path, _ in found}) > 1:
            raise InputError(f"layer {layer!r}: there are several: {', '.join(sorted(paths))}; name one of them.")
    if not found:
        names = ", ".join(path for path, _ in maps) or "none"
        raise InputError(
            f"layer {layer or 'with a feature map'!r}: must give (batch, rows, columns, channels); these do: {names}."
        )
    return found[-1]
