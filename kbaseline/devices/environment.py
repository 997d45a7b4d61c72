"""Versions, platform, devices and processor count, to record with results."""

import importlib.metadata
import os
import platform
from typing import Any

_PACKAGES = ("kbaseline", "keras", "jax", "jaxlib", "numpy", "tensorflow-datasets")


def versions() -> dict[str, Any]:
    """Versions, platform and processor count; imports neither Keras nor JAX."""
    return {
        **{name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def environment() -> dict[str, Any]:
    """`versions`, JAX's kind and number of devices, and where they are set, the layers for a GPU and JAX's precision.

    Raises:
        InputError: see `start_jax`, and `is_switched_on` of `kbaseline.models.gpu`.
    """
    from kbaseline.devices.xla import start_jax

    start_jax()
    import jax

    from kbaseline.models.gpu import SWITCH, is_switched_on

    found = {**versions(), "device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    if is_switched_on():
        found[SWITCH] = 1
    if precision := jax.config.jax_default_matmul_precision:
        found["jax_default_matmul_precision"] = precision
    return found


def version(package: str) -> str:
    """The version of an installed package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
