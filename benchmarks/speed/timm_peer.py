"""The same networks in plain PyTorch: run by an interpreter that has timm, it answers with seconds.

A request is a line of JSON, `{"do": "versions"}` or `{"do": "step", "network": "mobilenet_v2", "work": "head"}`; so is
the answer. Beside it stand `batch` and `size` as arguments.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

with contextlib.suppress(RuntimeError):
    # As in fastai_peer: a torchvision of another build, which timm imports, asks for two of its operators as it loads.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm

NETWORKS = {
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnetv2_b0": "tf_efficientnetv2_b0",
    "convnext_tiny": "convnext_tiny",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite2": "tf_efficientnet_lite2",
}
SOURCE = 32


def step(network: str, work: str, batch: int, size: int) -> Callable[[], object]:
    """One step of training the head, with BatchNorm, or everything; or of predicting. Float32, channels last."""
    model = timm.create_model(NETWORKS[network], num_classes=10).to(memory_format=torch.channels_last)
    if work == "head":
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) or module is model.get_classifier():
                module.requires_grad_(True)
    model.train(work != "predict")
    images = torch.randint(0, 256, (batch, 3, SOURCE, SOURCE), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch,))

    def forward() -> torch.Tensor:
        x = nn.functional.interpolate(images.float() / 255 - 0.5, (size, size), mode="bilinear")
        return model(x.contiguous(memory_format=torch.channels_last))

    if work == "predict":
        return torch.inference_mode()(forward)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(forward(), labels).backward()
        optimizer.step()

    return train


def main(batch: int, size: int) -> None:
    """Answers until the requests end."""
    steps: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {"PyTorch": torch.__version__, "timm": timm.__version__}
        if request.pop("do") == "step":
            steps[line] = steps.get(line) or step(**request, batch=batch, size=size)
            begin = time.perf_counter()
            steps[line]()
            answer = {"seconds": time.perf_counter() - begin}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
