"""SIGINT and SIGTERM during a run: the step is finished and saved first, a second signal stops at once.

Python runs a handler between two of its own instructions, so a signal also waits for the compilation or the
accelerator's call that is under way.

Several processes that run as one must stop after the same step. There JAX itself catches SIGTERM in whichever process
it comes to, and has all of them agree on a step.
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

    Not an `Exception`, as Python's own `KeyboardInterrupt` is none: nobody catches it by accident.

    Args:
        number: the signal's.
        advice: what to do next.
    """

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {advice}")
        self.exit_code = 128 + number


class Interrupts:
    """Takes over SIGINT and SIGTERM, in the main thread, for as long as the context lasts.

        with Interrupts("continue with ...") as interrupts:
            with interrupts.deferred():   # a signal is only noted here
                ...
                interrupts.raise_if_asked()   # between two steps
            ...   # and raises `Stopped` at once here

    Args:
        advice: what `Stopped` says after the signal's name.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.asked: int | None = None
        self._deferring = False
        self._steps = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets no other thread set handlers.
        if threading.current_thread() is threading.main_thread():
            caught = (signal.SIGINT,) if are_several() else (signal.SIGINT, signal.SIGTERM)
            self._earlier = {number: signal.signal(number, self._noted) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes the first signal instead of raising, until `raise_if_asked` or the end of the block."""
        self._deferring = True
        try:
            yield
            self.raise_if_asked()
        finally:
            self._deferring = False

    def reached(self) -> bool:
        """Whether to stop after the step that was just made; of several processes each must ask after every step."""
        self._steps += 1
        if are_several() and multihost_utils.reached_preemption_sync_point(self._steps):
            self.asked = signal.SIGTERM
        return self.asked is not None

    def raise_if_asked(self) -> None:
        """Raises `Stopped` if a signal was noted."""
        if self.asked is not None:
            raise Stopped(self.asked, self.advice)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None or not self._deferring:
            raise Stopped(number, self.advice)
        if are_several():
            self._deferring = False
            signal.raise_signal(signal.SIGTERM)
        else:
            self.asked = number
        # The plain call: whatever the signal interrupted may hold the lock of a Python stream.
        os.write(2, f"{signal.Signals(number).name}: finishing this step; once more stops at once\n".encode())


@contextmanager
def stoppable(interrupts: Interrupts | None) -> Iterator[list[keras.callbacks.Callback]]:
    """Callbacks for a fit or a prediction of which nothing is kept: it ends after the step in which a signal came.

    Raised wherever Python stands, `Stopped` would be lost: Keras reads the figures of a step, which is where it mostly
    waits, under an `except` that swallows everything.

    Args:
        interrupts: the run's; None for nothing to ask.
    """
    # Several processes would not stop after the same step; there a signal raises at once.
    if interrupts is None or are_several():
        yield []
        return
    with interrupts.deferred():
        yield [_StopWhenAsked(interrupts)]


class _StopWhenAsked(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__()
        self._interrupts = interrupts

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._interrupts.raise_if_asked()

    on_predict_batch_end = on_train_batch_end
