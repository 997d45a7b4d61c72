"""Predicts encoded images in memory with a run, one at a time, in its own thread."""

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import numpy as np
from rich.console import Console

from kbaseline.data.decode import decode, probe, quiet
from kbaseline.runs.record import accuracy_of_folds
from kbaseline.runs.run import SavedRun


class Predictor:
    """Predicts encoded images with a run; a context manager that stops its thread.

    Probabilities are bitwise those of `kbaseline predict RUN FILE`.

    Args:
        run: see `load`.
    """

    def __init__(self, run: SavedRun) -> None:
        self._run = replace(run, console=Console(quiet=True, force_interactive=False))
        # One thread bounds the memory of decoding and prediction, and Keras is called from one thread only.
        self._thread = ThreadPoolExecutor(1, "predictor")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def has_tta(self) -> bool:
        """Whether the run has test-time augmentation."""
        return self._run.config.tta is not None

    def about(self) -> dict[str, Any]:
        """The run as plain Python: name, classes, accuracies (0 to 1) by split, TTA settings, input of the network.

        The accuracy of images that were trained on is None; `folds` is that of the model's folds, or None.
        """
        config, result, doubt = self._run.config, self._run.result, self._run.doubt
        scored = {"plain": result.kept_step.accuracy, "tta": result.tta_accuracy}
        valid = None if config.data.trains_on("valid") else scored
        folds = accuracy_of_folds(self._run.folder, config)
        return {
            "run": self._run.folder.resolve().name,
            "classes": list(self._run.class_names),
            "accuracy": {"valid": valid, "test": result.test_accuracy},
            "folds": folds and folds[0],
            "tta": config.tta.model_dump(mode="json") if config.tta else None,
            "doubt": doubt.summary("tta" if config.tta else "plain") if doubt else None,
            "input": {"size": config.data.size, "resize": config.data.resize},
        }

    def warm_up(self) -> None:
        """Compiles the programs."""
        black = np.zeros((1, *self._run.image_size, 3), np.uint8)
        self._run.answer(black)
        if self.has_tta:
            self._run.predict(black, tta=True)

    async def predict(self, encoded: bytes, tta: bool, top: int) -> dict[str, Any]:
        """The response of `POST /predict`; see `kbaseline.serve.app`.

        Args:
            encoded: the bytes of an image file.
            tta: also predict with test-time augmentation.
            top: number of classes.

        Raises:
            BadImageError: the image cannot be read.
            RunError: the accelerator runs out of memory.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predict_encoded, encoded, tta, top)

    def _predict_encoded(self, encoded: bytes, tta: bool, top: int) -> dict[str, Any]:
        times, file = [time.perf_counter()], io.BytesIO(encoded)
        with quiet():
            header = probe(file)
            pixels = decode(file, *self._run.image_size, self._run.config.data.resize)[None]
        times.append(time.perf_counter())
        answer = self._run.answer(pixels)
        rankings = [self._ranked(answer.probabilities, "plain", top)]
        times.append(time.perf_counter())
        if tta:
            rankings.append(self._ranked(self._run.predict(pixels, tta=True), "tta", top))
            times.append(time.perf_counter())
        strange = None if answer.unfamiliarity is None else float(answer.unfamiliarity[0])
        spent = [round(1000 * seconds, 1) for seconds in np.diff(times).tolist()]
        return {
            **rankings[0],
            "tta": rankings[1] if tta else None,
            "unfamiliarity": strange,
            "unfamiliar": None if strange is None else strange > 1,
            "image": {"format": header.format, "height": header.height, "width": header.width},
            "milliseconds": {"decode": spent[0], "plain": spent[1], "tta": spent[2] if tta else None},
        }

    def _ranked(self, probabilities: np.ndarray, kind: str, top: int) -> dict[str, Any]:
        """The `top` most probable classes of one image, and its 90 % prediction set."""
        names, doubt, p = self._run.class_names, self._run.doubt, probabilities[0]
        order = np.argsort(-p, kind="stable")
        inside = None if doubt is None else doubt.sets(probabilities, kind)[0]
        return {
            "classes": [{"name": names[i], "probability": float(p[i])} for i in order[:top]],
            "set": None if inside is None else [names[i] for i in order if inside[i]],
        }
