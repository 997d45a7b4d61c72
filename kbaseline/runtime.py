"""What the machine offers: precision, JAX's compilation cache, and the facts a figure was measured under."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

from kbaseline.data.image_data import default_cache_dir


def dtype_policy(precision: str) -> str:
    """The Keras dtype policy of a `runtime.precision`: bfloat16 on GPUs that compute in it, float32 elsewhere."""
    if precision == "auto":
        device = jax.devices()[0]
        # Ampere (8.0) is the first to have it.
        capable = device.platform == "gpu" and float(getattr(device, "compute_capability", None) or 0) >= 8
        precision = "bfloat16" if capable else "float32"
    return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]


def enable_compilation_cache() -> None:
    """Keeps JAX's compiled programs in the user's cache folder, unless JAX was told another place already."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "jax"))


def environment() -> dict[str, Any]:
    """Versions, device and processor count that figures were measured with."""
    packages = ("kbaseline", "keras", "jax", "jaxlib", "numpy", "tensorflow-datasets")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
