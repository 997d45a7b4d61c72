"""Networks with depthwise convolutions, beside the same ones in PyTorch."""

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from speed.measure import TURN, Seconds, side_by_side, table
from speed.peer import Timm
from speed.training import images_and_labels

from kbaseline import ImageData, Learner
from kbaseline.data.batches import ImageBatches
from kbaseline.devices.memory import allocator
from kbaseline.devices.predict import predict_batches
from kbaseline.geometry import resize

NETWORKS = {
    "mobilenet_v2": "MobileNetV2",
    "efficientnetv2_b0": "EfficientNetV2-B0",
    "convnext_tiny": "ConvNeXt-Tiny",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_lite2": "EfficientNet-Lite2",
}

WORK = {"head": "head, BatchNorm trained", "everything": "everything", "predict": "predict"}

STEPS = 8
"""Batches that are trained or predicted before the clock is read."""


def section(names: Sequence[str], batch: int, size: int, rounds: int, peers: Mapping[str, Timm]) -> str:
    """Images/s of training and predicting."""
    rows = []
    for network in names:
        for work, what in WORK.items():
            steps = {"here": step(network, work, batch, size)}
            steps |= {name: lambda n=network, w=work, p=peer: p.step(n, w) for name, peer in peers.items()}
            seconds = side_by_side(steps, rounds, min)
            row = [f"{NETWORKS[network]}: {what}", f"{batch / seconds['here']:.1f}"]
            if peers:
                best = min(peers, key=lambda name: seconds[name])
                row += [f"{batch / seconds[best]:.1f} ({best})", f"{seconds[best] / seconds['here']:.2f}"]
            rows.append(row)
            # As it is done: a network takes minutes to compile.
            print(*rows[-1], sep=" | ", flush=True)
    header = ["network", "here, images/s", *(["PyTorch, images/s", "here ÷ PyTorch"] if peers else [])]
    return (
        f"{size} pixels, batch {batch}, float32, random weights; the fastest of {rounds} turns of {TURN:g} seconds. "
        f"Here: as a run does it, an epoch of {STEPS} batches in `Learner.fit_one_cycle`, or a prediction of as many, "
        f"with reading and resizing them; memory from {allocator()}. PyTorch: timm's networks, eager, channels last, "
        "on a batch in memory that is resized; with glibc's huge pages or with jemalloc, whichever is faster. Neither "
        "augments. ConvNeXt has no BatchNorm.\n\n" + table(header, rows)
    )


def step(network: str, work: str, batch: int, size: int) -> Callable[[], Seconds]:
    """What trains or predicts `STEPS` batches as a run does, and says what one of them took; arguments as `learner`."""
    learn = learner(network, work, batch, size)
    # As on PyTorch's side: what is compared is the network.
    learn.model.get_layer("transforms").call = lambda images, **_: resize(images, size, size)
    if work != "predict":
        # The first call compiles; images/s are those of the training steps.
        return lambda: Seconds(batch / learn.fit_one_cycle(1, 1e-4)[-1]["images_per_s"])
    source = ImageBatches(learn.data.train.images, batch_size=batch, pad=True)

    def predict() -> Seconds:
        begin = time.perf_counter()
        predict_batches(learn.model, source)
        return Seconds((time.perf_counter() - begin) / STEPS)

    return predict


def learner(network: str, work: str, batch: int, size: int, train_bn: bool = True) -> Learner:
    """A learner whose epoch has `STEPS` batches.

    Args:
        network: a name from the zoo; its weights are random.
        work: one of `WORK`.
        batch: images of a step.
        size: pixels of the network's input.
        train_bn: whether BatchNorm is trained in the head's step.
    """
    data = ImageData.from_arrays(images_and_labels(STEPS * batch), images_and_labels(1), size=size)
    config = {"data": {"batch_size": batch}, "model": {"train_bn": train_bn}}
    learn = Learner(data, network, "none", config=config, console=Console(quiet=True))
    (learn.freeze if work == "head" else learn.unfreeze)()
    return learn
