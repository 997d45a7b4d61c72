"""XLA and JAX settings: precision, compilation cache, flags, out-of-memory errors, versions of the environment."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from kbaseline.errors import InputError, RunError
from kbaseline.storage import cache_folder

PROGRAMS_BYTES = 2 * 10**9
"""About how much the compiled programs in a cache folder may take as a process begins."""

_programs: str | None = None
"""Where this process keeps compiled programs by its own choice."""

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY")
"""What XLA and the libraries under it say when the accelerator's memory is too small."""

_LIBRARIES = "--xla_cpu_experimental_ynn_fusion_type"


def dtype_policy(precision: str) -> str:
    """The Keras dtype policy of a `runtime.precision`: bfloat16 on GPUs that compute in it, float32 elsewhere."""
    if precision == "auto":
        device = jax.devices()[0]
        # NVIDIA's is a number, and Ampere (8.0) is the first with bfloat16; AMD's is a name such as gfx90a.
        version = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
        capable = device.platform == "gpu" and version is not None and int(version[1]) >= 8
        precision = "bfloat16" if capable else "float32"
    return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]


def set_compilation_cache(folder: Path | None) -> None:
    """Keeps JAX's compiled programs in a cache folder; None keeps none. Where JAX was told another place, that holds.

    Those used longest ago are deleted first if all together take more than `PROGRAMS_BYTES`.
    """
    global _programs
    if jax.config.jax_compilation_cache_dir != _programs:
        return
    chosen = None if folder is None else str(folder / "jax")
    if chosen == _programs:
        return
    _programs = chosen
    jax.config.update("jax_compilation_cache_dir", chosen)
    # JAX asks for its folder once; without this an earlier learner's would hold.
    compilation_cache.reset_cache()
    if folder is not None:
        # JAX keeps what took a second; a network's initial weights are dozens of programs of half that.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # JAX's own bound reads the time of every program again for each that it adds.
        cache_folder.trim(cache_folder.kept(folder)["compiled programs"], PROGRAMS_BYTES)


def make_deterministic() -> None:
    """Makes GPU computations bitwise reproducible; on a CPU they always are. XLA reads the flag when JAX starts.

    Raises:
        InputError: JAX has already started on a GPU without the flag.
    """
    if not _set_flag(_DETERMINISTIC) and jax.default_backend() == "gpu":
        raise InputError(
            "runtime.deterministic: JAX has already started in this process without it; start a fresh process, "
            f"or set XLA_FLAGS={_DETERMINISTIC} in the environment."
        )


def prefer_eigen_convolutions() -> None:
    """Makes XLA compute convolutions on a CPU with Eigen instead of YNNPACK: faster, and equal up to rounding.

    XLA reads the flag when JAX starts; a later call has no effect. The flag is set only where it was measured: not
    with JAX 0.13 or later, not on processors other than x86-64, and not where JAX has a plugin for an accelerator.
    """
    measured = platform.machine() in ("x86_64", "AMD64") and jax.__version_info__ < (0, 13)
    chosen = _LIBRARIES in os.environ.get("XLA_FLAGS", "")
    if measured and not chosen and not importlib.metadata.entry_points(group="jax_plugins"):
        _set_flag(f"{_LIBRARIES}=-individual_convolution")


def _set_flag(flag: str) -> bool:
    """Adds a flag to `XLA_FLAGS`, which XLA reads when JAX starts; False if JAX has started without it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag in flags:
        return True
    if jax_has_started():
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    return True


def jax_has_started() -> bool:
    """Whether JAX has started its devices in this process, and so has read XLA's flags.

    JAX has no public function for this; checked with 0.10.2, 0.11.2 and 0.12.0.1.
    """
    started: bool = jax._src.xla_bridge.backends_are_initialized()
    return started


@contextmanager
def explain_oom(what: str, batch: int) -> Iterator[None]:
    """Turns XLA's out-of-memory error into an error of one line.

    Args:
        what: the work in progress, for the message.
        batch: `data.batch_size`.

    Raises:
        RunError: the accelerator's memory is too small.
    """
    try:
        yield
    except Exception as error:
        # After a failed step Keras restores its variables and fails again, because the step has donated their buffers.
        seen: BaseException | None = error
        while seen is not None and not any(word in str(seen) for word in _NO_MEMORY):
            seen = seen.__context__
        if seen is None:
            raise
        smaller = f"data.batch_size to {batch // 2} or less" if batch > 1 else "data.size lower"
        raise RunError(
            f"{what}: data.batch_size {batch} does not fit into the memory of {jax.devices()[0].device_kind}; set "
            f"{smaller}, or take a smaller backbone."
        ) from None


def environment() -> dict[str, Any]:
    """Versions, platform, devices and processor count, to record with results."""
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
