"""Seconds until `--help` answers and until a new process has done its first training step, and what it compiles.

Run as a program, `python starting.py CONFIG BATCH SIZE` is such a process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

TRIALS = 3
"""Starts of each kind; the median counts. A cold one has an empty cache of its own."""

COMPILED = "/jax/core/compile/backend_compile_duration"
REUSED = "/jax/compilation_cache/cache_hits"


def section(batch: int, size: int) -> str:
    """Both, cold and warm."""
    from speed.measure import table

    help_seconds = statistics.median(_seconds([sys.executable, "-m", "kbaseline", "--help"]) for _ in range(5))
    rows = []
    for name, config in (("quickstart: ResNet20, 32 pixels", "quickstart"), (f"ResNet50, {size} pixels", "resnet50")):
        command = [sys.executable, __file__, config, str(batch), str(size)]
        cold, warm, counts = [], [], []
        for _ in range(TRIALS):
            with TemporaryDirectory() as cache:
                for kind in (cold, warm):
                    place = {**os.environ, "KBASELINE_CACHE": cache}
                    begin = time.perf_counter()
                    done = subprocess.run(command, env=place, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603 - ours
                    kind.append(time.perf_counter() - begin)
                    counts.append(json.loads(done.stdout.splitlines()[-1]))
        first, again = statistics.median(cold), statistics.median(warm)
        programs = f"{counts[0]['compiled']} / {counts[1]['compiled'] - counts[1]['reused']}"
        rows.append([name, f"{first:.1f}", f"{again:.1f}", f"{again / first:.2f}", programs])
    header = ["process start to the end of the first training step", "cold, s", "warm, s", "warm ÷ cold"]
    return (
        f"`kbaseline --help` answers in {help_seconds:.2f} s.\n\n"
        + table([*header, "programs compiled, cold / warm"], rows)
        + "\nCold: with an empty compilation cache. Warm: the same again. Weights are random, so that nothing is "
        "downloaded. A fit compiles one training step and one validation step, whatever the sizes of the splits, and "
        "a learning-rate sweep one training step: `tests/devices/test_compilations.py` counts them.\n"
    )


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours - our own command
    return time.perf_counter() - begin


def first_step(config: str, batch: int, size: int) -> None:
    """Trains one step, says how many programs were compiled and how many of them came from the cache, and ends."""
    import kbaseline

    # isort: split

    import jax
    import keras
    import numpy as np
    from rich.console import Console

    seen = {COMPILED: 0, REUSED: 0}

    def count(event: str, *_: float, **__: str) -> None:
        if event in seen:
            seen[event] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.monitoring.register_event_listener(count)

    class First(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            print(json.dumps({"compiled": seen[COMPILED], "reused": seen[REUSED]}), flush=True)
            os._exit(0)  # what Python tidies up at its end is no part of the start

    if config == "quickstart":
        data = kbaseline.ImageData.from_source("digits", size=32)
        learn = kbaseline.Learner(data, config=config, console=Console(quiet=True))
    else:
        images, labels = np.zeros((2 * batch, 32, 32, 3), np.uint8), np.arange(2 * batch) % 10
        data = kbaseline.ImageData.from_arrays((images, labels), (images, labels), size=size)
        settings = {"data": {"batch_size": batch}}
        learn = kbaseline.Learner(data, config, "none", config=settings, console=Console(quiet=True))
    learn.callbacks.append(First())
    learn.fit_one_cycle(1, 1e-3)


if __name__ == "__main__":
    sys.path.pop(0)
    first_step(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
