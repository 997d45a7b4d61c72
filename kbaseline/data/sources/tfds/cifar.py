"""Prepares CIFAR-10 and CIFAR-100 in TFDS's format without TensorFlow."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from kbaseline.console.bars import Bar
from kbaseline.errors import DownloadError

NAMES = ("cifar10", "cifar100")
_PIXELS = 3 * 32 * 32


def cifar_builder(name: str, console: Console | None, **options: Any) -> Any:
    """TFDS's own builder of `name`, with replacements for the two steps that call TensorFlow.

    TFDS reads the archive with `tf.io.gfile` and encodes arrays with `tf.image`. This builder uses tarfile and Pillow:
    the PNG bytes differ, the pixels do not. Description, version, URL, checksum and keys are TFDS's, and so is the
    order of the examples; the prepared dataset is the same.

    Args:
        name: `"cifar10"` or `"cifar100"`.
        console: where to show progress; None shows nothing.
        **options: arguments of the builder, for instance `data_dir`.

    Returns:
        A `tfds.core.GeneratorBasedBuilder`.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification import cifar

    base: Any = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        info = self._cifar_info
        files = _unpacked(Path(dl_manager.download(info.url)), info)
        for key, file in zip(info.label_keys, info.label_files, strict=True):
            self.info.features[key].names = [line for line in files[file].decode().split("\n") if line]
        return {
            "train": self._generate_examples("train_", [files[file] for file in info.train_files]),
            "test": self._generate_examples("test_", [files[file] for file in info.test_files]),
        }

    def generate_examples(self: Any, prefix: str, files: list[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = self._cifar_info.label_keys
        total = sum(map(len, files)) // (len(keys) + _PIXELS)
        with Bar(console, f"Preparing {prefix.rstrip('_')}", total) as bar:
            for index, (labels, image) in enumerate(_examples(files, len(keys))):
                bar.advance()
                record = dict(zip(keys, labels, strict=True))
                yield index, {**record, "id": f"{prefix}{index:05d}", "image": Image.fromarray(image)}

    # TFDS finds the checksums by the name and the module of the base class.
    members = {
        "__module__": base.__module__,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    with tfds.core.registered.skip_registration():
        return type(base.__name__, (base,), members)(**options)


def _unpacked(archive: Path, info: Any) -> dict[str, bytes]:
    """The files of the upstream archive by name, all read into memory (180 MB)."""
    wanted = {info.prefix + file: file for file in (*info.label_files, *info.train_files, *info.test_files)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() and member.name in wanted else None
                if content is not None:
                    found[wanted[member.name]] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DownloadError(
            f"archive {str(archive)!r}: cannot be unpacked ({error}); delete the archive and try again."
        ) from error
    row = len(info.label_keys) + _PIXELS
    for name, file in wanted.items():
        if file not in found or (file.endswith(".bin") and len(found[file]) % row):
            raise DownloadError(
                f"archive {str(archive)!r}: {name!r} is missing or incomplete; delete the archive and try again."
            )
    return found


def _examples(files: list[bytes], label_count: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Labels and image of each example: uint8 0-255, `(32, 32, 3)`.

    Each row of a file holds the labels, one byte each, then the red, green and blue planes.
    """
    for content in files:
        rows = np.frombuffer(content, np.uint8).reshape(-1, label_count + _PIXELS)
        for row in rows:
            image = row[label_count:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield row[:label_count].tolist(), np.ascontiguousarray(image)
