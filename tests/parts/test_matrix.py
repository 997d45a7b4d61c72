"""Every part in every way that Keras is used: a table of parts and usages, each cell against what it must do there.

A usage is a way to build a small model, to feed a fit or to compile it, each varied alone. What a part refuses stands
in the table as the message; docs/parts.md says why.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from slow_geometry import corner

from kbaseline import LayerwiseAdamW, LRFinder, OneCycle, RandomTransforms, tta_predict
from kbaseline.errors import InputError
from kbaseline.gradcam import grad_cam

STEPS, BATCH, SIDE = 4, 4, 6
GROUPS, MULTIPLIERS = [["body"], ["head"]], [0.0, 1.0]


def pictures() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (STEPS * BATCH, SIDE, SIDE, 3)).astype("float32")
    return images, np.arange(len(images)) % 2


class Batches(keras.utils.PyDataset):
    """The pictures as a dataset of Keras."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return tuple(column[part] for column in pictures())


def generator() -> Iterator[tuple[np.ndarray, ...]]:
    batches = Batches()
    while True:
        yield from (batches[index] for index in range(STEPS))


def chain() -> list[layers.Layer]:
    """The layers of every model: transforms, a body and a head, always with the same weights."""
    start = [keras.initializers.RandomNormal(0, 0.3, seed) for seed in (1, 2)]
    # Zooms alone, so that a test-time view is a corner as NumPy crops it.
    transforms = RandomTransforms(SIDE, max_rotate=0.0, max_zoom=1.5, max_lighting=0.0, max_warp=0.0, seed=1)
    body = layers.Conv2D(3, 3, activation="relu", kernel_initializer=start[0], name="body")
    pool, head = layers.GlobalAveragePooling2D(name="pool"), layers.Dense(2, kernel_initializer=start[1], name="head")
    return [transforms, layers.Rescaling(1 / 255), body, pool, head]


def by_list() -> keras.Model:
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *chain()])


def by_add() -> keras.Model:
    model = keras.Sequential()
    for layer in (keras.Input((SIDE, SIDE, 3)), *chain()):
        model.add(layer)
    return model


def functional() -> keras.Model:
    image = x = keras.Input((SIDE, SIDE, 3))
    for layer in chain():
        x = layer(x)
    return keras.Model(image, x)


class Subclassed(keras.Model):
    """The same layers in a `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.transforms, self.scale, self.body, self.pool, self.head = chain()

    def call(self, images: Any, training: bool | None = None) -> Any:
        x = self.scale(self.transforms(images, training=training))
        return self.head(self.pool(self.body(x)))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, SIDE, SIDE, 3), np.float32))
    return model


def nested() -> keras.Model:
    """Transforms in a model, body and pooling in another."""
    transforms, *inside, head = chain()
    image = keras.Input((SIDE, SIDE, 3))
    front = keras.Sequential([keras.Input((SIDE, SIDE, 3)), transforms], name="front")
    network = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *inside], name="network")
    return keras.Model(image, head(network(front(image))))


def reloaded() -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        by_add().save(f"{folder}/model.keras")
        model: keras.Model = keras.models.load_model(f"{folder}/model.keras")
        return model


def cloned() -> keras.Model:
    original = functional()
    model: keras.Model = keras.models.clone_model(original)
    model.set_weights(original.get_weights())
    return model


MODELS: dict[str, Callable[[], keras.Model]] = {
    make.__name__: make for make in (by_list, by_add, functional, subclassed, nested, reloaded, cloned)
}
FEEDS = {
    "numpy": lambda: {"x": pictures()[0], "y": pictures()[1], "batch_size": BATCH},
    "PyDataset": lambda: {"x": Batches()},
    "generator": lambda: {"x": generator(), "steps_per_epoch": STEPS},
}
OPTIMIZERS = {"accumulation": {"gradient_accumulation_steps": 2}, "EMA": {"use_ema": True}}
USAGES = [*MODELS, "PyDataset", "generator", *OPTIMIZERS, "mixed precision", "eager"]
DEVICES = "two devices"


def build(usage: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if usage == "mixed precision" else "float32")
    return MODELS.get(usage, functional)()


def fit(model: keras.Model, usage: str, optimizer: keras.optimizers.Optimizer, *callbacks: Any, epochs: int = 1) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=usage == "eager")
    feed = FEEDS.get(usage, FEEDS["numpy"])()
    return model.fit(**feed, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Kernels and biases of body and head."""
    named = {"/".join(v.path.split("/")[-2:]): np.array(v.numpy(), np.float32) for v in model.trainable_variables}
    return dict(sorted(named.items()))


def settings(usage: str) -> dict[str, Any]:
    return OPTIMIZERS.get(usage, {})


def lr_finder(usage: str) -> None:
    """The sweep ends by itself, at the rates asked for, and every bit is as before."""
    model = build(usage)
    before, finder = weights(model), LRFinder(1e-6, 1e-2, steps=STEPS)
    fit(model, usage, keras.optimizers.SGD(0.5, **settings(usage)), finder)
    np.testing.assert_allclose(finder.curve.lrs, 1e-6 * 1e4 ** (np.arange(STEPS) / STEPS), rtol=1e-5)
    assert np.isfinite(finder.curve.losses).all()
    for name, after in weights(model).items():
        np.testing.assert_array_equal(after, before[name], err_msg=name)
    assert float(model.optimizer.learning_rate) == 0.5


