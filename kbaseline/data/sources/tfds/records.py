"""Reads the examples of a prepared TFDS dataset in any order, without TensorFlow."""

import bisect
import contextlib
import hashlib
import io
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kbaseline.console.bars import Bar
from kbaseline.errors import DataError, RunError, one_line
from kbaseline.storage.cache_folder import whole_file
from kbaseline.storage.npz import DamagedError, read_array


class TFRecords:
    """The records of TFRecord files, by number.

    A record is its length (8 bytes, little-endian), a checksum (4 bytes), the content, and a checksum (4 bytes).

    Args:
        shards: path, number of records to skip and number of records to take, for each file.
    """

    def __init__(self, shards: Sequence[tuple[str, int, int]]) -> None:
        self._places: list[tuple[mmap.mmap, int, int]] = []
        for path, skip, take in shards:
            with Path(path).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            places, position = [], 0
            while position < len(content):
                (length,) = struct.unpack_from("<Q", content, position)
                if position + length + 16 > len(content):
                    raise ValueError(f"{path} ends within a record")
                places.append((content, position + 12, length))
                position += length + 16
            self._places += places[skip : skip + take]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        content, start, length = self._places[index]
        return content[start : start + length]


def split_records(builder: Any, split: str) -> Any:
    """The serialised examples of a split: `len(...)` and `...[number]`.

    Raises:
        DataError: the dataset was prepared in a format that kbaseline cannot read.
        RunError: a file is missing or damaged.
    """
    from tensorflow_datasets.core.decode import DeserializeMethod

    kind = builder.info.file_format.value if builder.info.file_format else "unknown"
    if kind not in ("array_record", "tfrecord"):
        raise DataError(
            f"tfds:{builder.name}: the copy in {builder.data_dir!r} is in the format {kind}; kbaseline reads "
            "array_record and tfrecord. Delete that copy, or set data.data_dir to another folder."
        )
    try:
        if kind == "tfrecord":
            parts = builder.info.splits[split].file_instructions
            return TFRecords([(os.fspath(part.filename), part.skip, part.take) for part in parts])
        found = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
        len(found)  # opens the files
    except _DAMAGES as error:
        raise _damaged(f"tfds:{builder.name} {split}", one_line(error)) from None
    return found


class Records:
    """The images of some splits of a TFDS dataset, as `Pictures`.

    Args:
        source: name of the dataset in messages.
        splits: TFDS's split name -> its serialised examples; images are numbered in this order, over all splits.
        image_key: name of the feature with the encoded image.
        stamp: string that changes when the files on disk change.
    """

    def __init__(self, source: str, splits: dict[str, Any], image_key: str, stamp: str) -> None:
        self._source, self._names, self._records = source, list(splits), list(splits.values())
        self._ends = list(accumulate(map(len, self._records)))
        self._image_key, self._stamp = image_key, stamp
        self._lock = threading.Lock()

    def name(self, index: int) -> str:
        """For instance `tfds:cifar10 train #17`."""
        split, number = self._place(index)
        return f"{self._source} {self._names[split]} #{number}"

    def open(self, index: int) -> BinaryIO:
        """The encoded image."""
        split, number = self._place(index)
        with self._lock:
            features = example_features(self._records[split], number, self.name(index))
        values = features[self._image_key].bytes_list.value
        return io.BytesIO(values[0] if values else b"")

    def fingerprint(self, index: int) -> str:
        """Identifies the files on disk and the example in them."""
        split, number = self._place(index)
        return f"{self._stamp}\0{self._names[split]}\0{number}"

    def _place(self, index: int) -> tuple[int, int]:
        split = bisect.bisect_right(self._ends, index)
        return split, index - (self._ends[split - 1] if split else 0)


def example_features(records: Any, number: int, name: str) -> Any:
    """The features of a serialised `tf.train.Example`, by name of the feature.

    Raises:
        RunError: the record, which the error calls `name`, is damaged.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        record = records[number]
        if not record:  # what array_record gives beyond the end of a file cut short
            raise ValueError("the record is empty")
        return tf_example_pb2.Example.FromString(record).features.feature
    except (*_DAMAGES, DecodeError) as error:
        raise _damaged(name, one_line(error)) from None


_DAMAGES = (OSError, RuntimeError, ValueError, IndexError, struct.error)
"""What readers of array_record and TFRecord files raise for one that is missing, cut short or overwritten."""


def _damaged(name: str, reason: str) -> RunError:
    return RunError(f"{name}: cannot be read ({reason}); delete the dataset and prepare it again.")


def files_stamp(folder: Path) -> str:
    """A string that changes when a file of a prepared dataset changes, found without reading it."""
    states = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return "\0".join([str(folder), *(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)])


def read_labels(records: Any, label_key: str, source: str, bar: Bar) -> np.ndarray:
    """The label of every example, int64 `(number,)`; -1 for an example without a label.

    Raises:
        RunError: an example is damaged; `source` names its split in the error.
    """
    labels = np.full(len(records), -1, np.int64)
    for number in range(len(records)):
        values = example_features(records, number, f"{source} #{number}")[label_key].int64_list.value
        labels[number] = values[0] if values else -1
        bar.advance()
    return labels


def remembered(folder: Path, stamp: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the result of `make`, cached in `folder` under `stamp`.

    Used for labels: they are needed before images are selected, and finding them means reading the whole dataset.

    Raises:
        RunError: the folder cannot be written.
    """
    path = folder / f"{hashlib.blake2b(stamp.encode(errors='surrogateescape'), digest_size=16).hexdigest()}.npy"
    with contextlib.suppress(DamagedError):
        return read_array(path)
    array = make()
    with whole_file(path) as unfinished:
        np.save(unfinished, array)
    return array
