"""Backbones from the zoo or a file: builds them, loads their weights and divides them into layer groups."""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import keras
from keras import layers

from kbaseline.config.paths import expand_home
from kbaseline.errors import DownloadError, ModelError, one_line
from kbaseline.models.blank import blank_weights
from kbaseline.models.efficientnet_lite import efficientnet_lite, pretrained_efficientnet_lite
from kbaseline.models.zoo import BUNDLED_RESNET20, Backbone, resolve_weights

DOWNLOAD_TIMEOUT = 20.0
"""Seconds without a response after which a download of weights fails."""


def resnet20(weights: str | None = None, input_shape: tuple[int | None, ...] = (None, None, 3)) -> keras.Model:
    """ResNet-20 for small images, 0.27 M parameters (https://arxiv.org/abs/1512.03385, section 4.2).

    Args:
        weights: `"cifar10"` for the bundled weights, None for random ones, or the path of a weights file.
        input_shape: `(height, width, 3)`; the model takes float images scaled to -1..1.

    Returns:
        A model with output `(batch, height / 4, width / 4, 64)`.
    """

    def conv_bn(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
        x = layers.Conv2D(
            filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    image = layers.Input(input_shape, name="image")
    x = layers.ReLU(name="conv1_relu")(conv_bn(image, 16, 3, 1, "conv1"))
    for stage, filters in enumerate((16, 32, 64), start=2):
        for block in (1, 2, 3):
            name, strides = f"conv{stage}_block{block}", 2 if stage > 2 and block == 1 else 1
            y = layers.ReLU(name=f"{name}_1_relu")(conv_bn(x, filters, 3, strides, f"{name}_1"))
            y = conv_bn(y, filters, 3, 1, f"{name}_2")
            shortcut = conv_bn(x, filters, 1, strides, f"{name}_0") if strides > 1 else x
            x = layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))
    model = keras.Model(image, x, name="resnet20")
    if weights is not None:
        model.load_weights(BUNDLED_RESNET20 if weights == "cifar10" else weights)
    return model


@keras.saving.register_keras_serializable(package="kbaseline")
class ImageNetPreprocessing(layers.Layer):  # type: ignore[misc]
    """Converts float RGB `(batch, height, width, 3)`, 0-255, to the input that `keras.applications` networks expect.

    Args:
        mode: `"caffe"` (BGR, means subtracted), `"tf"` (-1..1) or `"torch"` (channel statistics).
        **kwargs: `keras.layers.Layer`'s other arguments.
    """

    def __init__(self, mode: str, **kwargs: Any) -> None:
        # Always float32, under any policy: bfloat16 has no fractions of a level above 128.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.mode = mode

    def call(self, images: Any) -> Any:
        """Preprocesses a batch; same shape."""
        return keras.applications.imagenet_utils.preprocess_input(images, data_format="channels_last", mode=self.mode)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Keras' serialisation."""
        return {**super().get_config(), "mode": self.mode}


def load_backbone(name: str, weights: str = "auto", size: int = 128) -> tuple[keras.Model, str | None]:
    """Builds a backbone and loads its weights.

    Args:
        name: a name from `ZOO`, or the path of a `.keras` model that takes RGB 0-255 and outputs a feature map
            `(batch, height, width, channels)`.
        weights: `"auto"` for the pretrained weights (of a `.keras` model: the saved ones), their name (`"imagenet"`,
            `"cifar10"`), `"none"`, or the path of a weights file.
        size: side of the square input image, in pixels; used to check a saved backbone.

    Returns:
        The model, and its preprocessing mode or None.

    Raises:
        ModelError: an unknown name or file, or weights of another architecture.
        DownloadError: the weights are not on this machine and could not be downloaded.
    """
    chosen = resolve_weights(name, weights)
    if chosen.row is None:
        model = _saved_backbone(expand_home(name), size)
        model = keras.models.clone_model(model) if chosen.kind == "none" else model
    elif chosen.kind == "none":
        model = _built(name, chosen.row, None)
    else:
        with blank_weights():
            model = _pretrained(name, chosen.row) if chosen.kind == "own" else _built(name, chosen.row, None)
    if chosen.kind == "file" and chosen.file:
        _fill(model, chosen.file)
    _follow_policy(model)
    return model, chosen.row.preprocessing if chosen.row else None


def read_model(path: Path, display_name: str) -> keras.Model:
    """Loads the model of a `.keras` file without compiling it; executes no code from the file.

    Raises:
        ModelError: the file is not a `.keras` file, is damaged, or contains code, for instance a Lambda layer; the
            message begins with `display_name`.
    """
    # Keras reads other formats too, but only this reader refuses code and links to other files.
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{display_name}: not a Keras model that can be read (not a .keras file).")
    # A damaged file can make Keras and HDF5 raise any kind of error.
    try:
        with _whole_weights(), blank_weights():
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise ModelError(f"{display_name}: not a Keras model that can be read ({one_line(error)}).") from None


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Turns Keras' warning about weights missing from the file into an error; those layers would stay random."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Skipping nested container", category=UserWarning)
        yield


