"""The program `kbaseline`: the command, in a process whose memory comes in huge pages where those must be asked for."""

import importlib.metadata
import os
import sys
from contextlib import suppress
from pathlib import Path

from kbaseline.cli.main import main

_LINUX = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def program() -> None:
    """Runs the command that `sys.argv` holds, and ends the process."""
    if sys.argv[1:] and not {"-h", "--help", "--version"}.intersection(sys.argv):
        ask_for_huge_pages()
    main()


def ask_for_huge_pages() -> None:
    """Starts this process anew, with the same arguments, if its memory could then come in huge pages.

    On a CPU, XLA allocates what a program needs anew at each call, a gigabyte for a training step of a ResNet50. In
    pages of 4 KiB that takes a third of a small network's time (docs/performance.md). glibc (2.35 or later) reads its
    setting only as a process starts, and nothing but a new start changes it:
    https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html. Nothing is done where Linux
    gives huge pages to everyone or to no one, where the setting is made already, or where JAX has an accelerator.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with suppress(OSError):
        if _TUNABLE in tunables or "[madvise]" not in _LINUX.read_text("utf-8"):
            return
        if importlib.metadata.entry_points(group="jax_plugins"):
            return
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_TUNABLE}=1".strip(":")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program
