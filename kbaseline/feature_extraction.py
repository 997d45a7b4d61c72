"""Pooled features of a frozen backbone: what it says of each image, computed once and kept in the cache folder."""

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, overload

import keras
import numpy as np
from rich.console import Console

from kbaseline.config.paths import expand_home
from kbaseline.config.schema import DataConfig
from kbaseline.console.training import PredictBar
from kbaseline.data.batches import ImageBatches
from kbaseline.data.cache import Decoded, Target, decoded
from kbaseline.data.fit import Resize
from kbaseline.data.image_data import ImageData
from kbaseline.data.pictures import File, FilePictures
from kbaseline.data.rows import Rows
from kbaseline.data.walk import as_image
from kbaseline.devices.predict import predict_batches, prediction_batch_size
from kbaseline.devices.xla import explain_oom, set_compilation_cache, start_jax
from kbaseline.errors import DataError, InputError, ModelError
from kbaseline.models.classifier import build_extractor
from kbaseline.models.zoo import ZOO, resolve_weights
from kbaseline.storage.cache_folder import whole_file
from kbaseline.storage.npz import DamagedError, read_array

VERSION = 1
"""Part of the key of every file; higher when the same images, size and weights give other features."""

CHUNK = 8192
"""Images whose features are in memory before they are written."""


@overload
def features(
    data: ImageData,
    backbone: str = ...,
    weights: str = ...,
    *,
    size: int | None = ...,
    resize: Resize = ...,
    batch_size: int | None = ...,
    cache_dir: Path | None = ...,
    console: Console | None = ...,
) -> dict[str, np.ndarray]: ...


@overload
def features(
    data: Sequence[str | Path],
    backbone: str = ...,
    weights: str = ...,
    *,
    size: int | None = ...,
    resize: Resize = ...,
    batch_size: int | None = ...,
    cache_dir: Path | None = ...,
    console: Console | None = ...,
) -> np.ndarray: ...


