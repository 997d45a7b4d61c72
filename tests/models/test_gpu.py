"""Layers for a GPU, and BatchNorm for a CPU, run on a CPU: Keras' results up to rounding, and the same saved file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from keras import layers

from kbaseline.errors import InputError
from kbaseline.models.adapt import adapt_to_device
from kbaseline.models.cpu import adapt_to_cpu, restore
from kbaseline.models.gpu import SWITCH, max_pool, replace_layers

SIDES = (11, 8)

POOLS = [
    ((3, 3), (2, 2), "valid"),
    ((3, 3), (2, 2), "same"),
    ((2, 2), (2, 2), "valid"),
    ((2, 3), (1, 3), "same"),
    ((1, 2), (3, 1), "valid"),
    ((2, 2), (3, 3), "same"),
]


def network() -> keras.Model:
    """A convolution with a bias before BatchNorm, one without, and one that is called twice."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*SIDES, 3))
    x = layers.Conv2D(6, 3, bias_initializer="normal", name="biased")(image)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-3, name="bn1")(x))
    x = layers.MaxPooling2D(3, 2, "same", name="pool")(x)
    x = layers.BatchNormalization(momentum=0.5, name="bn2")(layers.Conv2D(5, 1, use_bias=False, name="plain")(x))
    twice = layers.Conv2D(5, 1, bias_initializer="normal", name="twice")
    first, second = twice(x), twice(layers.ReLU()(x))
    return keras.Model(
        image, layers.Add()([layers.BatchNormalization(name="bn3")(first), first, layers.ReLU()(second)])
    )


def step(model: keras.Model, images: np.ndarray, training: bool) -> dict[str, np.ndarray]:
    """Outputs, new statistics, and gradients of a weighted sum of the outputs, by name."""
    weights = np.random.default_rng(1).normal(size=model.compute_output_shape(images.shape)).astype("float32")
    kinds = model.trainable_variables, model.non_trainable_variables

    def loss(values: list, others: list, x: Any) -> Any:
        outputs, after = model.stateless_call(values, others, x, training=training)
        return (outputs * weights).sum(), (outputs, after)

    given = [[variable.value for variable in kind] for kind in kinds]
    gradients, (outputs, after) = jax.jit(jax.grad(loss, (0, 2), has_aux=True))(*given, images)
    names = ["images", *(variable.path for kind in kinds for variable in kind), "outputs"]
    found = [gradients[1], *gradients[0], *after, outputs]
    return {name: np.asarray(one, "float32") for name, one in zip(names, found, strict=True)}


@pytest.mark.parametrize("adapt", [replace_layers, adapt_to_cpu])
@pytest.mark.parametrize(("frozen", "training"), [((), True), (("biased", "plain", "bn2"), True), ((), False)], ids=str)
def test_a_step_is_that_of_keras(
    frozen: tuple[str, ...], training: bool, adapt: Callable[[keras.Model], int], rng: np.random.Generator
) -> None:
    """Reference: outputs, every gradient and the running statistics agree with the stock layers' to 1e-5."""
    model, images = network(), rng.normal(size=(8, *SIDES, 3)).astype("float32")
    for name in frozen:
        model.get_layer(name).trainable = False
    stock = step(model, images, training)
    assert adapt(model) == 6
    ours = step(model, images, training)
    if training and not frozen:
        # BatchNorm takes the bias out: its gradient is rounding, or zero where it is not added at all.
        assert np.abs(ours.pop("biased/bias")).max() <= (0 if adapt is replace_layers else 1e-3)
    for name, found in ours.items():
        largest = np.abs(stock[name]).max()
        assert largest > 1e-4 or not training or "/" in name, name
        np.testing.assert_allclose(found, stock[name], rtol=0, atol=1e-5 * max(largest, 1.0), err_msg=name)


def test_half_precision_is_no_further_from_float32(rng: np.random.Generator) -> None:
    """Reference: under mixed bfloat16, outputs, gradients and statistics are as near to float32's as the stock layers'.

    To a twentieth of their norm. One by one they differ: rounding makes other values the highest of a window.
    """
    images = rng.normal(size=(32, *SIDES, 3)).astype("float32")
    exact = step(network(), images, True)
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network()
    stock = step(model, images, True)
    replace_layers(model)
    ours = step(model, images, True)
    for name, expected in exact.items():
        error, theirs = (np.linalg.norm(found[name] - expected) for found in (ours, stock))
        assert error <= 1.1 * theirs + 0.05 * np.linalg.norm(expected), name


