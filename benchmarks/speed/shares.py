"""Where the time of a training step goes, by kind of operation, as JAX's profiler sees it."""

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import keras
from speed.measure import table
from speed.training import batches

from kbaseline.model import build_classifier, classifier_groups, freeze
from kbaseline.optimizer import LayerwiseAdamW

_KINDS = (
    ("convolution", "jvp(backbone))", "convolutions above 1x1, gradient of their inputs"),
    ("convolution", "jvp(backbone)", "convolutions above 1x1, forward"),
    ("convolution", "", "convolutions above 1x1, gradient of small ones' kernels"),
    ("dot", "", "matrix products: 1x1 convolutions, gradients of kernels, head"),
    ("select", "pool1_pool", "max pooling"),
    ("reduce", "", "sums: BatchNorm's statistics and gradients, biases"),
)
"""An operation within a fused one, a part of its name in the program, and what it is called here; the first fits."""


def section(batch: int, size: int) -> str:
    """Shares of a step, for the head and for everything."""
    found = {name: _shares(batch, size, frozen) for name, frozen in (("head", True), ("everything", False))}
    kinds = sorted({kind for shares in found.values() for kind in shares}, key=lambda k: -found["everything"][k])
    rows = [[kind, *(f"{100 * shares[kind]:.0f} %" for shares in found.values())] for kind in kinds]
    return (
        f"Shares of one ResNet50 step, {size} pixels, batch {batch}, by the seconds that JAX's profiler gives each "
        "fused operation; one that holds several kinds counts as the first of them.\n\n" + table(["", *found], rows)
    )


def _shares(batch: int, size: int, frozen: bool) -> Counter[str]:
    """Kind of operation -> its share of a step."""
    model = build_classifier(10, size, "resnet50", "none")
    if frozen:
        freeze(model)
    optimizer = LayerwiseAdamW(1e-4, classifier_groups(model), [0.01, 0.1, 1.0])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer.build(model.trainable_variables)
    data = batches(batch, batch)[0]
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
            model.metrics_variables,
        )
    )
    step = jax.jit(model.train_step).lower(state, data).compile()
    jax.block_until_ready(step(state, data))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step(state, data))
        return _by_kind(step.as_text(), next(Path(folder).rglob("*.xplane.pb")))


def _by_kind(program: str, trace: Path) -> Counter[str]:
    bodies = dict(re.findall(r"^%?([\w.\-]+) \(.*?\{$(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    called = dict(re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*calls=%?([\w.\-]+)", program, re.MULTILINE))
    lines = dict(re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE))
    seconds: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for event in (event for line in plane.lines for event in line.events):
            if event.name in lines and "hlo_op" in dict(event.stats):
                text = lines[event.name] + bodies.get(called.get(event.name, ""), "")
                seconds[_kind(text)] += event.duration_ns
    return Counter({kind: spent / seconds.total() for kind, spent in seconds.items()})


def _kind(text: str) -> str:
    operations: Any = set(re.findall(r" ([a-z\-]+)\(", text))
    for operation, name, kind in _KINDS:
        if operation in operations and name in text:
            return kind
    return "elementwise: ReLU, BatchNorm, additions, copies, augmentation, optimizer"