def one_cycle(usage: str) -> None:
    """A fit moves the weights, and ends at the cycle's last rate."""
    updates = STEPS // settings(usage).get("gradient_accumulation_steps", 1)
    cycle, model = OneCycle(0.5, updates), build(usage)
    fit(model, usage, keras.optimizers.SGD(cycle, **settings(usage)))
    assert float(model.optimizer.learning_rate) == pytest.approx(float(cycle(updates)), rel=1e-6)
    before = weights(build(usage))
    assert any((after != before[name]).any() for name, after in weights(model).items())


def layerwise(usage: str) -> None:
    """A group at rate 0 keeps its bits, the other moves; the momentum has followed the cycle to its end."""
    updates = STEPS // settings(usage).get("gradient_accumulation_steps", 1)
    cycle, model = OneCycle(0.5, updates), build(usage)
    before = weights(model)
    optimizer = LayerwiseAdamW(cycle, GROUPS, MULTIPLIERS, beta_1=cycle.momentum(), **settings(usage))
    fit(model, usage, optimizer)
    for name, after in weights(model).items():
        assert np.array_equal(after, before[name]) == name.startswith("body"), name
    assert float(model.optimizer.beta_1) == pytest.approx(0.95, abs=1e-6)


def transforms(usage: str) -> None:
    """In inference the pictures pass as they are; in training every epoch draws anew, so that its loss differs."""
    model, images = build(usage), pictures()[0]
    first, second = fit(model, usage, keras.optimizers.SGD(0.0), epochs=2).history["loss"]
    assert abs(first - second) > 1e-5
    np.testing.assert_allclose(model.predict(images, verbose=0), logits(usage, images), atol=tolerance(usage))


def tta(usage: str) -> None:
    """The parts are the softmax of the logits, of the pictures and of their corners."""
    model, images = build(usage), pictures()[0]
    model.compile(run_eagerly=usage == "eager")
    for found, shown in zip(
        tta_predict(model, images, [5], None), (images, corner(images, 5, 1.35, SIDE, SIDE)), strict=True
    ):
        powers = np.exp(logits(usage, shown))
        np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=tolerance(usage))


def cam(usage: str) -> None:
    """With average pooling, the weights of the head are those of the maps (as in test_gradcam)."""
    model, (images, classes) = build(usage), pictures()
    kernel = weights(model)["head/kernel"][:, classes]
    maps = np.maximum(np.einsum("nhwf,fn->nhw", features(usage, images), kernel), 0)
    expected = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(grad_cam(model, images, classes, "body"), expected, atol=10 * tolerance(usage))


def features(usage: str, images: np.ndarray) -> np.ndarray:
    """The body's output in NumPy, from the weights of the model."""
    w = weights(build(usage))
    patches = np.lib.stride_tricks.sliding_window_view(images / 255, (3, 3), axis=(1, 2))
    found: np.ndarray = np.maximum(np.einsum("nhwcij,ijcf->nhwf", patches, w["body/kernel"]) + w["body/bias"], 0)
    return found


def logits(usage: str, images: np.ndarray) -> np.ndarray:
    """The same of the model."""
    w = weights(build(usage))
    found: np.ndarray = features(usage, images).mean(axis=(1, 2)) @ w["head/kernel"] + w["head/bias"]
    return found


def tolerance(usage: str) -> float:
    return 0.02 if usage == "mixed precision" else 1e-5


PARTS: dict[str, Callable[[str], None]] = {
    "LRFinder": lr_finder,
    "OneCycle": one_cycle,
    "LayerwiseAdamW": layerwise,
    "RandomTransforms": transforms,
    "tta_predict": tta,
    "grad_cam": cam,
}
FITS = {"LRFinder", "OneCycle", "LayerwiseAdamW"}
REFUSED = {
    ("tta_predict", "subclassed"): "must be a functional or sequential model",
    ("grad_cam", "subclassed"): "must be a functional or sequential model",
}
CELLS = [
    (part, usage)
    for part in PARTS
    for usage in USAGES
    # How a fit is fed and what its optimizer does is nothing to a part without a fit.
    if part in FITS or usage not in {*FEEDS, *OPTIMIZERS} or (part == "RandomTransforms" and usage in FEEDS)
]


@pytest.mark.parametrize(("part", "usage"), CELLS)
def test_a_part_does_its_job(part: str, usage: str) -> None:
    """Reference: what each function above says, or the refusal that the table names."""
    said = REFUSED.get((part, usage))
    with pytest.raises(InputError, match=said) if said else nullcontext():
        PARTS[part](usage)


def test_two_devices() -> None:
    """Reference: every part does the same under `DataParallel` over two virtual devices, in a process of its own."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}
    code = "import test_matrix; test_matrix.on_two_devices()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(SPREAD)


SPREAD = ("LRFinder", "LayerwiseAdamW", "tta_predict", "grad_cam")
"""The others are within the second: its schedule is `OneCycle`, its model begins with `RandomTransforms`."""


def on_two_devices() -> None:
    """The parts in the process of `test_two_devices`."""
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    assert keras.distribution.distribution().num_model_replicas == 2
    for name in SPREAD:
        PARTS[name](DEVICES)
        print(name)