def test_pooling_is_that_of_keras(rng: np.random.Generator) -> None:
    """Reference: maxima and gradients are equal bit for bit, with equal neighbours and with what is not a number."""
    image = keras.Input((*SIDES, 2))
    model = keras.Model(image, [layers.MaxPooling2D(*pool)(image) for pool in POOLS])
    images = rng.integers(0, 4, (3, *SIDES, 2)).astype("float32")
    weights = [rng.integers(1, 9, shape).astype("float32") for shape in model.compute_output_shape(images.shape)]

    def run(x: Any) -> Any:
        outputs, back = jax.vjp(lambda x: model(x), x)
        alone = [[given * (i == j) for j, given in enumerate(weights)] for i in range(len(weights))]
        return outputs, [back(given)[0] for given in alone]

    poisoned = images.copy()
    poisoned[0, 4, 4, 0] = np.nan

    def computed() -> list:
        traced = jax.jit(lambda x: run(x))  # JAX would keep the program of a function that it has seen
        return [jax.tree.map(np.asarray, traced(x)) for x in (images, poisoned)]

    stock = computed()
    assert replace_layers(model) == len(POOLS)
    ours = computed()
    jax.tree.map(np.testing.assert_array_equal, ours[0], stock[0])
    jax.tree.map(np.testing.assert_array_equal, ours[1][0], stock[1][0])


def test_only_where_they_are_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: not by default, not on another device, and no other value than 0 and 1."""
    model = network()

    def changed(value: str | None, device: str) -> int:
        monkeypatch.delenv(SWITCH, raising=False) if value is None else monkeypatch.setenv(SWITCH, value)
        monkeypatch.setattr(jax, "default_backend", lambda: device)
        count = adapt_to_device(model)
        restore(model)
        return count

    # A CPU has its own way for BatchNorm, for the convolutions of 1x1 and for that of the images.
    cases = [(None, "gpu"), ("0", "gpu"), ("1", "gpu"), ("", "gpu"), ("1", "cpu"), ("1", "tpu")]
    assert [changed(*case) for case in cases] == [0, 0, 6, 0, 6, 0]
    with pytest.raises(InputError, match=r"^KBASELINE_GPU_LAYERS: must be 0 or 1; got 'yes'\. Unset it for 0\.$"):
        changed("yes", "gpu")


def test_other_layers_are_left_alone() -> None:
    """Invariant: subclasses, other axes, BatchNorm without scale or offset, large and global pools stay Keras' own."""

    class Mine(layers.BatchNormalization):
        pass

    image = keras.Input((8, 8, 4))
    for layer in (
        Mine(),
        layers.BatchNormalization(axis=1),
        layers.BatchNormalization(scale=False),
        layers.BatchNormalization(renorm=True),
        layers.MaxPooling2D(5),
        layers.AveragePooling2D(2),
        layers.Conv2D(4, 1),
    ):
        assert replace_layers(keras.Model(image, layer(image))) == 0, layer


def test_the_saved_file_is_that_of_keras(tmp_path: Path) -> None:
    """Invariant: configuration, weights and file do not change, and `restore` leaves nothing behind."""
    model = network()
    before, attributes = model.get_config(), [set(vars(layer)) for layer in model.layers]
    model.save(tmp_path / "stock.keras")
    replace_layers(model)
    assert model.get_config() == before
    model.save(tmp_path / "ours.keras")
    stock, ours = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("stock", "ours"))
    assert [variable.path for variable in ours.variables] == [variable.path for variable in stock.variables]
    for one, other in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    restore(model)
    assert [set(vars(layer)) for layer in model.layers] == attributes


def test_pooling_alone_keeps_half_precision() -> None:
    """Invariant: the maxima have the dtype of the inputs."""
    assert max_pool(np.zeros((1, 4, 4, 1), "float32").astype("bfloat16"), (2, 2), (2, 2)).dtype == "bfloat16"
