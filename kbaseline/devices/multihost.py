"""Several processes as one run: how they join, take turns, and end together.

Every process runs the same program from the same configuration; JAX lets their devices compute as one. Only the first
process writes and speaks. All see one file system, or at least the same data and run folder.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
from rich.console import Console

from kbaseline.config.schema import RuntimeConfig
from kbaseline.devices.xla import jax_has_started
from kbaseline.errors import InputError, KBaselineError, RunError, one_line

HEARTBEAT_SECONDS = 30
"""A process that nobody has heard of for so long is dead; JAX then aborts the others, and says why at length."""

_FAREWELL_SECONDS = 5
"""How long a process that has failed waits for the others to do so too."""

_WEEK_MS = 7 * 24 * 3600 * 1000
"""The others wait while the first process decodes millions of photos."""

_BETWEEN = ("Gloo", "NCCL", "oordination", "UNAVAILABLE")
"""What JAX' errors name where the talk between processes fails."""

Found = TypeVar("Found")


def init_distributed(runtime: RuntimeConfig, console: Console | None = None) -> None:
    """Makes this process one of several, as `runtime` or the variables of a SLURM step say.

    Does nothing where it is alone or has joined already. To be called before JAX starts its devices.

    Args:
        runtime: the configuration's section.
        console: where the first process says that it waits for the others; default: standard output.

    Raises:
        InputError: JAX has started them.
        RunError: the processes do not find each other.
    """
    alone = runtime.num_processes == 1 or (runtime.coordinator is None and not _in_slurm_step())
    if alone or jax.distributed.is_initialized():
        return
    if jax_has_started():
        raise InputError("runtime.coordinator: JAX has computed in this process already; start with a fresh one.")
    if runtime.process_id == 0:
        (console or Console()).print(
            f"waiting at {runtime.coordinator} for {runtime.num_processes} processes", markup=False, highlight=False
        )
    try:
        # What is None is looked up in SLURM's variables.
        jax.distributed.initialize(
            runtime.coordinator,
            runtime.num_processes,
            runtime.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise RunError(
            f"runtime.coordinator {runtime.coordinator!r}: the processes do not find each other "
            f"({one_line(error)}); start all of them within five minutes, with an address that each can reach."
        ) from None


def _in_slurm_step() -> bool:
    """Whether `srun` has started this process with others; the shell of an allocation has no list of nodes."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _state() -> Any:
    """JAX' record of the processes: `process_id`, `num_processes` and `client`.

    Private; checked with JAX 0.10.2, 0.11.2 and 0.12.0.1. What is public starts JAX' devices (`jax.process_index`), and
    has no barrier that may last for hours.
    """
    return jax._src.distributed.global_state


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    first: bool = _state().process_id == 0
    return first


def are_several() -> bool:
    """Whether this process is one of several."""
    several: bool = _state().num_processes > 1
    return several


def rank0_console(console: Console | None) -> Console:
    """The console of the first process, by default standard output; a silent one in the others."""
    return (console or Console()) if is_first() else Console(quiet=True)


def rank0_first(what: str, work: Callable[[], Found]) -> Found:
    """Does `work` in the first process, then in the others, who find what it has downloaded or decoded.

    Args:
        what: names the work.
        work: where it fails in the first process, the others still try, to fail and say so themselves.
    """
    if not are_several():
        return work()
    if not is_first():
        barrier(what)
    try:
        return work()
    finally:
        if is_first():
            barrier(what)


def barrier(what: str) -> None:
    """Waits until all processes have come here; `what` names the place."""
    if are_several():
        _state().client.wait_at_barrier(f"kbaseline {what}", _WEEK_MS)


@contextmanager
def fail_together() -> Iterator[None]:
    """Ends every process of a run with the first that fails: none is left waiting for another.

    Raises:
        RunError: another process has ended.
    """
    try:
        yield
    except BaseException as error:
        if not are_several():
            raise
        atexit.register(_leave, getattr(error, "exit_code", 1))
        if isinstance(error, KBaselineError) or not any(word in str(error) for word in _BETWEEN):
            raise
        raise RunError(
            f"another process of this run has ended or cannot be reached ({one_line(error)}); start all of them again, "
            "with --resume RUN if the run had begun, in as many processes as you like."
        ) from error


def _leave(code: int) -> None:
    """Ends the process, unless all have come to their end; JAX' own farewell would wait for those who never will."""
    with suppress(Exception):
        _state().client.wait_at_barrier("kbaseline farewell", 1000 * _FAREWELL_SECONDS)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        # With it the others lose their coordinator, which JAX reports at length.
        time.sleep(1)
    os._exit(code)
