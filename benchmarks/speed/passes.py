"""Predicting the same images with more or fewer of them at once."""

import numpy as np
from speed.measure import TURN, side_by_side, table

from kbaseline.data.batches import ImageBatches
from kbaseline.devices.predict import predict_batches, prediction_batch_size
from kbaseline.models.classifier import build_classifier

NETWORKS = {
    "MobileNetV2": ("mobilenet_v2", 128),
    "EfficientNetV2-B0": ("efficientnetv2_b0", 128),
    "ResNet50": ("resnet50", 128),
    "EfficientNet-Lite0": ("efficientnet_lite0", 224),
}

AT_ONCE = (64, 32, 16, 8, 4)
"""Images of a pass; the first is that of an accelerator with the usual training batch of 32."""


def section(rounds: int) -> str:
    """Images/s by images at once, and how many kbaseline takes."""
    rows = []
    for name, (network, size) in NETWORKS.items():
        model = build_classifier(10, size, network, "none")
        images = np.random.default_rng(0).integers(0, 256, (AT_ONCE[0], size, size, 3), dtype=np.uint8)
        batches = {str(count): ImageBatches(images, batch_size=count, pad=True) for count in AT_ONCE}
        steps = {count: lambda m=model, b=one: predict_batches(m, b) for count, one in batches.items()}
        seconds = side_by_side(steps, rounds)
        speeds = [f"{len(images) / seconds[count]:.0f}" for count in steps]
        rows.append([f"{name}, {size} pixels", *speeds, prediction_batch_size(AT_ONCE[0], size**2)])
        print(*rows[-1], sep=" | ", flush=True)
    header = ["images/s with so many at once", *map(str, AT_ONCE), "kbaseline takes"]
    return (
        f"Float32, random weights, {AT_ONCE[0]} images in memory; medians of {rounds} turns of {TURN:g} seconds each."
        "\n\n" + table(header, rows)
    )
