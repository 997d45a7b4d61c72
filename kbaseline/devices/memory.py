"""Memory for XLA on a CPU, in huge pages where those must be asked for.

XLA allocates what a program needs anew at each call, a gigabyte for a training step of a ResNet50. glibc returns it to
Linux in between, and Linux clears it before it comes back. What is measured stands in docs/performance.md.
"""

import importlib.metadata
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_HUGE_PAGES = "glibc.malloc.hugetlb"
_LINUX = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages() -> None:
    """Starts this process anew, with the same arguments, if its memory could then come in huge pages.

    In pages of 4 KiB, memory takes a third of a small network's time. glibc (2.35 or later) reads its setting only as a
    process starts, and nothing but a new start changes it:
    https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html. Nothing is done where Linux
    gives huge pages to everyone or to no one, where the setting is made already, where another allocator is in
    `LD_PRELOAD`, or where JAX has an accelerator.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with suppress(OSError):
        if _HUGE_PAGES in tunables or _preloaded_allocator() or "[madvise]" not in _LINUX.read_text("utf-8"):
            return
        if importlib.metadata.entry_points(group="jax_plugins"):
            return
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_HUGE_PAGES}=1".strip(":")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program


def allocator() -> str:
    """Where this process has its memory from, for `kbaseline doctor`: a preloaded library, or the system's own."""
    if preloaded := _preloaded_allocator():
        return preloaded
    pages = ", in huge pages" if f"{_HUGE_PAGES}=1" in os.environ.get("GLIBC_TUNABLES", "") else ""
    return (platform.libc_ver()[0] or "the system's") + pages


def _preloaded_allocator() -> str:
    names = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return next((name for name in names if "malloc" in name), "")
