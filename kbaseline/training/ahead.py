"""How far the host may run ahead of the device, so that a signal does not wait for many steps."""

import time
from collections import deque
from typing import Any

import jax

STEPS = 2
"""Steps that may always be started: one runs, the next is ready when it ends."""

SECONDS = 0.5
"""About how long all started steps together may take, where that is more than `STEPS`."""


class RunAhead:
    """Bounds the queue of steps that the host has started and the device has not finished.

    JAX itself lets the host run some thirty steps ahead. A stop or a checkpoint waits for all of them, a minute where
    a step takes two seconds. Short steps may be many, so that the device never waits for the host.
    """

    def __init__(self) -> None:
        self._queue: deque[Any] = deque()
        self._began = 0.0
        self._finished = 0

    def add(self, result: Any) -> None:
        """Counts a started step, and waits until few enough are queued.

        Args:
            result: an array that the step computes.
        """
        self._queue.append(result)
        while len(self._queue) >= self._most():
            jax.block_until_ready(self._queue.popleft())
            if self._began:
                self._finished += 1
            else:
                self._began = time.perf_counter()  # the first step may have been compiled

    def _most(self) -> int:
        if not self._finished:
            return STEPS
        step = (time.perf_counter() - self._began) / self._finished
        return max(STEPS, int(SECONDS / max(step, 1e-6)))
