"""The classifier: uint8 in -> transforms -> preprocessing -> backbone -> head -> float32 logits."""

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from kbaseline.errors import ModelError, one_line
from kbaseline.models.adapt import adapt_to_device
from kbaseline.models.backbones import ImageNetPreprocessing, layer_groups, leaves, load_backbone
from kbaseline.render.notebook import Table
from kbaseline.transforms import RandomTransforms

BACKBONE = "backbone"
"""Name of the backbone layer inside the classifier."""

LOGITS = "head_logits"
"""Name of the classifier's last layer."""
AVERAGE = "head_average"
"""Name of the layer that averages the backbone's feature map over all places."""

TORCH_BATCHNORM = {"momentum": 0.9, "epsilon": 1e-5}
"""PyTorch's BatchNorm defaults, in Keras' terms."""


def build_classifier(
    num_classes: int,
    size: int = 128,
    backbone: str = "resnet50",
    weights: str = "auto",
    *,
    transforms: Mapping[str, Any] | None = None,
    head: Literal["fastai", "linear"] = "fastai",
    hidden: int = 512,
    dropout: float = 0.5,
    bn_momentum: float | None = 0.9,
    seed: int = 42,
) -> keras.Model:
    """Builds the classifier as one functional Keras model.

    Args:
        num_classes: number of classes, at least 2.
        size: side of the backbone's square input, in pixels.
        backbone: a name from the zoo, or the path of a `.keras` model that takes RGB 0-255.
        weights: `"auto"`, `"imagenet"`, `"cifar10"`, `"none"`, or the path of a weights file; see `load_backbone`.
        transforms: arguments of `RandomTransforms`.
        head: `"fastai"`, average and maximum pooling and two layers; or `"linear"`, average pooling and one.
        hidden: units of the hidden layer of fastai's head.
        dropout: rate before the last layer; half of it before the hidden layer.
        bn_momentum: momentum of the running statistics in the backbone's BatchNorm; None keeps the backbone's own.
        seed: fixes initial weights, transforms and dropout.

    Returns:
        A model from uint8 images `(batch, height, width, 3)` of any height and width to float32 logits
        `(batch, num_classes)`.

    Raises:
        ModelError: see `load_backbone`; or fewer than two classes.
        DownloadError: see `load_backbone`.
    """
    if num_classes < 2:
        raise ModelError(f"num_classes must be at least 2; got {num_classes}.")
    seeds = iter(range(seed, seed + 8))
    images = layers.Input((None, None, 3), dtype="uint8", name="images")
    with _drawing_from(next(seeds)):
        body, features = _embed(images, size, backbone, weights, {**(transforms or {}), "seed": next(seeds)})
    if bn_momentum is not None:
        for layer in leaves(body):
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = bn_momentum
    logits = _head(features, num_classes, head, hidden, dropout, seeds)
    return keras.Model(images, logits, name="kbaseline")


def build_extractor(size: int, backbone: str, weights: str = "auto") -> keras.Model:
    """Builds the classifier without its head: what a frozen backbone says of an image, averaged over all places.

    Args:
        size, backbone, weights: as for `build_classifier`.

    Returns:
        A model from uint8 images `(batch, height, width, 3)` of any height and width to float32 features
        `(batch, channels)`.

    Raises:
        ModelError, DownloadError: see `load_backbone`.
    """
    images = layers.Input((None, None, 3), dtype="uint8", name="images")
    with _drawing_from(0):
        _, features = _embed(images, size, backbone, weights, {"seed": 0})
    pooled = layers.GlobalAveragePooling2D(dtype="float32", name="average")(features)
    return keras.Model(images, pooled, name="features")


def _embed(
    images: Any, size: int, backbone: str, weights: str, transforms: Mapping[str, Any]
) -> tuple[keras.Model, Any]:
    """The backbone, and its feature map of uint8 images."""
    body, preprocessing = load_backbone(backbone, weights, size)
    body.name = BACKBONE
    first = RandomTransforms(size, **transforms, name="transforms")
    if first.training_size != (size, size) and None not in getattr(body, "input_shape", (None, None))[1:3]:
        raise ModelError(
            f"backbone {backbone!r}: takes images of {size} pixels only, also in training; set transforms.train_size "
            f"to null, got {first.train_size}."
        )
    x = first(images)
    if preprocessing is not None:
        x = ImageNetPreprocessing(preprocessing, name="preprocessing")(x)
    try:
        features = body(x)
    except ValueError as error:
        reason = one_line(error)
        raise ModelError(
            f"backbone {backbone!r}: cannot take images of {size} pixels ({reason}); set another data.size."
        ) from None
    adapt_to_device(body)
    return body, features


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Fixes the weights of layers without a seed: Keras draws one from Python's generator, which is the caller's."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _head(features: Any, num_classes: int, head: str, hidden: int, dropout: float, seeds: Any) -> Any:
    """fastai's `create_head`, or one linear layer; in float32 under any dtype policy."""

    def dense(units: int, name: str) -> layers.Layer:
        # As PyTorch's kaiming_normal_, which does not truncate.
        initializer = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=next(seeds))
        return layers.Dense(units, kernel_initializer=initializer, dtype="float32", name=name)

    def pool(kind: type[layers.Layer], name: str) -> Any:
        return kind(dtype="float32", name=name)(features)

    if head == "linear":
        x = pool(layers.GlobalAveragePooling2D, AVERAGE)
        x = layers.Dropout(dropout, seed=next(seeds), dtype="float32", name="head_dropout")(x)
        return dense(num_classes, LOGITS)(x)
    x = layers.Concatenate(dtype="float32", name="head_pool")(
        [pool(layers.GlobalMaxPooling2D, "head_max"), pool(layers.GlobalAveragePooling2D, AVERAGE)]
    )
    x = layers.BatchNormalization(**TORCH_BATCHNORM, dtype="float32", name="head_bn1")(x)
    x = layers.Dropout(dropout / 2, seed=next(seeds), dtype="float32", name="head_dropout1")(x)
    x = layers.ReLU(dtype="float32", name="head_relu")(dense(hidden, "head_hidden")(x))
    x = layers.BatchNormalization(**TORCH_BATCHNORM, dtype="float32", name="head_bn2")(x)
    x = layers.Dropout(dropout, seed=next(seeds), dtype="float32", name="head_dropout2")(x)
    return dense(num_classes, LOGITS)(x)


