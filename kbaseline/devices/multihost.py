"""One run in several processes: initialisation, barriers, output from the first process only, joint failure.

Every process runs the same program with the same configuration, and JAX computes on the devices of all of them. Only
the first process writes files and prints. All processes need access to the same data and the same run folder.
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
"""A process that has sent no heartbeat for this long counts as dead; JAX then aborts the others with a long message."""

_FAREWELL_SECONDS = 5
"""How long a failed process waits for the others to fail as well."""

_WEEK_MS = 7 * 24 * 3600 * 1000
"""Timeout of a barrier: the other processes wait while the first one decodes millions of photos."""

_BETWEEN = ("Gloo", "NCCL", "oordination", "UNAVAILABLE")
"""Words in JAX' errors when communication between processes fails."""

Found = TypeVar("Found")


def init_distributed(runtime: RuntimeConfig, console: Console | None = None) -> None:
    """Connects this process to the others of its run, as set in `runtime` or in the variables of a SLURM step.

    Does nothing if there is only one process or it is connected already. Call it before JAX initialises its devices.

    Args:
        runtime: the configuration's `runtime` section.
        console: where the first process prints that it waits for the others; default: standard output.

    Raises:
        InputError: JAX has initialised its devices already.
        RunError: the processes cannot connect to each other.
    """
    alone = runtime.num_processes == 1 or (runtime.coordinator is None and not _in_slurm_step())
    if alone or jax.distributed.is_initialized():
        return
    if jax_has_started():
        raise InputError("runtime.coordinator: JAX is already initialised in this process; start a fresh one.")
    if runtime.process_id == 0:
        (console or Console()).print(
            f"waiting at {runtime.coordinator} for {runtime.num_processes} processes", markup=False, highlight=False
        )
    try:
        # JAX reads what is None from SLURM's variables.
        jax.distributed.initialize(
            runtime.coordinator,
            runtime.num_processes,
            runtime.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise RunError(
            f"runtime.coordinator {runtime.coordinator!r}: the processes cannot connect to each other "
            f"({one_line(error)}); start all of them within five minutes, with an address that all can reach."
        ) from None


def _in_slurm_step() -> bool:
    """Whether `srun` started this process together with others; the shell of an allocation has no node list."""
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _state() -> Any:
    """JAX' state of the processes: `process_id`, `num_processes` and `client`.

    Private; checked with JAX 0.10.2, 0.11.2 and 0.12.0.1. The public functions initialise JAX' devices
    (`jax.process_index`), and JAX has no public barrier with a timeout of hours.
    """
    return jax._src.distributed.global_state


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    first: bool = _state().process_id == 0
    return first


def are_several() -> bool:
    """Whether this process is one of several."""
    several: bool = _state().num_processes > 1
    return several


def rank0_console(console: Console | None) -> Console:
    """`console` in the first process, by default standard output; a silent console in the others."""
    return (console or Console()) if is_first() else Console(quiet=True)


def rank0_first(what: str, work: Callable[[], Found]) -> Found:
    """Calls `work` in the first process, then in the others, which find the downloaded or decoded files.

    Args:
        what: name of the work, for the barrier.
        work: called without arguments. If it fails in the first process, the others still call it, so that each
            process raises its own error.

    Returns:
        What `work` returns.
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
    """Waits until all processes have reached this point; `what` names the barrier."""
    if are_several():
        _state().client.wait_at_barrier(f"kbaseline {what}", _WEEK_MS)


@contextmanager
def fail_together() -> Iterator[None]:
    """Ends all processes of a run when one fails, so that none waits for a dead one.

    Raises:
        RunError: another process has ended or cannot be reached.
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
            "with --resume RUN if the run had begun; their number may differ."
        ) from error


def _leave(code: int) -> None:
    """Ends a failed process; first lets JAX shut down normally if all processes get here within the timeout.

    JAX' own shutdown waits for every process, and would never return if one is dead.
    """
    with suppress(Exception):
        _state().client.wait_at_barrier("kbaseline farewell", 1000 * _FAREWELL_SECONDS)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        # The first process is the coordinator. When it ends, JAX aborts the others with a long message.
        time.sleep(1)
    os._exit(code)
