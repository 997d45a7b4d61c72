"""A plain PyTorch loop's side of the comparison: run by an interpreter that has PyTorch, it answers with seconds.

A request is a line of JSON, `{"do": "versions"}` or `{"do": "steps", "frozen": true, "precision": "bfloat16",
"steps": 200}`; so is the answer. Beside it stand `batch` and `size` as arguments.
"""

import torchvision_operators  # noqa: F401 - first

# isort: split

import json
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SOURCE = 32


def network(frozen: bool) -> nn.Module:
    """A ResNet50 with a head of two layers; frozen, its BatchNorm learns still."""
    model = torchvision.models.resnet50()
    model.fc = nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("fc"):
            module.weight.requires_grad = not frozen
    return model.to(DEVICE, memory_format=torch.channels_last)


def training(batch: int, size: int, frozen: bool, precision: str, steps: int) -> Callable[[], float]:
    """Trains so many steps and says how long one took; a first call compiles."""
    model = network(frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    images = torch.randint(0, 256, (batch, 3, SOURCE, SOURCE), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, 10, (batch,), device=DEVICE)

    @torch.compile
    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(images.float() / 255 - 0.5, (size, size), mode="bilinear")
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x)
        return nn.functional.cross_entropy(logits.float(), labels)

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss_of(images, labels).backward()
            optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps

    run()
    return run


def main(batch: int, size: int) -> None:
    """Predictor until the requests end."""
    torch.set_float32_matmul_precision("high")  # TF32, as XLA's default
    runs: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        if request.pop("do") == "versions":
            answer = {"PyTorch": torch.__version__, "torchvision": torchvision.__version__}
        else:
            runs[line] = runs.get(line) or training(batch, size, **request)
            answer = {"seconds": runs[line]()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
