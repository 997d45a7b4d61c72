"""A run of seconds that takes every path of a long one: its backbone, its recipe, and how far two such runs differ."""

import csv
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kbaseline.config.load import load_config
from kbaseline.doubt import FILE, Doubt, fit_doubt
from kbaseline.storage.run_folder import RunFolder


def save_tiny_backbone(path: Path) -> str:
    """Writes a `.keras` backbone of two convolutions and a BatchNorm, which trains on digits in seconds."""
    # Drawn by NumPy, for XLA's last bits depend on its flags. With one seed in two a number lies so near the corner of
    # a ReLU that the order of additions decides on its gradient, and other devices differ by more than rounding.
    rng = np.random.default_rng(2)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1, name="rescale")(image)
    x = keras.layers.Conv2D(16, 3, 2, "same", use_bias=False, name="first_conv")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="first_bn")(x))
    x = keras.layers.Conv2D(32, 3, 2, "same", name="second_conv")(x)
    model = keras.Model(image, keras.layers.ReLU()(x))
    for name in ("first_conv", "second_conv"):
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.normal(0, np.sqrt(2 / np.prod(kernel.shape[:-1])), kernel.shape))
    model.save(path)
    return str(path)


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Layer):
    """A convolution and BatchNorm, and a weight of the block's own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv, self.norm = keras.layers.Conv2D(4, 3, padding="same"), keras.layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.norm.build((*shape[:3], 4))
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.scale * self.norm(self.conv(x), training=training)

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:3], 4)


def save_quickstart(folder: Path, backbone: str) -> None:
    """Writes a file `quickstart`, which comes before the bundled configuration of that name: the same in seconds."""
    small = {"model.backbone": backbone, "model.weights": "auto", "model.hidden": 8, "data.size": 16}
    small |= {"data.limit": 300, "stages.0.lr_find": False, "stages.1.lr_find": False, "tta.views": 1}
    small["probe"] = False
    (folder / "quickstart").write_text(load_config("quickstart", small).to_yaml())


def recipe(backbone: str) -> dict[str, Any]:
    """A configuration with all that random draws and batches enter; no count of images is a multiple of anything."""
    return {
        "seed": 3,
        "data": {"source": "digits", "size": 8, "limit": 171, "limit_valid": 83, "batch_size": 32}
        | {"class_weights": "auto"},
        "model": {"backbone": backbone, "hidden": 16, "train_bn": True},
        "transforms": {"do_flip": True},
        "lr_find": {"steps": 20},
        "stages": [
            {"name": "head", "freeze": True, "epochs": 1, "max_lr": 1e-2, "lr_find": False},
            {"name": "all", "freeze": False, "epochs": 2, "max_lr": 1e-2, "lr_find": True},
        ],
        "probe": False,
        "tta": {"views": 2, "flip": False, "scale": 1.1},
        "runtime": {"checkpoint_minutes": 1e-9},
    }


def differences(folder: Path, whole: Path) -> dict[str, float]:
    """The largest difference of two run folders in each of their figures, times left out.

    Returns:
        Relative ones for the columns of `history.csv` and `lr_find.csv` and the finder's `suggestions`; absolute ones
        for `probabilities`, plain and augmented, and for `variables`: weights, statistics and seeds.
    """
    found = {
        f"{file} {name}": _relative(column, columns(whole / file)[name])
        for file in ("history.csv", "lr_find.csv")
        for name, column in columns(folder / file).items()
    }
    found["suggestions"] = _relative(_suggestions(folder), _suggestions(whole))
    with np.load(folder / "predictions.npz") as mine, np.load(whole / "predictions.npz") as other:
        names = ("valid_plain_probabilities", "valid_tta_probabilities")
        found["probabilities"] = max(float(np.abs(mine[name] - other[name]).max()) for name in names)
    models = (keras.models.load_model(run / "model.keras") for run in (folder, whole))
    pairs = zip(*(model.variables for model in models), strict=True)
    # Seeds are whole numbers without a sign, whose difference could wrap around.
    arrays = ((np.asarray(mine.numpy(), "float64"), np.asarray(other.numpy(), "float64")) for mine, other in pairs)
    found["variables"] = max(float(np.abs(mine - other).max()) for mine, other in arrays)
    return found


def columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file that hold numbers other than times."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    names = [name for name in rows[0] if name not in ("stage", "seconds", "images_per_s")]
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def _suggestions(folder: Path) -> np.ndarray:
    """The rates the finder suggests, stage by stage."""
    by_stage = json.loads((folder / "result.json").read_text())["suggested_lrs"]
    return np.array([by_stage[stage][rule] for stage in sorted(by_stage) for rule in sorted(by_stage[stage])])


def _relative(mine: np.ndarray, other: np.ndarray) -> float:
    """The largest relative difference; infinite where there are more figures, NaN where one is no number."""
    if mine.shape != other.shape:
        return float("inf")
    return float(np.where(mine == other, 0.0, np.abs(mine - other) / np.maximum(np.abs(other), 1e-300)).max())


def save_doubt(folder: Path, channels: int) -> Doubt:
    """Gives a run folder of three classes a doubt, as if its images had features of 0.5 and a little noise."""
    rng = np.random.default_rng(4)
    p = rng.dirichlet([1, 1, 1], 60).astype(np.float32)
    features, labels = rng.normal(0.5, 0.3, (60, channels)).astype(np.float32), np.arange(60) % 3
    temperatures, probabilities = {"plain": 2.0, "tta": 1.5}, {"plain": p, "tta": p}
    doubt = fit_doubt(temperatures, probabilities, labels, features[:30], labels[:30], features[30:])
    RunFolder(folder).write_npz(FILE, **doubt.arrays())
    return doubt
