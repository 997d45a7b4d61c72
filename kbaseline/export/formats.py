"""Export formats: a writer for each, and a reader that loads the file as a user of the format would."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from jax import export as jax_export

from kbaseline.errors import InputError, did_you_mean, require
from kbaseline.export.network import INPUT, OUTPUT
from kbaseline.models.backbones import leaves, read_model

METADATA = "kbaseline.json"
"""Member with the metadata in `.keras` and StableHLO files, both zip archives; ONNX has its own metadata."""

_STABLEHLO = "network.jax_export"
"""Member of a StableHLO file: the output of `jax.export`, with JAX's guarantee of backward compatibility."""

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that the StableHLO is lowered for."""

_OPSET = 18
"""The oldest ONNX operator set that suffices for a classifier; an older set runs in more runtimes."""

Predict = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From uint8 `(batch, height, width, 3)` to the outputs by name, float32."""


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        file: the file name.
        packages: optional modules it needs; `kbaseline[FORMAT]` installs them.
        write: writes a network and its metadata to a path.
        read: reads a path; returns a function from images to outputs, and the metadata.
    """

    file: str
    packages: tuple[str, ...]
    write: Callable[[keras.Model, Mapping[str, Any], Path], None]
    read: Callable[[Path], tuple[Predict, dict[str, Any]]]


def get_format(name: str) -> Format:
    """The format with this name.

    Raises:
        InputError: the name is unknown, or a package the format needs is not installed.
    """
    if name not in FORMATS:
        raise InputError(f"format {name!r}: must be one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    require(f"format {name!r}", name, *FORMATS[name].packages)
    return FORMATS[name]


def _write_keras(network: keras.Model, metadata: Mapping[str, Any], path: Path) -> None:
    network.save(path)
    # Keras ignores unknown members, and has no place for custom metadata.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(metadata))


def _read_keras(path: Path) -> tuple[Predict, dict[str, Any]]:
    network = read_model(path, path.name)
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read(METADATA))
    return lambda images: _named(network.predict_on_batch(images)), metadata


def _write_stablehlo(network: keras.Model, metadata: Mapping[str, Any], path: Path) -> None:
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.input_shape[1:]), np.uint8)
    lowered = jax_export.export(jax.jit(_inference(network)), platforms=_PLATFORMS)(images)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_STABLEHLO, bytes(lowered.serialize()))
        archive.writestr(METADATA, json.dumps(metadata))


def _read_stablehlo(path: Path) -> tuple[Predict, dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        network = jax.jit(jax_export.deserialize(bytearray(archive.read(_STABLEHLO))).call)
        metadata = json.loads(archive.read(METADATA))
    return lambda images: _named(network(images)), metadata


def _write_onnx(network: keras.Model, metadata: Mapping[str, Any], path: Path) -> None:
    import onnx
    from jax2onnx import to_onnx

    # Keras' `model.export` calls the same converter, but puts large weights into a second file and does not let us
    # name the output.
    images = jax.ShapeDtypeStruct(("batch", *network.input_shape[1:]), np.uint8)
    outputs = sorted(network.output) if isinstance(network.output, dict) else [OUTPUT]  # as JAX sorts a dictionary
    names = {"input_names": [INPUT], "output_names": outputs, "model_name": network.name}
    with _pooling_by_flax(network):
        converted = to_onnx(_inference(network), [images], opset=_OPSET, **names)
    onnx.helper.set_model_props(
        converted,
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()},
    )
    onnx.checker.check_model(converted)
    path.write_bytes(converted.SerializeToString())


@contextmanager
def _pooling_by_flax(network: keras.Model) -> Iterator[None]:
    """Computes max pooling with Flax's function, which gives the same numbers, within the context.

    jax2onnx 0.17 converts Flax's function to ONNX's own pooling. It converts the JAX operation of Keras' layer to
    pooling over four dimensions, which ONNX Runtime does not support.
    """
    from flax import linen

    def pool(layer: keras.layers.MaxPooling2D, inputs: Any) -> Any:
        shape, strides = tuple(layer.pool_size), tuple(layer.strides)
        return linen.max_pool(inputs, window_shape=shape, strides=strides, padding=layer.padding.upper())

    layers = [layer for layer in leaves(network) if isinstance(layer, keras.layers.MaxPooling2D)]
    for layer in layers:
        layer.call = partial(pool, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _read_onnx(path: Path) -> tuple[Predict, dict[str, Any]]:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # errors are raised and need not be logged too
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    decoded = {name: json.loads(texts[name]) for name in ("class_names", "doubt") if name in texts}
    metadata = {**texts, **decoded}
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True)), metadata


def _named(outputs: Any) -> dict[str, np.ndarray]:
    """The outputs of a network by name; one output alone has none."""
    by_name = outputs if isinstance(outputs, dict) else {OUTPUT: outputs}
    return {name: np.asarray(values) for name, values in by_name.items()}


def _inference(network: keras.Model) -> Callable[[Any], Any]:
    return lambda images: network(images, training=False)


FORMATS = {
    "keras": Format("model.keras", (), _write_keras, _read_keras),
    "onnx": Format("model.onnx", ("jax2onnx", "onnx", "onnxruntime"), _write_onnx, _read_onnx),
    "stablehlo": Format("model.stablehlo.zip", (), _write_stablehlo, _read_stablehlo),
}
"""Name -> format."""