def features(
    data: ImageData | Sequence[str | Path],
    backbone: str = "efficientnet_lite0",
    weights: str = "auto",
    *,
    size: int | None = None,
    resize: Resize = "crop",
    batch_size: int | None = None,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> dict[str, np.ndarray] | np.ndarray:
    """Computes the features of images by a frozen backbone, averaged over all places of its feature map, once.

    Images are fitted, resized and normalised as for training and prediction; nothing is augmented, and BatchNorm uses
    its running statistics. The features are kept in the cache folder, keyed by the pixels of the images as one set,
    the size and the content of the weights' file: the next call, in any process and for any split of these images,
    reads them. `kbaseline cache` shows and trims them.

    >>> from kbaseline import ImageData, features
    >>> from sklearn.linear_model import LogisticRegression
    >>> data = ImageData.from_source("digits", size=32, limit=500)
    >>> found = features(data, "resnet20")
    >>> found["train"].shape
    (500, 64)
    >>> probe = LogisticRegression(max_iter=1000).fit(found["train"], data.train.labels)
    >>> bool(probe.score(found["valid"], data.valid.labels) > 0.8)
    True

    Args:
        data: images with their splits, or paths of image files.
        backbone: a name from the zoo, or the path of a `.keras` model that takes RGB 0-255.
        weights: `"auto"`, `"imagenet"`, `"cifar10"`, or the path of a weights file; see `load_backbone`.
        size: side of the backbone's square input, in pixels; default: the data's, and for files the one that the
            backbone was trained on (224 for a `.keras` model).
        resize: how a file that is not square becomes square: `"crop"` cuts out its centre, `"squish"` changes its
            aspect ratio.
        batch_size: images per forward pass; default: 64, fewer large ones on a CPU.
        cache_dir: kbaseline's cache folder; default: as `data.cache_dir`.
        console: where progress is shown; None shows nothing.

    Returns:
        Float32 `(number, channels)`, one row per image in the given order: for an `ImageData` a dictionary by split,
        for files one array.

    Raises:
        DataError: a file is missing, or is no image that can be read.
        InputError: `data` is one path, or holds none; or `batch_size` is below 1.
        ModelError: see `load_backbone`; or random weights.
        DownloadError: the weights are not on this machine and could not be downloaded.
        RunError: the cache folder cannot be written, or the accelerator runs out of memory.
    """
    if isinstance(data, str | Path):
        raise InputError(f"features of {str(data)!r}: give a list of image files, or an ImageData made from it.")
    folder = DataConfig(cache_dir=cache_dir).cache_folder
    set_compilation_cache(folder)
    start_jax()
    if isinstance(data, ImageData):
        splits = {name: Decoded(split.images, split.digests, {}) for name, split in data.splits.items()}
        size = size or data.size
    else:
        size = size or (ZOO[backbone].size if backbone in ZOO else 224)
        splits = {"given": _decoded_files(data, size, resize, folder, console)}
    batch_size = prediction_batch_size(64, size**2, batch_size)
    found = pooled_features(splits, backbone, weights, size, batch_size, folder, console)
    return found if isinstance(data, ImageData) else found["given"]


def pooled_features(
    splits: Mapping[str, Decoded],
    backbone: str,
    weights: str,
    size: int,
    batch_size: int,
    cache_folder: Path,
    console: Console | None,
) -> dict[str, np.ndarray]:
    """`features` by split, of images that all have the same height and width; its other arguments and errors."""
    # In the order of their digests: another split of the same images finds the same file.
    every, first = np.unique(np.concatenate([split.digests for split in splits.values()]), return_index=True)
    chosen = resolve_weights(backbone, weights)
    if chosen.file is None:
        raise ModelError(f"weights {weights!r}: features of random weights are random; give 'auto' or a weights file.")
    # The key holds the content of the file of weights, which this downloads.
    model = None if chosen.file.is_file() else build_extractor(size, backbone, weights)
    files = [expand_home(backbone), chosen.file] if chosen.row is None else [chosen.file]
    contents = [hashlib.blake2b(file.read_bytes()).hexdigest() for file in files]
    height, width = next(iter(splits.values())).images.shape[1:3]
    name, policy = "" if chosen.row is None else backbone, keras.config.dtype_policy().name
    stamp = f"{VERSION} {name} {contents} {height}x{width} {size} {policy}\n".encode()
    key = hashlib.blake2b(stamp + every.astype("<u8").tobytes(), digest_size=16).hexdigest()
    path = cache_folder / "features" / f"{key}.npy"
    stored = _open(path, len(every))
    if stored is None:
        model = model or build_extractor(size, backbone, weights)
        with whole_file(path) as unfinished, explain_oom("features", batch_size):
            _compute(model, [split.images for split in splits.values()], first, unfinished, batch_size, console)
        stored = read_array(path, mapped=True)
    return {name: stored[np.searchsorted(every, split.digests)] for name, split in splits.items()}


def _decoded_files(
    files: Sequence[str | Path], size: int, resize: Resize, cache_folder: Path, console: Console | None
) -> Decoded:
    """The images of files, in their order."""
    paths = [expand_home(file).absolute() for file in files]
    if not paths:
        raise InputError("features: there are no files; give at least one.")
    found = [as_image(path, str(path)) for path in paths]
    for path, file in zip(paths, found, strict=True):
        if isinstance(file, str):
            raise DataError(f"image {str(path)!r}: {file}; repair it, or leave it out.")
    pictures = FilePictures(Path(), [file for file in found if isinstance(file, File)])
    target = Target(size, resize, strict=True)
    return decoded(pictures, {"given": np.arange(len(paths))}, target, cache_folder, console)["given"]


def _open(path: Path, count: int) -> np.ndarray | None:
    """The finished features of so many images, memory-mapped, or None where there are none or they are damaged."""
    try:
        stored = read_array(path, mapped=True)
    except DamagedError:
        return None
    if stored.dtype != np.float32 or stored.ndim != 2 or len(stored) != count:
        return None
    # When they were last of use, for `kbaseline cache --trim`.
    with contextlib.suppress(OSError):
        os.utime(path)
    return stored


def _compute(
    model: keras.Model,
    images: Sequence[np.ndarray],
    first: np.ndarray,
    path: Path,
    batch_size: int,
    console: Console | None,
) -> None:
    """Writes the features of some images into a .npy file.

    Args:
        model: see `build_extractor`.
        images: of each split.
        first: int `(rows,)`, which image each row of the file belongs to, counted through the splits.
        path: of the file.
        batch_size: images per forward pass.
        console: where to show progress.
    """
    rows = np.argsort(first)  # in the order of the images, which a disk likes
    starts = np.cumsum([0, *(len(part) for part in images)])
    bounds = np.searchsorted(first[rows], starts)
    batch_size = min(batch_size, len(rows))
    jobs = [
        (part, start, rows[at : min(at + CHUNK, end)])
        for part, start, begin, end in zip(images, starts[:-1], bounds[:-1], bounds[1:], strict=True)
        for at in range(begin, end, CHUNK)
    ]
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (len(rows), model.output_shape[-1]))
    batches = sum(math.ceil(len(chosen) / batch_size) for *_, chosen in jobs)
    with PredictBar("features", batches, console or Console(quiet=True)) as bar:
        for part, start, chosen in jobs:
            numbers = first[chosen] - start
            seen = Rows(part.stored, part.numbers[numbers]) if isinstance(part, Rows) else Rows(part, numbers)
            taken = ImageBatches(cast(np.ndarray, seen), batch_size=batch_size, pad=True)
            stored[chosen] = predict_batches(model, taken, [bar])
    stored.flush()
