"""The recipe in fastai 2, timed part by part: run by an interpreter that has fastai.

Arguments: an `.npz` with `images`, `labels` and `train`, how many of them come first to train on; the batch; the size
in pixels; the JSON file that takes the seconds and the accuracy; how it is set up, one of `VARIANTS` of `recipe.py`.
"""

from fastai_peer import loaders  # first: it lets a torchvision of another build load

# isort: split

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.vision.all import Learner, accuracy, resnet50, vision_learner


def main(arrays: str, batch: str, size: str, answer: str, variant: str) -> None:
    """Trains, predicts, writes."""
    stored = np.load(arrays)
    images, labels = stored["images"], stored["labels"]
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        done = work()
        seconds[part] = time.perf_counter() - begin
        return done

    data = loaders(images, labels, int(stored["train"]), int(batch), int(size), workers=None, do_flip=False)
    learn: Learner = vision_learner(data, resnet50, pretrained=False, metrics=accuracy)
    if torch.cuda.is_available():
        learn.to_fp16()
    if "channels last" in variant:
        learn.add_cb(ChannelsLast())
    if "compile" in variant:
        learn.model.compile()
    with learn.no_bar(), learn.no_logging():
        timed("head lr_find", lambda: learn.lr_find(show_plot=False))
        timed("head", lambda: learn.fit_one_cycle(3, 1e-3))
        learn.unfreeze()
        timed("finetune lr_find", lambda: learn.lr_find(show_plot=False))
        timed("finetune", lambda: learn.fit_one_cycle(3, slice(1e-6, 1e-4)))
        predictions, targets = timed("valid tta", lambda: learn.tta(n=8))
    found = {"seconds": seconds, "accuracy": float(accuracy(predictions, targets))}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
