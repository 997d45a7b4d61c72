"""What a run says of one encoded picture in memory, one picture at a time and in a thread of its own."""

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import numpy as np
from rich.console import Console

from kbaseline.data.cache import Target, decoded_alone
from kbaseline.data.decode import probe, quiet
from kbaseline.runs.run import SavedRun

_SIZES = 16
"""Sizes of pictures whose compiled programs are kept; each takes tens of megabytes."""


class Predictor:
    """A run that answers for pictures; a context manager that ends its thread.

    A picture gets the pixels, the network and the bits of `kbaseline predict RUN FILE`. One no larger than twice the
    run's size keeps its own size, so the first of each such size waits for a compilation.

    Args:
        run: see `load`.
    """

    def __init__(self, run: SavedRun) -> None:
        self._run = replace(run, console=Console(quiet=True, force_interactive=False))
        data = run.config.data
        self._target = Target(data.size, data.resize, strict=True)
        # One thread: decoding and predicting take a bounded memory, and Keras is asked by one thread alone.
        self._thread = ThreadPoolExecutor(1, "answers")
        self._sizes: set[tuple[int, ...]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def has_tta(self) -> bool:
        """Whether the run's configuration has test-time augmentation."""
        return self._run.config.tta is not None

    def about(self) -> dict[str, Any]:
        """The run in plain Python: its name, classes, accuracies (0 to 1) by split, TTA, and the network's input."""
        config, result = self._run.config, self._run.result
        valid = {"plain": list(result.stages.values())[-1], "tta": result.tta_accuracy}
        return {
            "run": self._run.folder.resolve().name,
            "classes": list(self._run.class_names),
            "accuracy": {"valid": valid, "test": result.test_accuracy},
            "tta": config.tta.model_dump(mode="json") if config.tta else None,
            "input": {"size": config.data.size, "resize": config.data.resize},
        }

    def warm_up(self) -> None:
        """Compiles for the size that photos have."""
        size = self._target.size
        self._predict(np.zeros((1, size, size, 3), np.uint8), tta=False)
        if self.has_tta:
            self._predict(np.zeros((1, size, size, 3), np.uint8), tta=True)

    async def answer(self, encoded: bytes, tta: bool, top: int) -> dict[str, Any]:
        """What `POST /predict` answers; see `kbaseline.serve.server`.

        Args:
            encoded: an image file's bytes.
            tta: also with test-time augmentation.
            top: how many classes.

        Raises:
            BadImageError: it cannot be read.
            RunError: the accelerator's memory does not suffice.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, encoded, tta, top)

    def _answer(self, encoded: bytes, tta: bool, top: int) -> dict[str, Any]:
        laps, file = [time.perf_counter()], io.BytesIO(encoded)
        with quiet():
            header = probe(file)
        pixels = decoded_alone(file, self._target)[None]
        answers = []
        laps.append(time.perf_counter())
        for augmented in (False, True) if tta else (False,):
            answers.append(self._predict(pixels, tta=augmented))
            laps.append(time.perf_counter())
        spent = [round(1000 * lap, 1) for lap in np.diff(laps).tolist()]
        classes = [{"classes": self._ranked(probabilities, top)} for probabilities in answers]
        return {
            **classes[0],
            "tta": classes[1] if tta else None,
            "image": {"format": header.format, "height": header.height, "width": header.width},
            "milliseconds": {"decode": spent[0], "plain": spent[1], "tta": spent[2] if tta else None},
        }

    def _predict(self, pixels: np.ndarray, *, tta: bool) -> np.ndarray:
        if pixels.shape not in self._sizes and len(self._sizes) >= _SIZES:
            self._run.clear_compiled()
            self._sizes.clear()
        self._sizes.add(pixels.shape)
        probabilities: np.ndarray = self._run.predict(pixels, tta=tta)[0]
        return probabilities

    def _ranked(self, probabilities: np.ndarray, top: int) -> list[dict[str, Any]]:
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [{"name": self._run.class_names[i], "probability": float(probabilities[i])} for i in best]
