"""SIGINT and SIGTERM during a run: the first finishes and saves the current step, the second stops at once.

Python runs a signal handler between two of its own instructions, so a signal also waits for a compilation or an
accelerator call in progress.

In a multi-process run all processes must stop after the same step. There JAX catches SIGTERM in whichever process
receives it, and all processes agree on a step.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import keras
from jax.experimental import multihost_utils

from kbaseline.devices.multihost import are_several


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    Like `KeyboardInterrupt`, it is not an `Exception`, so that no `except Exception` catches it by accident.

    Args:
        number: the signal number.
        hint: what to do next.
    """

    def __init__(self, number: int, hint: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {hint}")
        self.number, self.exit_code = number, 128 + number

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of the frames of Keras."""
        return [str(self)]


class Interrupts:
    """Context manager that handles SIGINT and SIGTERM in the main thread.

        with Interrupts("continue with ...") as interrupts:
            with interrupts.deferred():   # here a signal is only recorded
                ...
                interrupts.raise_if_requested()   # between two steps
            ...   # here a signal raises `Stopped` at once

    Args:
        hint: ends the message of `Stopped`, after the name of the signal.
        guest: whether it runs in somebody else's process, such as a notebook: then it leaves SIGTERM alone, and SIGINT
            too if it has a handler already.
    """

    def __init__(self, hint: str, *, guest: bool = False) -> None:
        self.hint, self.guest = hint, guest
        self.requested: int | None = None
        self._deferring = False
        self._steps = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            caught: tuple[int, ...] = (signal.SIGINT,) if are_several() else (signal.SIGINT, signal.SIGTERM)
            if self.guest:
                free = signal.getsignal(signal.SIGINT) is signal.default_int_handler and not are_several()
                caught = (signal.SIGINT,) if free else ()
            self._earlier = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Records the first signal instead of raising, until `raise_if_requested` or the end of the block."""
        self._deferring = True
        try:
            yield
            self.raise_if_requested()
        finally:
            self._deferring = False

    def stop_requested(self) -> bool:
        """Whether to stop after the current step; in a multi-process run, every process must call it every step."""
        self._steps += 1
        if are_several() and multihost_utils.reached_preemption_sync_point(self._steps):
            self.requested = signal.SIGTERM
        return self.requested is not None

    def raise_if_requested(self) -> None:
        """Raises `Stopped` if a signal was recorded."""
        if self.requested is not None:
            raise Stopped(self.requested, self.hint)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None or not self._deferring:
            raise Stopped(number, self.hint)
        if are_several():
            self._deferring = False
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = number
        # Not `print`: the interrupted code may hold the lock of a Python stream.
        os.write(2, f"{signal.Signals(number).name}: finishing this step; repeat to stop at once\n".encode())


@contextmanager
def stoppable(interrupts: Interrupts | None) -> Iterator[list[keras.callbacks.Callback]]:
    """Callbacks that end a fit or a prediction after the step in which a signal arrived, without a checkpoint.

    If the handler raised `Stopped` itself, it could be lost: Keras spends most of its time reading the metrics of a
    step, under an `except` that swallows everything.

    Args:
        interrupts: the run's; None adds no callback.
    """
    # Several processes would not stop after the same step, so there a signal raises at once.
    if interrupts is None or are_several():
        yield []
        return
    with interrupts.deferred():
        yield [_StopOnRequest(interrupts)]


class _StopOnRequest(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__()
        self._interrupts = interrupts

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._interrupts.raise_if_requested()

    on_predict_batch_end = on_train_batch_end
