"""Memory for XLA on a CPU: jemalloc keeps it from step to step; without it, glibc can at least take huge pages.

XLA allocates what a program needs anew at each call, a gigabyte for a training step of a ResNet50. glibc returns it to
Linux in between, and Linux clears it before it comes back. Both settings take effect only as a process starts.
"""

import ctypes.util
import importlib.metadata
import os
import sys
from contextlib import suppress
from pathlib import Path

JEMALLOC = "oversize_threshold:0,dirty_decay_ms:60000,thp:always"
"""jemalloc's setting: large blocks are kept like small ones, what is unused for a minute goes back, pages are huge.

https://jemalloc.net/jemalloc.3.html#opt.oversize_threshold
"""

_HUGE_PAGES = "glibc.malloc.hugetlb"
_LINUX = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def memory_settings() -> dict[str, str]:
    """Environment variables with which this process should have started; none if it did, or if nothing is to be had.

    They name jemalloc where the system has it (Debian and Ubuntu: `apt install libjemalloc2`), else glibc's huge pages
    (2.35 or later) where Linux gives them on request:
    https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html. A choice that is made already
    stays: an allocator in `LD_PRELOAD`, or any value of `glibc.malloc.hugetlb` in `GLIBC_TUNABLES`.
    """
    preload, tunables = os.environ.get("LD_PRELOAD", ""), os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "malloc" in preload or _HUGE_PAGES in tunables:
        return {}
    if library := ctypes.util.find_library("jemalloc"):
        return {"LD_PRELOAD": f"{library} {preload}".strip(), "MALLOC_CONF": os.environ.get("MALLOC_CONF", JEMALLOC)}
    with suppress(OSError):
        if "[madvise]" in _LINUX.read_text("utf-8"):
            return {"GLIBC_TUNABLES": f"{tunables}:{_HUGE_PAGES}=1".strip(":")}
    return {}


def start_with_kept_memory() -> None:
    """Starts this process anew, with the same arguments and `memory_settings`, unless JAX has an accelerator.

    On a CPU a small network trains and predicts up to 1.5 times as fast (docs/performance.md).
    """
    if not importlib.metadata.entry_points(group="jax_plugins") and (settings := memory_settings()):
        os.environ |= settings
        with suppress(OSError):
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program


def memory_advice() -> str | None:
    """One line on this process' memory, for `kbaseline doctor`; None where nothing is to be said."""
    if sys.platform != "linux":
        return None
    preload = os.environ.get("LD_PRELOAD", "")
    if "malloc" in preload:
        return f"from {preload}"
    pages = "in huge pages" if f"{_HUGE_PAGES}=1" in os.environ.get("GLIBC_TUNABLES", "") else "as it comes"
    return f"from glibc, {pages}; jemalloc would keep it from step to step (Debian, Ubuntu: apt install libjemalloc2)"
