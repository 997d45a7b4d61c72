"""JAX and XLA: precision, compilation cache, start with flags, out-of-memory errors."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import keras
from jax.experimental.compilation_cache import compilation_cache

from kbaseline.errors import InputError, RunError, one_line
from kbaseline.models.gpu import is_switched_on
from kbaseline.storage import cache_folder

PROGRAMS_BYTES = 2 * 10**9
"""About how much the compiled programs in a cache folder may take as a process begins."""

_programs: str | None = None
"""Where this process keeps compiled programs by its own choice."""

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY")
"""What XLA and the libraries under it say when the accelerator's memory is too small."""

_LIBRARIES = "--xla_cpu_experimental_ynn_fusion_type"
_EIGEN = f"{_LIBRARIES}=-individual_convolution"

_GRAPHS = "--xla_gpu_enable_command_buffer"
_CONVOLUTIONS_IN_GRAPHS = f"{_GRAPHS}=+CONVOLUTION"

_given: list[str] = []
"""The flags that XLA has read from us."""

_CUDA = "`pip install 'kbaseline[cuda13]'`, or cuda12 for drivers before 580, and start again"


def dtype_policy(precision: str) -> str:
    """The Keras dtype policy of a `runtime.precision`: bfloat16 on GPUs that compute in it, float32 elsewhere."""
    if precision == "auto":
        device = jax.devices()[0]
        # NVIDIA's is a number, and Ampere (8.0) is the first with bfloat16; AMD's is a name such as gfx90a.
        version = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
        capable = device.platform == "gpu" and version is not None and int(version[1]) >= 8
        precision = "bfloat16" if capable else "float32"
    return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]


@contextmanager
def with_precision(precision: str) -> Iterator[None]:
    """Sets Keras' dtype policy to that of a `runtime.precision`, and back at the end."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy(precision))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def set_compilation_cache(folder: Path | None) -> None:
    """Keeps JAX's compiled programs in a cache folder; None keeps none. Where JAX was told another place, that holds.

    Those used longest ago are deleted first if all together take more than `PROGRAMS_BYTES`. None are kept where the
    folder cannot be written to.
    """
    global _programs
    if jax.config.jax_compilation_cache_dir != _programs:
        return
    if folder is not None and not _is_writable(folder / "jax"):
        folder = None
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


def _is_writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def start_jax(*, deterministic: bool = False) -> None:
    """Starts JAX's devices, which is when XLA reads its flags; later calls have no effect.

    Child processes do not inherit our flags, because another version of XLA aborts on flags that it does not know. On a
    CPU, convolutions run in Eigen instead of YNNPACK: faster, and equal up to rounding. That flag is set only where it
    was measured: not with JAX 0.13 or later, not on processors other than x86-64, and not where JAX has a plugin for an
    accelerator. With `kbaseline.models.gpu` switched on and a CUDA plugin, JAX 0.11 and 0.12 record convolutions into
    CUDA graphs too, so that the host starts a training step as one piece.

    Args:
        deterministic: make GPU computations bitwise reproducible; on a CPU they always are.

    Raises:
        InputError: JAX has no device of the kind that it was told to use, or has already started on a GPU without the
            flag for `deterministic`; or see `is_switched_on`.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax_has_started():
        if deterministic and _DETERMINISTIC not in [*flags.split(), *_given] and jax.default_backend() == "gpu":
            raise InputError(
                "runtime.deterministic: JAX has already started in this process without it; start a fresh process, "
                f"or set XLA_FLAGS={_DETERMINISTIC} in the environment."
            )
        return
    plugins = [plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")]
    measured = platform.machine() in ("x86_64", "AMD64") and jax.__version_info__ < (0, 13)
    eigen = measured and _LIBRARIES not in flags and not plugins
    # Others may not know the value, and XLA aborts.
    known = (0, 11) <= jax.__version_info__ < (0, 13) and any("cuda" in name for name in plugins)
    graphs = is_switched_on() and known and _GRAPHS not in flags
    choices = (_DETERMINISTIC, deterministic), (_EIGEN, eigen), (_CONVOLUTIONS_IN_GRAPHS, graphs)
    ours = [flag for flag, wanted in choices if wanted and flag not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *ours]).strip()
    try:
        jax.devices()
    except Exception as error:
        raise _no_device(error) from None
    finally:
        os.environ["XLA_FLAGS"] = flags
        if not flags:
            del os.environ["XLA_FLAGS"]
    _given.extend(ours)
    # JAX keeps the programs of other flags apart by the environment. Those of other numbers of cores it does not: one
    # that was compiled on one core runs on one for ever.
    cache_key, further, apart = jax._src.cache_key, jax._src.cache_key.custom_hook, [f"{_cores()} cores", *ours]
    cache_key.custom_hook = lambda: " ".join([further(), *apart])


def _cores() -> int | str | None:
    """The number of threads for which XLA divides a program on a CPU."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get("NPROC", usable)


def _no_device(error: Exception) -> InputError:
    """What to set where JAX cannot start; of a platform without a device it raises an `AssertionError` of no words."""
    asked, reason = jax.config.jax_platforms, f" ({one_line(error)})" if str(error) else ""
    if not asked:
        return InputError(f"JAX cannot start{reason}; set JAX_PLATFORMS=cpu to compute without an accelerator.")
    extra = f"; for an NVIDIA GPU, {_CUDA}" if "cuda" in asked or "gpu" in asked else ""
    return InputError(
        f"JAX_PLATFORMS is {asked!r}: JAX finds no such device here{reason}; unset it or set it to cpu{extra}."
    )


def unused_gpu() -> str | None:
    """One line on an NVIDIA GPU that JAX cannot use, with the reason; None if there is none, or none is wanted."""
    # The files by which JAX itself decides (of WSL 2, the last).
    files = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    chosen = jax.config.jax_platforms or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if chosen or jax.default_backend() != "cpu" or not any(map(os.path.exists, files)):
        return None
    installed = any("cuda" in plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins"))
    # JAX has logged what its plugin lacks, mostly CUDA's libraries or a newer driver.
    reason = "its CUDA plugin does not start (see JAX's own message)" if installed else "it is installed without CUDA"
    return f"there is an NVIDIA GPU, but JAX computes on the CPU, because {reason}: {_CUDA}"


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
