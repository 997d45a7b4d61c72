"""Networks with depthwise convolutions, beside the same ones in PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speed.measure import TURN, side_by_side, table
from speed.peer import Timm
from speed.training import images_and_labels, one_step, prepared

from kbaseline.models.classifier import build_classifier, classifier_groups, freeze, unfreeze
from kbaseline.optimizer import LayerwiseAdamW

NETWORKS = {
    "mobilenet_v2": "MobileNetV2",
    "efficientnetv2_b0": "EfficientNetV2-B0",
    "convnext_tiny": "ConvNeXt-Tiny",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "efficientnet_lite2": "EfficientNet-Lite2",
}

WORK = {"head": "head, BatchNorm trained", "everything": "everything", "predict": "predict"}


def section(names: Sequence[str], batch: int, size: int, rounds: int, peers: Mapping[str, Timm]) -> str:
    """Images/s of training and predicting."""
    rows = []
    for network in names:
        for work, what in WORK.items():
            steps = {"here": step(network, work, batch, size)}
            steps |= {name: lambda n=network, w=work, p=peer: p.step(n, w) for name, peer in peers.items()}
            seconds = side_by_side(steps, rounds)
            row = [f"{NETWORKS[network]}: {what}", f"{batch / seconds['here']:.1f}"]
            if peers:
                best = min(peers, key=lambda name: seconds[name])
                row += [f"{batch / seconds[best]:.1f} ({best})", f"{seconds[best] / seconds['here']:.2f}"]
            rows.append(row)
            # As it is done: a network takes minutes to compile.
            print(*rows[-1], sep=" | ", flush=True)
    header = ["network", "here, images/s", *(["PyTorch, images/s", "here ÷ PyTorch"] if peers else [])]
    return (
        f"{size} pixels, batch {batch}, float32, random weights; medians of {rounds} turns of {TURN:g} seconds each. "
        "Here: with reading and, in training, augmenting the batch. "
        "PyTorch: timm's networks, eager, channels last, on a batch in "
        "memory that is resized but not augmented; with glibc's huge pages, which are always on here, or without, "
        "whichever is faster. ConvNeXt has no BatchNorm.\n\n" + table(header, rows)
    )


def step(network: str, work: str, batch: int, size: int, train_bn: bool = True) -> Callable[[], Any]:
    """One step of a network with random weights; `work` is one of `WORK`."""
    model = build_classifier(10, size, network, "none")
    if work == "head":
        freeze(model, train_bn)
    elif work == "everything":
        unfreeze(model, train_bn)
    # A group without a trainable variable is an error: of a ConvNeXt, which has no BatchNorm, only the head is left.
    trained = {name for variable in model.trainable_variables for name in variable.path.split("/")}
    groups = zip(classifier_groups(model), [0.01, 0.1, 1.0], strict=True)
    names, rates = zip(*((group, rate) for group, rate in groups if trained.intersection(group)), strict=True)
    prepared(model, LayerwiseAdamW(1e-4, names, rates))
    if work != "predict":
        return one_step(model, batch)
    images, _ = images_and_labels(batch)
    return lambda: model.predict_on_batch(images)
