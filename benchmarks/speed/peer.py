"""fastai in an interpreter of its own, asked for one measurement at a time so that both sides take turns."""

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from speed.measure import Seconds

VARIANTS = ("default", "channels last")
"""How fastai is set up for training; the faster one counts."""


class Fastai:
    """A process that imports fastai and waits; see `fastai_peer.py`.

    Args:
        python: interpreter of an environment with fastai.
        batch: images a step.
        size: pixels of the network's input.
    """

    def __init__(self, python: str, batch: int, size: int) -> None:
        script = Path(__file__).with_name("fastai_peer.py")
        self._process = subprocess.Popen(  # noqa: S603 - what the caller named
            [python, str(script), str(batch), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = ", ".join(f"{name} {version}" for name, version in self.ask(do="versions").items())

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
            raise RuntimeError("fastai: no pipes")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("fastai: the peer ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self, variant: str, frozen: bool) -> Seconds:
        """Seconds of one training step, its batch read and augmented."""
        return Seconds(self.ask(do="step", variant=variant, frozen=frozen)["seconds"])

    def data(self, batches: int, workers: int) -> Seconds:
        """Seconds of reading and augmenting one batch."""
        return Seconds(self.ask(do="data", batches=batches, workers=workers)["seconds"])
