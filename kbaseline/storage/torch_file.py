"""Reads the tensors of a file that torch saved before its version 1.6, without torch and without running its code."""

import collections
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kbaseline.storage.npz import DamagedError, one_error

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ELEMENTS = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    """A run of numbers behind the pickles; several tensors may be views of one."""

    key: str
    elements: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    """A view of a storage: offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _TensorsOnly(pickle.Unpickler):
    """Builds ordered dictionaries and tensors, and refuses any other name that a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
            case "torch", name if name in _ELEMENTS:
                return _ELEMENTS[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, elements, key, _, length, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("a storage of a kind that is not read")
        return _Storage(key, elements, length)


def read_tensors(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary, by name, read-only.

    The format: three pickles (a magic number, the protocol, the machine's types), the dictionary, the list of its
    storages' keys, and the storages in that order, each behind its length.

    Args:
        path: the file.
        sha256: what its SHA-256 must be, in hexadecimal digits; nothing of another file is unpickled.

    Raises:
        DamagedError: it is another file, it is damaged, or it holds anything else than tensors of float32 or int64.
    """
    with one_error():
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(f"its SHA-256 is not {sha256[:16]}…")
        file = io.BytesIO(content)
        magic, protocol, system, state, keys = (_TensorsOnly(file).load() for _ in range(5))
        if (magic, protocol, system["little_endian"]) != (_MAGIC, _PROTOCOL, True):
            raise DamagedError("not torch's format of before 1.6")
        elements = {tensor.storage.key: tensor.storage.elements for tensor in state.values()}
        storages: dict[str, np.ndarray] = {}
        at = file.tell()
        for key in keys:
            length = int.from_bytes(content[at : at + 8], "little")
            storages[key] = np.frombuffer(content, elements[key], length, at + 8)
            at += 8 + storages[key].nbytes
        return {name: _view(storages[tensor.storage.key], tensor) for name, tensor in state.items()}


def _view(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The tensor as a view of its storage. Its strides count: a tensor may have been saved transposed."""
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or last >= len(storage):
        raise DamagedError("a tensor that exceeds its storage")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
