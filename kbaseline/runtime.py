"""What the machine offers: precision, JAX's compilation cache, and the facts a figure was measured under."""

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from kbaseline.config import DataConfig, RuntimeConfig
from kbaseline.errors import InputError, RunError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def dtype_policy(precision: str) -> str:
    """The Keras dtype policy of a `runtime.precision`: bfloat16 on GPUs that compute in it, float32 elsewhere."""
    if precision == "auto":
        device = jax.devices()[0]
        # Ampere (8.0) is the first to have it.
        capable = device.platform == "gpu" and float(getattr(device, "compute_capability", None) or 0) >= 8
        precision = "bfloat16" if capable else "float32"
    return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]


def prepare(settings: RuntimeConfig) -> None:
    """Does what must be done before JAX starts, and before threads do: compilation cache, determinism, memory.

    Raises:
        InputError: see `make_deterministic`.
    """
    if settings.compilation_cache:
        enable_compilation_cache()
    if settings.deterministic:
        make_deterministic()
    reuse_memory()


def enable_compilation_cache() -> None:
    """Keeps JAX's compiled programs in the user's cache folder, unless JAX was told another place already."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(DataConfig().cache_folder / "jax"))
        # JAX keeps what took a second; a network's initial weights are dozens of programs of half that.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def make_deterministic() -> None:
    """Makes a GPU compute the same bits twice; XLA reads its flag only as JAX starts. A CPU does so in any case.

    Raises:
        InputError: JAX has already started on a GPU without it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC in flags:
        return
    # JAX has no public way to ask.
    if jax._src.xla_bridge.backends_are_initialized():
        if jax.default_backend() == "gpu":
            raise InputError(
                "runtime.deterministic: JAX has started in this process without it; set it in a fresh process, "
                f"or XLA_FLAGS={_DETERMINISTIC} in the environment."
            )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()


def reuse_memory() -> bool:
    """Has the process keep the memory that JAX on a CPU gives back, instead of fetching it anew at every step.

    XLA's CPU client allocates what a program needs, a gigabyte for a ResNet50's step, and frees it after each call.
    glibc gives such blocks back to the system, and every page of them costs a fault at the next step: 0.3 to 0.9
    seconds of 1.1 to 1.8 were measured. Threads that have run before have memory of their own, which stays as it is.

    Returns:
        Whether anything was changed: not where JAX has a plugin for another kind of device, nor on other C libraries
        (macOS, Windows, musl), nor where a variable `MALLOC_*` in the environment has set how memory is kept.
    """
    only_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not importlib.metadata.entry_points(group="jax_plugins")
    if not only_cpu or platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    # In other arenas than the first, large blocks would be maps of their own in any case.
    options = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
    return all(libc.mallopt(option, value) for option, value in options.items())


@contextmanager
def short_of_memory(what: str, batch: int) -> Iterator[None]:
    """Turns XLA's report that the accelerator's memory does not suffice into one line.

    Args:
        what: what is being done.
        batch: `data.batch_size`.

    Raises:
        RunError: see above.
    """
    try:
        yield
    except Exception as error:
        # Keras puts its variables back after a failed step, and fails at that too, for the step has taken them.
        seen: BaseException | None = error
        while seen is not None and "RESOURCE_EXHAUSTED" not in str(seen):
            seen = seen.__context__
        if seen is None:
            raise
        smaller = f"data.batch_size to {batch // 2} or less" if batch > 1 else "data.size lower"
        raise RunError(
            f"{what}: data.batch_size {batch} does not fit into the memory of {jax.devices()[0].device_kind}; set "
            f"{smaller}, or take a smaller backbone."
        ) from None


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
