"""Stock Keras' side of the comparison: it answers requests with seconds.

A request is a line of JSON, `{"do": "step", "frozen": true}`, `{"do": "kernel_gradient", "shape": [...]}`, one of
`training.SHAPES`, or `{"do": "fit", "frozen": true, "precision": "bfloat16", "steps": 200}`; so is the answer. Beside
it stand `batch` and `size` as arguments.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import kbaseline  # noqa: F401 - first: it chooses Keras' backend, and nothing else

# isort: split

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import keras
from speed.training import SOURCE, convolution, images_and_labels, kernel_gradient, one_step, prepared


def classifier(size: int, frozen: bool) -> keras.Model:
    """What Keras itself offers for the same task."""
    keras.utils.set_random_seed(0)
    images = keras.Input((SOURCE, SOURCE, 3))
    x = keras.layers.Resizing(size, size)(images)
    x = keras.layers.RandomFlip("horizontal")(x)
    x = keras.layers.RandomRotation(10 / 360)(x)
    x = keras.layers.RandomZoom((-0.1, 0.0))(x)
    x = keras.layers.RandomBrightness(0.1)(x)
    x = keras.layers.RandomContrast(0.1)(x)
    body = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
    for layer in body.layers:
        layer.trainable = not frozen or isinstance(layer, keras.layers.BatchNormalization)
    x = body(keras.applications.resnet.preprocess_input(x))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(512, "relu")(x))
    logits = keras.layers.Dense(10, dtype="float32")(x)
    return prepared(keras.Model(images, logits), keras.optimizers.AdamW(1e-4))


def fit(batch: int, size: int, frozen: bool, precision: str, steps: int) -> Callable[[], float]:
    """`fit` of an epoch, which says how long a step took."""
    keras.config.set_dtype_policy({"bfloat16": "mixed_bfloat16"}.get(precision, precision))
    model = classifier(size, frozen)
    images, labels = images_and_labels(steps * batch)

    def epoch() -> float:
        begin = time.perf_counter()
        model.fit(images, labels, batch, verbose=0)
        return (time.perf_counter() - begin) / steps

    epoch()
    return epoch


def main(batch: int, size: int) -> None:
    """Predictor until the requests end."""
    steps: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if line not in steps and request["do"] == "step":
            steps[line] = one_step(classifier(size, request["frozen"]), batch)
        elif line not in steps and request.pop("do") == "fit":
            steps[line] = fit(batch, size, **request)
        elif line not in steps:
            compute = partial(convolution, strides=request["shape"][-1])
            steps[line] = kernel_gradient(batch, request["shape"], compute)[1]
        begin = time.perf_counter()
        done = jax.block_until_ready(steps[line]())
        seconds = done if isinstance(done, float) else time.perf_counter() - begin
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