def layer_groups(backbone: keras.Model) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """A backbone's `parts`, in an early and a late group.

    Networks with stages named `conv1` ... `conv5` (every ResNet) are split before `conv4`, fastai's layer3. All other
    networks are split at half the number of their parts, in topological order.
    """
    found = parts(backbone)
    cut = next((index for index, part in enumerate(found) if part.name.startswith("conv4_")), len(found) // 2)
    return found[:cut], found[cut:]


def parts(model: keras.Model) -> list[keras.layers.Layer]:
    """Layers with different names that hold all weights of a model among them, in topological order.

    These are the leaves, unless two have one name, as in equal blocks, or a block has weights beside those of its
    layers: then the layers of the model itself.
    """
    found = [layer for layer in leaves(model) if layer.weights]
    alike = len({layer.name for layer in found}) < len(found)
    if alike or len({id(weight) for layer in found for weight in layer.weights}) < len(model.weights):
        return [layer for layer in model.layers if layer.weights]
    return found


def leaves(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers inside a layer that contain no other layers, in topological order; the layer itself if it has none."""
    inside = layer.layers if isinstance(layer, keras.Model) else sublayers(layer)
    return [leaf for child in inside for leaf in leaves(child)] if inside else [layer]


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The direct sublayers of a layer. Public for models only; `Model.layers` does the same in Keras 3.15."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _built(name: str, row: Backbone, weights: str | None) -> keras.Model:
    if row.package is not None:
        if weights is None:
            return efficientnet_lite(name)
        return pretrained_efficientnet_lite(name, row.weights_file, row.sha256)
    if row.application is None:
        return resnet20(weights)
    build = getattr(keras.applications, row.application)
    return build(include_top=False, weights=weights, input_shape=(None, None, 3))


def _pretrained(name: str, row: Backbone) -> keras.Model:
    import socket

    if row.package is not None and not row.weights_file.is_file():
        raise ModelError(f"weights {row.pretrained!r} of {name}: not on this machine; {row.remedy}.")
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # without a timeout a dead network hangs for minutes
    try:
        return _built(name, row, row.pretrained)
    except Exception as error:
        if isinstance(error, OSError | ValueError) and not _is_download_error(error):
            reason, package = one_line(error), (row.package or "kbaseline").replace("_", "-")
            raise ModelError(
                f"weights {row.pretrained!r} of {name}: cannot be read ({reason}); "
                f"delete the file, or reinstall {package}."
            ) from None
        if not _is_download_error(error):
            raise
        raise DownloadError(
            f"weights {row.pretrained!r} of {name}: could not be downloaded ({one_line(error, 240)}). "
            "Give a file with --set model.weights=FILE, start from random weights with --set model.weights=none, or "
            "try `kbaseline fit --config quickstart`, which needs no network."
        ) from None
    finally:
        socket.setdefaulttimeout(previous)


def _is_download_error(error: BaseException) -> bool:
    """Whether a download failed. Keras wraps network errors in a plain `Exception` with the text below."""
    return isinstance(error, URLError | TimeoutError | ConnectionError) or "URL fetch failure" in str(error)


def _saved_backbone(path: Path, size: int) -> keras.Model:
    model = read_model(path, f"backbone {str(path)!r}")
    try:
        # Keras' shape inference alone would accept a network for grey images.
        taken = getattr(model, "input_shape", (None, None, None, None))
        if any(own not in (None, ours) for own, ours in zip(taken, (None, size, size, 3), strict=True)):
            raise ValueError(f"it takes {taken}")
        shape = tuple(model.compute_output_shape((None, size, size, 3)))
    except Exception as error:
        reason = one_line(error)
        raise ModelError(
            f"backbone {str(path)!r}: must take RGB images ({size}, {size}, 3); it does not ({reason})."
        ) from None
    if len(shape) != 4 or shape[-1] is None:
        raise ModelError(
            f"backbone {str(path)!r}: must give a feature map (batch, height, width, channels); it gives {shape}. "
            "Save it without its pooling and classifier."
        )
    return model


def _follow_policy(model: keras.Model) -> None:
    """Sets every layer's dtype policy to the global one; a saved backbone has the policy it was saved with."""
    for layer in leaves(model):
        # In bfloat16, values of 0-255 would lose the fractions of a level before they are normalised.
        normalises = isinstance(layer, layers.Normalization | layers.Rescaling | layers.InputLayer)
        layer.dtype_policy = keras.DTypePolicy("float32") if normalises else keras.config.dtype_policy()


def _fill(model: keras.Model, path: Path) -> None:
    try:
        with _whole_weights():
            model.load_weights(path)
    except (ValueError, TypeError, OSError, KeyError, UserWarning) as error:
        reason = one_line(error)
        raise ModelError(
            f"weights {str(path)!r}: not for {model.name} without its classifier ({reason}). "
            "Set model.backbone to the one they were saved from."
        ) from None
