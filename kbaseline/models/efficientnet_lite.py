"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6, made for CPUs; ImageNet weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from kbaseline.storage.torch_file import read_tensors

SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
"""Name -> how much wider and deeper it is than Lite0."""

_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of Lite0's stages: blocks, side of the depthwise kernel, stride of the first block, expansion, output channels."""

_BATCHNORM = {"momentum": 0.99, "epsilon": 1e-3}

_TORCH_NAMES = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
_TORCH_BLOCK_NAMES = {
    **{"expand_conv": "_expand_conv", "expand_bn": "_bn0", "dwconv": "_depthwise_conv", "bn": "_bn1"},
    **{"project_conv": "_project_conv", "project_bn": "_bn2"},
}
"""Layer, of the network or of one block -> its tensors' prefix in the file of weights."""


class _Block(NamedTuple):
    name: str
    kernel: int
    strides: int
    expansion: int
    filters: int


def efficientnet_lite(name: str, input_shape: tuple[int | None, ...] = (None, None, 3)) -> keras.Model:
    """EfficientNet-Lite without its classifier, with random weights.

    As its authors trained it (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite), except
    that no block is dropped at random while training. Layers are named as in Keras' EfficientNets.

    Args:
        name: a name in `SCALES`.
        input_shape: `(height, width, 3)`; the model takes RGB 0-255 and normalises it itself.

    Returns:
        A model with output `(batch, ceil(height / 32), ceil(width / 32), 1280)`.
    """

    def bn_relu6(x: Any, bn: str, activation: str) -> Any:
        return layers.ReLU(6.0, name=activation)(layers.BatchNormalization(**_BATCHNORM, name=bn)(x))

    def conv(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
        return layers.Conv2D(filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name)(
            x
        )

    image = layers.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 128, -127 / 128, name="rescaling")(image)
    x = bn_relu6(conv(x, 32, 3, 2, "stem_conv"), "stem_bn", "stem_activation")
    for block, kernel, strides, expansion, filters in _blocks(*SCALES[name]):
        y, channels = x, x.shape[-1]
        if expansion > 1:
            y = conv(y, expansion * channels, 1, 1, f"{block}_expand_conv")
            y = bn_relu6(y, f"{block}_expand_bn", f"{block}_expand_activation")
        y = layers.DepthwiseConv2D(
            kernel, strides, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{block}_dwconv"
        )(y)
        y = conv(bn_relu6(y, f"{block}_bn", f"{block}_activation"), filters, 1, 1, f"{block}_project_conv")
        y = layers.BatchNormalization(**_BATCHNORM, name=f"{block}_project_bn")(y)
        x = layers.Add(name=f"{block}_add")([y, x]) if strides == 1 and channels == filters else y
    x = bn_relu6(conv(x, 1280, 1, 1, "top_conv"), "top_bn", "top_activation")
    return keras.Model(image, x, name=name)


def pretrained_efficientnet_lite(name: str, file: Path, sha256: str) -> keras.Model:
    """EfficientNet-Lite with the ImageNet weights of a file; see `torch_file.read_tensors`.

    Raises:
        DamagedError: it is not that file.
    """
    tensors, model = read_tensors(file, sha256), efficientnet_lite(name)
    prefixes = dict(_TORCH_NAMES)
    for number, block in enumerate(_blocks(*SCALES[name])):
        prefixes |= {
            f"{block.name}_{ours}": f"_blocks.{number}.{theirs}" for ours, theirs in _TORCH_BLOCK_NAMES.items()
        }
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_as_keras(layer, tensors, prefixes[layer.name]))
    return model


def _blocks(width: float, depth: float) -> Iterator[_Block]:
    """Every block in order. Stem, top, and how often the first and the last stage repeat are not scaled."""
    for stage, (repeats, kernel, strides, expansion, filters) in enumerate(_STAGES, start=1):
        if stage not in (1, len(_STAGES)):
            repeats = int(np.ceil(repeats * depth))
        for number in range(repeats):
            name = f"block{stage}{chr(ord('a') + number)}"
            yield _Block(name, kernel, strides if number == 0 else 1, expansion, _multiple_of_8(filters * width))


def _multiple_of_8(filters: float) -> int:
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


def _as_keras(layer: layers.Layer, tensors: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """A layer's weights, in Keras' order and layout."""
    if isinstance(layer, layers.BatchNormalization):
        return [tensors[f"{prefix}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
    # torch: (out, in / groups, rows, columns). A depthwise convolution has one group a channel.
    order = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    return [tensors[f"{prefix}.weight"].transpose(order)]
