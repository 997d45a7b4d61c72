"""fastai's side of the comparison: run by an interpreter that has fastai, it answers requests with seconds.

A request is a line of JSON, `{"do": "versions"}`, `{"do": "step", "variant": "channels last", "frozen": true}` or
`{"do": "data", "workers": 0, "batches": 16}`; so is the answer. Beside it stand `batch` and `size` as arguments.
"""

import torchvision_operators  # noqa: F401 - first

# isort: split

import json
import sys
import time

import fastai
import numpy as np
import torch
import torchvision
from fastai.callback.channelslast import ChannelsLast
from fastai.vision.all import (
    Callback,
    CancelValidException,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    Learner,
    Normalize,
    PILImage,
    Resize,
    aug_transforms,
    imagenet_stats,
    resnet50,
    vision_learner,
)

STEPS = 2
"""Training steps of one measurement."""


class NoValidation(Callback):
    """Ends a fit after its training steps."""

    def before_validate(self) -> None:
        """Says so."""
        raise CancelValidException


def loaders(
    images: np.ndarray, labels: np.ndarray, train: int, batch: int, size: int, workers: int | None, do_flip: bool = True
) -> DataLoaders:
    """Images from memory through fastai's own transforms, `train` of them to train on, the others validation.

    `workers` None is fastai's default.
    """
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=sorted({int(label) for label in labels}))),
        get_x=lambda i: PILImage.create(images[i]),
        get_y=lambda i: int(labels[i]),
        splitter=IndexSplitter(range(train, len(images))),
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(do_flip=do_flip), Normalize.from_stats(*imagenet_stats)],
    )
    return block.dataloaders(range(len(images)), bs=batch, num_workers=workers)


def random_loaders(batch: int, size: int, count: int, workers: int) -> DataLoaders:
    """Random images of 32x32 in ten classes, the one image of validation beside them."""
    images = np.random.default_rng(0).integers(0, 256, (count + 1, 32, 32, 3), dtype=np.uint8)
    return loaders(images, np.arange(count + 1) % 10, count, batch, size, workers)


def learner(batch: int, size: int, variant: str) -> Learner:
    """fastai's ResNet50 and head, float32."""
    learn = vision_learner(
        random_loaders(batch, size, STEPS * batch, 0), resnet50, pretrained=False, cbs=NoValidation()
    )
    if variant == "channels last":
        learn.add_cb(ChannelsLast())
    return learn


def main(batch: int, size: int) -> None:
    """Predictor until the requests end."""
    learners: dict[str, Learner] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        if request["do"] == "versions":
            modules = {"fastai": fastai, "PyTorch": torch, "torchvision": torchvision}
            answer = {name: module.__version__ for name, module in modules.items()}
        elif request["do"] == "step":
            variant = request["variant"]
            learn = learners.setdefault(variant, learners.get(variant) or learner(batch, size, variant))
            (learn.freeze if request["frozen"] else learn.unfreeze)()
            with learn.no_bar(), learn.no_logging():
                begin = time.perf_counter()
                learn.fit(1, 1e-4)
                answer = {"seconds": (time.perf_counter() - begin) / STEPS}
        elif request["do"] == "data":
            source = random_loaders(batch, size, request["batches"] * batch, request["workers"]).train
            next(iter(source))
            begin = time.perf_counter()
            for images, _ in source:
                images.sum()
            answer = {"seconds": (time.perf_counter() - begin) / request["batches"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
