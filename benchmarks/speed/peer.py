"""The others, each in a process of its own, asked for one measurement at a time so that all sides take turns."""

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from speed.measure import Seconds

VARIANTS = ("default", "channels last")
"""How fastai is set up for training; the faster one counts."""


MEMORY = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF")
"""Variables that decide where a process has its memory from."""


def memories() -> dict[str, dict[str, str]]:
    """Where a PyTorch process may have its memory from, and the variables for it, where this machine has it."""
    found = {"huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
    if library := ctypes.util.find_library("jemalloc"):
        # PyTorch is slower with the setting for XLA in docs/performance.md, where unused memory goes back.
        setting = "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"
        found["jemalloc"] = {"LD_PRELOAD": library, "MALLOC_CONF": setting}
    return found


class Peer:
    """A process that imports a peer and waits for requests.

    Args:
        python: interpreter of an environment with the peer.
        script: the peer's side, beside this file.
        batch: images a step.
        size: pixels of the network's input.
        environment: variables of the process.
    """

    def __init__(self, python: str, script: str, batch: int, size: int, **environment: str) -> None:
        # kbaseline tells XLA what a peer would not, and takes its memory otherwise: fastai is slower with huge pages.
        env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", *MEMORY)}
        env |= environment
        self._process = subprocess.Popen(  # noqa: S603 - what the caller named
            [python, str(Path(__file__).with_name(script)), str(batch), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("peer: no pipes")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("peer: it ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def seconds(self, **request: Any) -> Seconds:
        """What the peer measured."""
        return Seconds(self.ask(**request)["seconds"])


class Keras(Peer):
    """Keras alone, on JAX as it comes: of the same environment."""

    def __init__(self, batch: int, size: int) -> None:
        super().__init__(sys.executable, "keras_peer.py", batch, size)

    def step(self, frozen: bool) -> Seconds:
        """Seconds of one training step, its batch read and augmented."""
        return self.seconds(do="step", frozen=frozen)

    def kernel_gradient(self, shape: tuple[int, ...]) -> Seconds:
        """Seconds of the kernel gradient of a convolution, one of `training.SHAPES`."""
        return self.seconds(do="kernel_gradient", shape=shape)

    def fit(self, frozen: bool, precision: str, steps: int) -> Seconds:
        """Seconds of a step of its `fit` over so many steps."""
        return self.seconds(do="fit", frozen=frozen, precision=precision, steps=steps)


class _Versioned(Peer):
    """A peer of an environment of its own."""

    def __init__(self, python: str, script: str, batch: int, size: int, **environment: str) -> None:
        super().__init__(python, script, batch, size, **environment)
        self.versions = ", ".join(f"{name} {version}" for name, version in self.ask(do="versions").items())


class Torch(_Versioned):
    """A plain PyTorch loop."""

    def __init__(self, python: str, batch: int, size: int) -> None:
        super().__init__(python, "torch_peer.py", batch, size)

    def steps(self, frozen: bool, precision: str, steps: int) -> Seconds:
        """Seconds of one of so many training steps."""
        return self.seconds(do="steps", frozen=frozen, precision=precision, steps=steps)


class Timm(_Versioned):
    """Networks of timm in a plain PyTorch loop; `memory` is one of `memories`, and the faster one counts."""

    def __init__(self, python: str, batch: int, size: int, memory: str) -> None:
        super().__init__(python, "timm_peer.py", batch, size, **memories()[memory])

    def step(self, network: str, work: str) -> Seconds:
        """Seconds of one step on a batch that is in memory; `work` is `"head"`, `"everything"` or `"predict"`."""
        return self.seconds(do="step", network=network, work=work)


class Fastai(_Versioned):
    """fastai."""

    def __init__(self, python: str, batch: int, size: int) -> None:
        super().__init__(python, "fastai_peer.py", batch, size)

    def step(self, variant: str, frozen: bool) -> Seconds:
        """Seconds of one training step, its batch read and augmented."""
        return self.seconds(do="step", variant=variant, frozen=frozen)

    def data(self, batches: int, workers: int) -> Seconds:
        """Seconds of reading and augmenting one batch."""
        return self.seconds(do="data", batches=batches, workers=workers)
