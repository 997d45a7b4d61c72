"""On a CPU, layers computed in the ways it is fastest at: same network, same numbers, fewer trips through memory.

- 1x1 convolutions are matrix products. XLA's CPU backend computes the gradient of their kernels, as convolutions, many
  times slower where YNNPACK does it (`runtime.prefer_eigen_convolutions`). Larger kernels gain nothing as products.
- BatchNorm that trains has its gradient in closed form: fewer arrays of the size of the feature map.
- A bias that BatchNorm takes away again is not added before it: a feature map less to write and to read.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import layers, ops

from kbaseline.models.backbones import leaves


def adapt_to_cpu(model: keras.Model) -> int:
    """Makes a model's layers compute in the ways above, if JAX runs on a CPU. Compile the model afterwards.

    Weights, configuration and the saved file stay those of Keras' own layers; a loaded copy is a stock model. Every
    layer's outputs stay the same too, but for rounding.

    Args:
        model: any built Keras model; `Conv2D` and `BatchNormalization` layers of it are changed, subclasses are not.

    Returns:
        How many layers were changed; 0 on another kind of device.
    """
    if jax.default_backend() != "cpu":
        return 0
    adapted = set()
    for layer in leaves(model):
        if _is_pointwise(layer):
            layer.convolution_op = partial(_convolve, layer)
            adapted.add(layer)
        elif _is_plain(layer):
            biased = _Biased.before(layer)
            layer.call = partial(_normalize, layer, biased)
            adapted.add(layer)
            if biased:
                biased.layer.call = partial(_Biased.call, biased)
                adapted.add(biased.layer)
    return len(adapted)


def restore(model: keras.Model) -> None:
    """Gives the layers their own ways back. Compile the model afterwards."""
    for layer in leaves(model):
        for name in ("call", "convolution_op"):
            if isinstance(vars(layer).get(name), partial):
                delattr(layer, name)


def _is_pointwise(layer: keras.layers.Layer) -> bool:
    # Subclasses may compute something else.
    return (
        type(layer) is layers.Conv2D
        and tuple(layer.kernel_size) == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )


def _convolve(layer: layers.Conv2D, inputs: Any, kernel: Any) -> Any:
    """What the layer's own method of that name computes."""
    kernel = ops.convert_to_tensor(kernel)
    return pointwise(ops.cast(inputs, kernel.dtype), kernel, tuple(layer.strides))


def pointwise(inputs: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """A 1x1 convolution.

    Args:
        inputs: float `(batch, height, width, in_channels)`.
        kernel: `(1, 1, in_channels, out_channels)`, of the same dtype.
        strides: of rows and columns, in pixels.

    Returns:
        `(batch, ceil(height / strides[0]), ceil(width / strides[1]), out_channels)`.
    """
    # Without it XLA computes the inputs anew for the kernel gradient, back through every addition of a ResNet stage.
    inputs = jax.lax.optimization_barrier(inputs)
    seen = inputs[:, :: strides[0], :: strides[1]]
    # As matrices: the kernel gradient, a product over three axes, would first copy both with their axes turned.
    outputs = ops.matmul(ops.reshape(seen, (-1, seen.shape[-1])), kernel[0, 0])
    return ops.reshape(outputs, (-1, *seen.shape[1:-1], outputs.shape[-1]))


@dataclass
class _Biased:
    """A convolution that adds a bias, for a BatchNorm: what it gave last, and the same without the bias.

    The outputs stay what they are, for whoever else reads them; those that nobody reads are never computed.
    """

    layer: layers.Conv2D
    last: tuple[Any, Any] | None = None

    @classmethod
    def before(cls, layer: layers.BatchNormalization) -> "_Biased | None":
        """The one whose outputs a layer normalises, if it is one."""
        try:
            operation = layer.input._keras_history.operation
        except AttributeError:  # never called in a graph
            return None
        linear = getattr(operation, "activation", None) is keras.activations.linear
        plain = type(operation) is layers.Conv2D and operation.data_format == "channels_last"
        return cls(operation) if plain and linear and operation.use_bias else None

    def call(self, inputs: Any) -> Any:
        """What the layer's own method of that name computes."""
        unbiased = self.layer.convolution_op(inputs, self.layer.kernel)
        outputs = ops.add(unbiased, ops.reshape(self.layer.bias, (1, 1, 1, -1)))
        self.last = outputs, unbiased
        return outputs

    def take(self, outputs: Any) -> Any | None:
        """Those without the bias, once; None if these outputs are not the layer's last."""
        last, self.last = self.last, None
        return last[1] if last and last[0] is outputs else None


def _is_plain(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is layers.BatchNormalization
        and layer.axis in (-1, layer.input_spec.ndim - 1)
        and layer.center
        and layer.scale
        and not (layer.renorm or layer.synchronized)
    )


def _normalize(
    layer: layers.BatchNormalization, biased: _Biased | None, inputs: Any, training: Any = None, mask: Any = None
) -> Any:
    """What the layer's own `call` computes."""
    unbiased = biased.take(inputs) if biased else None
    if mask is not None or not (training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    dtype = keras.backend.result_type(inputs.dtype, "float32")  # also of half precision
    x = ops.cast(inputs if unbiased is None else unbiased, dtype)
    outputs, mean, variance = batch_normalize(
        x, ops.cast(layer.gamma, dtype), ops.cast(layer.beta, dtype), layer.epsilon
    )
    if biased and unbiased is not None:
        mean += ops.cast(biased.layer.bias, dtype)
    for moving, statistic in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + jax.lax.stop_gradient(statistic) * (1.0 - layer.momentum))
    return ops.cast(outputs, layer.compute_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalize(inputs: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """BatchNorm of a batch and its gradient (https://arxiv.org/abs/1502.03167).

    Args:
        inputs: float `(..., channels)`.
        gamma, beta: scale and offset, `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised batch; its mean and variance, `(channels,)`, through which no gradient flows.
    """
    return _forward(inputs, gamma, beta, epsilon)[0]


def _forward(inputs: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[tuple[Any, Any, Any], tuple[Any, ...]]:
    axes = tuple(range(inputs.ndim - 1))
    mean, variance = jnp.mean(inputs, axes), jnp.var(inputs, axes)
    inverse = jax.lax.rsqrt(variance + epsilon)
    outputs = inputs * (inverse * gamma) + (beta - mean * inverse * gamma)
    return (outputs, mean, variance), (inputs, gamma, mean, inverse)


def _backward(_: float, kept: tuple[Any, ...], gradients: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    inputs, gamma, mean, inverse = kept
    gradient, centered = gradients[0], inputs - mean
    axes, number = tuple(range(inputs.ndim - 1)), inputs.size // inputs.shape[-1]
    to_beta = jnp.sum(gradient, axes)
    to_gamma = jnp.sum(gradient * centered, axes) * inverse
    to_inputs = gamma * inverse * (gradient - to_beta / number - centered * (inverse * to_gamma / number))
    return to_inputs, to_gamma, to_beta


batch_normalize.defvjp(_forward, _backward)