def set_linear_head(model: keras.Model, weights: np.ndarray, bias: np.ndarray) -> None:
    """Makes a linear head the classifier `features @ weights + bias`, with `build_extractor`'s features.

    Args:
        model: a classifier from `build_classifier(head="linear")`.
        weights: float `(features, classes)`.
        bias: float `(classes,)`; minus infinity for a class that has no image.
    """
    layer = model.get_layer(LOGITS)
    layer.kernel.assign(weights)
    # Infinity times the weight decay would be no number.
    layer.bias.assign(np.maximum(bias, -1e4))


def soften_logits(model: keras.Model, temperature: float) -> None:
    """Divides the logits of a linear head: the same answers, less sure.

    Args:
        model: a classifier from `build_classifier(head="linear")`.
        temperature: the divisor, above 0.
    """
    layer = model.get_layer(LOGITS)
    for variable in (layer.kernel, layer.bias):
        variable.assign(variable / temperature)


def with_features(model: keras.Model) -> keras.Model:
    """A classifier that also gives the averages of its backbone's feature map.

    Args:
        model: a classifier from `build_classifier`, or loaded from a file.

    Returns:
        A model of the same layers, from images to float32 `(batch, classes + channels)`: logits, then features.
    """
    both = layers.Concatenate(dtype="float32")([model.output, model.get_layer(AVERAGE).output])
    return keras.Model(model.input, both)


def freeze(model: keras.Model, train_bn: bool = True) -> None:
    """Freezes the backbone; the head stays trainable. Compile the model afterwards.

    Args:
        model: a classifier from `build_classifier`.
        train_bn: keep training the backbone's BatchNorm (γ, β and the running statistics), as fastai does. Otherwise
            BatchNorm runs in inference mode, which is cheaper.
    """
    body = model.get_layer(BACKBONE)
    body.trainable = True
    for layer in leaves(body):
        layer.trainable = train_bn and isinstance(layer, layers.BatchNormalization)
    norms = {id(variable) for layer in leaves(body) for variable in layer.trainable_variables}
    for variable in body.trainable_variables:  # A block's own; the block stays trainable for its BatchNorm.
        variable.trainable = id(variable) in norms


def unfreeze(model: keras.Model, train_bn: bool = True) -> None:
    """Makes all layers trainable. Compile the model afterwards.

    Args:
        model: a classifier from `build_classifier`.
        train_bn: whether the backbone's BatchNorm is trained too; otherwise it stays in inference mode.
    """
    model.trainable = True
    if not train_bn:
        for layer in leaves(model.get_layer(BACKBONE)):
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False


def classifier_groups(model: keras.Model) -> list[list[str]]:
    """Names of the layers in `grouped_layers`, as `LayerwiseAdamW` takes them."""
    return [[layer.name for layer in group] for group in grouped_layers(model)]


def grouped_layers(model: keras.Model) -> list[list[layers.Layer]]:
    """Layers of the three groups with their own learning rates: early backbone, late backbone, head.

    Args:
        model: a classifier from `build_classifier`, or loaded from a file.
    """
    body = model.get_layer(BACKBONE)
    early, late = layer_groups(body)
    return [early, late, [layer for layer in model.layers if layer.trainable_variables and layer is not body]]


def group_rows(model: keras.Model) -> Table:
    """The three layer groups: name, layers with weights, parameters, and how many of these are trainable.

    Args:
        model: a classifier from `build_classifier`, or loaded from a file.
    """
    rows = Table()
    for name, members in zip(("early backbone", "late backbone", "head"), grouped_layers(model), strict=True):
        trainable = sum(math.prod(v.shape) for layer in members for v in layer.trainable_variables)
        parameters = sum(layer.count_params() for layer in members)
        rows.append({"group": name, "layers": len(members), "parameters": parameters, "trainable": int(trainable)})
    return rows
