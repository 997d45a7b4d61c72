"""Test-time augmentation: its views against plain numpy crops, its weights, and models from elsewhere."""

import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers
from slow_geometry import corner, for_aspect, rotate_matrix, slow_resample, warp_matrix, zoom_matrix

from kbaseline.errors import InputError
from kbaseline.gradcam import grad_cam
from kbaseline.models.graph import output_kind, read_graph
from kbaseline.transforms import RandomTransforms
from kbaseline.tta import TestTimeViews, tta_predict

STILL = {"max_rotate": 0.0, "max_zoom": 1.0, "max_lighting": 0.0, "max_warp": 0.0}


def ours(size: int = 10, **options: float) -> keras.Model:
    """A small model of our shape: uint8 in, transforms, a network, logits."""
    images = layers.Input((None, None, 3), dtype="uint8")
    x = RandomTransforms(size, **{**STILL, **options}, seed=1, name="transforms")(images)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(6, 3, kernel_initializer=keras.initializers.RandomNormal(0, 0.5, seed=3))(x)
    x = layers.Flatten()(layers.ReLU()(x))
    return keras.Model(images, layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0, 0.1, seed=4))(x))


def stranger() -> keras.Model:
    """A model from elsewhere: fixed non-square float input, softmax at the end."""
    return keras.Sequential(
        [
            layers.Input((9, 14, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, kernel_initializer=keras.initializers.RandomNormal(0, 0.5, seed=3)),
            layers.Flatten(),
            layers.Dense(3, "softmax", kernel_initializer=keras.initializers.RandomNormal(0, 0.1, seed=4)),
        ]
    )


def pictures(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("source", [(8, 8), (7, 13)])
def test_the_eight_views_are_corners_and_mirrors(rng: np.random.Generator, source: tuple[int, int]) -> None:
    """Reference: view i is the crop at row i & 1, column (i >> 1) & 1, mirrored if i >> 2, as numpy crops it."""
    images = pictures(rng, 2, *source)
    network = keras.Sequential([layers.Input((12, 12, 3)), layers.Flatten()])
    views = TestTimeViews(RandomTransforms(12, **STILL), network, range(8), 1.35, True, True, 0)
    for number in range(8):
        found = np.array(keras.ops.convert_to_numpy(views.view(images, number)))
        np.testing.assert_allclose(found, corner(images, number, 1.35, 12, 12), atol=2e-3, err_msg=str(number))


def test_a_view_of_twice_the_scale_is_the_quarter_itself() -> None:
    """Golden: at scale 2 the views of a 9x9 image are its four 5x5 quarters, then the same mirrored."""
    images = np.arange(81, dtype="float32").reshape(1, 9, 9, 1)
    network = keras.Sequential([layers.Input((5, 5, 1)), layers.Flatten()])
    views = TestTimeViews(RandomTransforms(5, **STILL), network, range(8), 2.0, True, True, 0)
    quarters = [images[0, :5, :5], images[0, 4:, :5], images[0, :5, 4:], images[0, 4:, 4:]]
    quarters += [quarter[:, ::-1] for quarter in quarters]
    for number, quarter in enumerate(quarters):
        found = np.array(keras.ops.convert_to_numpy(views.view(images, number)))[0]
        np.testing.assert_allclose(found, quarter, atol=1e-4, err_msg=str(number))


def test_views_keep_warp_rotation_and_lighting_but_neither_zoom_nor_flip(rng: np.random.Generator) -> None:
    """Invariant: the layer's own zoom and flip change no view; its warp, rotation and lighting change every one."""
    images = pictures(rng, 6, 8, 8)
    network = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten()])

    def views(**options: float) -> np.ndarray:
        layer = RandomTransforms(8, **{**STILL, **options})
        augmented = TestTimeViews(layer, network, range(8), 1.35, True, True, 0)
        return np.stack([keras.ops.convert_to_numpy(augmented.view(images, number)) for number in range(8)])

    still = views()
    np.testing.assert_array_equal(views(max_zoom=2.0, do_flip=True), still)
    for name, strength in (("max_warp", 0.3), ("max_rotate", 20.0), ("max_lighting", 0.5)):
        changed = np.abs(views(**{name: strength}) - still).mean(axis=(2, 3, 4)) > 1
        assert changed.all(axis=1).sum() >= 2, name  # of all images of a view, for they share its draw


def quarter_turn(k: int) -> np.ndarray:
    """fastai's `dihedral_affine`: bit 0 mirrors x, bit 1 mirrors y, bit 2 swaps them."""
    x, y = (-1 if k & 1 else 1), (-1 if k & 2 else 1)
    return np.array([[0, x, 0], [y, 0, 0], [0, 0, 1]]) if k & 4 else np.diag([x, y, 1])


@pytest.mark.parametrize("flip_vert", [False, True])
def test_a_view_is_one_resample_of_corner_and_draws(rng: np.random.Generator, flip_vert: bool) -> None:
    """Reference: a view's pixels are quarter turn · rotation · corner, then warp, then mirror, in one slow resample.

    The rotation turns the corner's window, and not the image before it is cut out, as in fastai's A = R · Z.
    """
    images = pictures(rng, 4, 7, 13)
    layer = RandomTransforms(12, do_flip=True, flip_vert=flip_vert, max_rotate=30.0, max_lighting=0.0, max_zoom=3.0)
    network = keras.Sequential([layers.Input((12, 12, 3)), layers.Flatten()])
    views = TestTimeViews(layer, network, range(8), 1.35, True, True, 7)
    for number in (2, 5):
        rows = np.repeat(np.array(keras.ops.convert_to_numpy(layer.draws(1, 7 + number)[0]), np.float64), 4, axis=0)
        found = np.array(keras.ops.convert_to_numpy(views.view(images, number)))
        for image, shown, (_, turn, _, _, _, flip, p_warp, p_turn, _, *m) in zip(images, found, rows, strict=True):
            affine = quarter_turn(int(8 * flip)) if flip_vert else np.eye(3)
            affine = affine @ (rotate_matrix((2 * turn - 1) * 30) if p_turn < 0.75 else np.eye(3))
            affine = for_aspect(affine @ zoom_matrix(1.35, number & 1, number >> 1 & 1), 7, 13)
            warp = warp_matrix(0.2 * (2 * np.array(m) - 1)) if p_warp < 0.75 else np.eye(3)
            matrix = affine @ warp @ np.diag([-1.0 if number >> 2 else 1.0, 1, 1])
            np.testing.assert_allclose(shown, slow_resample(image, matrix, 12, 12), atol=0.02)


def test_parts_and_weights(rng: np.random.Generator) -> None:
    """Reference: plain is the model's own softmax, the mean is that over numpy's crops, and the answer 0.4 to 0.6."""
    model, images = ours(), pictures(rng, 5, 8, 8)
    plain, mean = tta_predict(model, images, beta=None)
    np.testing.assert_allclose(plain, softmax(model.predict(images, verbose=0)), atol=1e-6)
    network = keras.Model(model.layers[1].output, model.output)
    crops = [corner(images, number, 1.35, 10, 10).astype("float32") for number in range(8)]
    expected = np.mean([softmax(network.predict(crop, verbose=0)) for crop in crops], axis=0)
    np.testing.assert_allclose(mean, expected, atol=2e-5)
    assert np.abs(mean - plain).max() > 0.01
    np.testing.assert_allclose(tta_predict(model, images), 0.4 * plain + 0.6 * mean, atol=1e-6)
    plain, mean = tta_predict(model, images, (1,), beta=None)
    np.testing.assert_allclose(tta_predict(model, images, (1,), beta=0.25), 0.25 * plain + 0.75 * mean, atol=1e-6)


def test_views_that_move_nothing_give_the_plain_prediction(rng: np.random.Generator) -> None:
    """Invariant: scale 1, no flip and no random transform make every part and every mixture the plain prediction."""
    model, images = ours(), pictures(rng, 5, 8, 8)
    plain, mean = tta_predict(model, images, beta=None, scale=1.0, flip=False)
    np.testing.assert_allclose(mean, plain, rtol=0, atol=3e-7)
    # Predictions may differ in the last bit, as compiled; the pixels of every view do not.
    layer = model.get_layer("transforms")
    views = TestTimeViews(layer, model, range(8), 1.0, False, True, 0)
    for number in range(8):
        np.testing.assert_array_equal(views.view(images, number), layer(images))


def test_order_of_views_and_calls_changes_nothing(rng: np.random.Generator) -> None:
    """Determinism: with every random transform on, permuted views and a second call agree; another seed does not."""
    model, images = ours(max_rotate=20.0, max_warp=0.2, max_lighting=0.3), pictures(rng, 5, 8, 8)
    first = tta_predict(model, images, (0, 3, 6), seed=3)
    np.testing.assert_array_equal(tta_predict(model, images, (0, 3, 6), seed=3), first)
    np.testing.assert_allclose(tta_predict(model, images, (6, 0, 3), seed=3), first, atol=1e-6)
    assert np.abs(tta_predict(model, images, (0, 3, 6), seed=4) - first).max() > 1e-3


def test_without_flip_views_four_to_seven_are_the_corners_again(rng: np.random.Generator) -> None:
    """Invariant: `flip=False` mirrors nothing, so still view 5 is view 1 again; with it, it is not."""
    model, images = ours(), pictures(rng, 4, 8, 8)
    single = tta_predict(model, images, (1,))
    np.testing.assert_allclose(tta_predict(model, images, (1, 5), flip=False), single, atol=1e-6)
    assert np.abs(tta_predict(model, images, (1, 5)) - single).max() > 1e-3


def test_a_strangers_model(rng: np.random.Generator) -> None:
    """Reference: a softmax model of fixed non-square input gets corners and mirrors at its own size, as numpy crops."""
    model, images = stranger(), pictures(rng, 7, 9, 14)
    plain, mean = tta_predict(model, images, beta=None, from_logits=False, batch_size=27)
    np.testing.assert_allclose(plain, model.predict(images.astype("float32"), verbose=0), atol=1e-6)
    crops = [corner(images, number, 1.35, 9, 14).astype("float32") for number in range(8)]
    expected = np.mean([model.predict(crop, verbose=0) for crop in crops], axis=0)
    np.testing.assert_allclose(mean, expected, atol=2e-5)
    np.testing.assert_allclose(mean.sum(axis=1), 1, atol=1e-5)


def test_images_of_any_dtype_predict_alike(rng: np.random.Generator) -> None:
    """Invariant: uint8, float32 and float64 of the same values give the same, and no warning."""
    model, images = stranger(), pictures(rng, 3, 9, 14)
    found = [tta_predict(model, images.astype(dtype), 2) for dtype in ("uint8", "float32", "float64")]
    # A program of its own, which on some processors rounds otherwise.
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[1], found[2])


def test_a_sequential_model_of_our_shape_predicts_as_its_functional_twin(rng: np.random.Generator) -> None:
    """Invariant: transforms at the front of a `Sequential` are found and used as those of a functional model are."""
    model, images = ours(do_flip=True, max_rotate=20.0), pictures(rng, 3, 9, 9)
    own = [type(layer).from_config(layer.get_config()) for layer in model.layers[1:]]
    chain = keras.Sequential([layers.Input((9, 9, 3), dtype="uint8"), *own])
    chain.set_weights(model.get_weights())
    np.testing.assert_allclose(tta_predict(chain, images, 2), tta_predict(model, images, 2), atol=1e-6)


def test_the_last_partial_batch_is_right(rng: np.random.Generator) -> None:
    """Invariant: seven images in batches of three, or one by one, are predicted as all at once."""
    model, images = ours(), pictures(rng, 7, 8, 8)
    whole = tta_predict(model, images, 2)
    assert whole.shape == (7, 3)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(tta_predict(model, images, 2, batch_size=9), whole, atol=1e-6)
    np.testing.assert_allclose(tta_predict(model, images, 2, batch_size=1), whole, atol=1e-6)


def test_the_model_is_left_alone(rng: np.random.Generator) -> None:
    """Invariant: predicting with views moves no variable of the model, its seeds included."""
    model, images = ours(max_rotate=20.0), pictures(rng, 3, 8, 8)
    before = [np.array(variable) for variable in model.variables]
    tta_predict(model, images, 2)
    for now, then in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(now), then)


class Unshaped(keras.Model):
    """A model whose outputs are unknown before a call."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, images: object) -> object:
        return self.dense(keras.ops.mean(images, axis=(1, 2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": 0}, "at least 1, .*got 0"),
        ({"views": (-1, 2)}, "view numbers from 0"),
        ({"beta": 1.5}, r"beta: must lie in \[0, 1\].*got 1.5"),
        ({"scale": 0.9}, r"scale: must be .* at least 1; got 0\.9"),
        ({"scale": math.nan}, r"scale: must be .* at least 1; got nan"),
        ({"batch_size": 0}, r"batch_size: must be at least 1, or None .*; got 0"),
        ({"views": 2.0}, "views: .*got 2.0"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, r"must be \(number, height, width, channels\); got \(8, 8, 3\)"),
        ({"images": [np.zeros((8, 8, 3)), np.zeros((9, 8, 3))]}, "all of one size"),
        ({"images": np.zeros((0, 8, 8, 3))}, "at least one image"),
        ({"images": np.full((1, 8, 8, 3), "a")}, "uint8 or float"),
        ({"images": np.full((1, 8, 8, 3), 0.5)}, "0-255, for the model rescales them; got 0-1"),
        ({"images": np.full((1, 8, 8, 3), 300.0)}, "0-255; got 300 to 300"),
        ({"images": np.full((1, 8, 8, 3), math.nan)}, "0-255; got nan"),
    ],
)
def test_bad_arguments_are_errors(rng: np.random.Generator, options: dict, said: str) -> None:
    """Golden: a value outside its range raises with the rule."""
    with pytest.raises(InputError, match=said):
        tta_predict(ours(), **{"images": pictures(rng, 2, 8, 8), **options})


def test_a_subclassed_model_is_refused(rng: np.random.Generator) -> None:
    """Golden: a model that is not functional is an InputError with the reason."""
    with pytest.raises(InputError, match="must be a functional or sequential model"):
        tta_predict(Unshaped(), pictures(rng, 2, 8, 8))


def test_models_of_several_parts_are_refused(rng: np.random.Generator) -> None:
    """Golden: several inputs or outputs, and what is no class score, are named; an input's size is kept to."""
    model, images = stranger(), pictures(rng, 2, 9, 14)
    other = keras.Input((9, 14, 3))
    total = layers.Add()([model.outputs[0], layers.Dense(3)(layers.Flatten()(other))])
    both = keras.Model([model.inputs[0], other], total)
    for refused, said in (
        (both, "one input and one output; it has 2 and 1"),
        (keras.Model(model.inputs[0], {"a": model.outputs[0], "b": model.outputs[0]}), "it has 1 and 2"),
        (keras.Sequential([layers.Input((9, 14, 3)), layers.Conv2D(3, 1)]), r"must output \(batch, classes\)"),
        (keras.Sequential([layers.Flatten(), layers.Dense(3)]), "has no graph"),
    ):
        with pytest.raises(InputError, match=said):
            tta_predict(refused, images)
    with pytest.raises(InputError, match=r"must be \(None, 9, 14, 3\), the model's input; got \(2, 8, 8, 3\)"):
        tta_predict(model, images[:, :8, :8])
    with pytest.raises(InputError, match="for the model rescales them; got 0-1"):
        tta_predict(model, images / 255)
    flat = keras.Sequential([layers.Input((9, 14)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(InputError, match=r"must be \(None, 9, 14\), the model's input; got \(2, 9, 14, 3\)"):
        tta_predict(flat, images)


def ends() -> dict[str, tuple[keras.Model, str | None]]:
    """Models by how they end, with what comes out."""
    image = keras.Input((4, 4, 3))
    x = layers.Flatten()(image)
    dense = layers.Dense(3, name="dense")(x)
    soft = layers.Dense(3, "softmax")(x)
    inner = keras.Sequential([layers.Input((3,)), layers.Dense(5), layers.Softmax()])
    outputs = {
        "linear": (dense, "logits"),
        "linear, divided": (dense / 2.0, "logits"),
        "log-softmax": (layers.Activation("log_softmax")(dense), "logits"),
        "softmax": (soft, "probabilities"),
        "softmax, cast": (layers.Activation("linear", dtype="float32")(soft), "probabilities"),
        "softmax, ops.cast": (keras.ops.cast(soft, "float32"), "probabilities"),
        "softmax layer": (layers.Softmax()(dense), "probabilities"),
        "ops.softmax": (keras.ops.softmax(dense), "probabilities"),
        "nested": (inner(dense), "probabilities"),
        "nested twice": (keras.Sequential([layers.Input((3,)), inner, layers.Dropout(0.5)])(dense), "probabilities"),
        "average": (layers.Average()([soft, layers.Softmax()(dense)]), "probabilities"),
        "average of both": (layers.Average()([soft, dense]), None),
        "sigmoid": (layers.Dense(1, "sigmoid")(x), "probabilities"),
        "ops.sigmoid": (keras.ops.sigmoid(dense), "probabilities"),
        "weighted sum": (0.5 * soft + 0.5 * soft, None),
        "own softmax": (keras.ops.exp(dense) / 2.0, None),
        "another activation": (layers.Dense(3, "tanh")(x), None),
        "a subclass": (Unshaped()(image), None),
    }
    return {name: (keras.Model(image, output), kind) for name, (output, kind) in outputs.items()}


def test_logits_are_told_from_probabilities_wherever_the_softmax_stands() -> None:
    """Golden: the graph shows how a model ends, through nested models; where it does not, the caller must say."""
    found = {name: output_kind(read_graph(model)) for name, (model, _) in ends().items()}
    assert found == {name: kind for name, (_, kind) in ends().items()}
    images = np.full((1, 4, 4, 3), 9.0)
    with pytest.raises(InputError, match=r"from_logits: .* set from_logits to True or False"):
        tta_predict(ends()["weighted sum"][0], images)


@pytest.mark.parametrize(("end", "squash"), [("sigmoid", False), ("nested", False), ("one logit", True)])
def test_probabilities_get_no_second_softmax(rng: np.random.Generator, end: str, squash: bool) -> None:
    """Reference: the plain part is the model's own prediction; of a single logit its sigmoid."""
    model, images = ends()["sigmoid" if squash else end][0], pictures(rng, 3, 4, 4)
    if squash:
        model = keras.Model(model.input, layers.Dense(1)(model.layers[-2].output))
    expected = model.predict(images.astype("float32"), verbose=0)
    plain, mean = tta_predict(model, images, 1, beta=None)
    np.testing.assert_allclose(plain, 1 / (1 + np.exp(-expected)) if squash else expected, atol=1e-6)
    assert mean.shape == plain.shape


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("size", "passes"), [(10, 1), (400, 4)])
def test_large_images_are_predicted_one_at_a_time_on_a_cpu(rng, size, passes):
    """Behaviour: what counts is the size that the network sees, not that of the image."""
    seen: list[int] = []
    count = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs: seen.append(batch))
    tta_predict(ours(size), pictures(rng, 4, 12, 12), 2, callbacks=[count])
    assert seen == list(range(passes))


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C, before a batch is computed or after."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def on_predict_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if (self.when, batch) == ("begin", 1):
            raise KeyboardInterrupt

    def on_predict_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.when == "end":
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["begin", "end", "compiling"])
def test_ctrl_c_loses_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Invariant: wherever a prediction is interrupted, every variable keeps its bits, and the next call works."""
    model, images = ours(max_rotate=20.0), pictures(rng, 3, 8, 8)
    before = [np.array(variable) for variable in model.variables]
    if when == "compiling":
        monkeypatch.setattr(TestTimeViews, "view", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tta_predict(model, images, 1, batch_size=2, callbacks=[Interrupt(when)])
    monkeypatch.undo()
    for now, then in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(now), then)
    assert tta_predict(model, images, 1).shape == (3, 3)


def test_threads_predict_as_one(rng: np.random.Generator) -> None:
    """Invariant: four threads at once, each with calls of its own, get what one gets."""
    model, images = ours(), pictures(rng, 4, 8, 8)
    expected = [tta_predict(model, images[i : i + 1], 1) for i in range(4)]
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: tta_predict(fresh, images[i % 4 : i % 4 + 1], 1), range(20)))
    np.testing.assert_allclose(found, expected * 5, atol=1e-6)


def test_a_deleted_model_is_gone(rng: np.random.Generator) -> None:
    """Invariant: nothing that was compiled for a model keeps it in memory, nor is it saved with the model."""
    model = stranger()
    weights = len(model.weights)
    tta_predict(model, pictures(rng, 1, 9, 14), 1)
    grad_cam(model, pictures(rng, 1, 9, 14), [0])
    assert len(model.weights) == weights
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_changed_sequential_is_read_again(rng: np.random.Generator) -> None:
    """Invariant: layers added and removed after a prediction count; the transforms at the front are still found."""
    images = pictures(rng, 2, 9, 9)
    model = keras.Sequential()
    for layer in (layers.Input((9, 9, 3)), RandomTransforms(6, **STILL), layers.Rescaling(1 / 255), layers.Flatten()):
        model.add(layer)
    model.add(layers.Dense(3, name="first"))
    first = tta_predict(model, images, 1, beta=None)[0]
    np.testing.assert_allclose(first, softmax(model.predict(images, verbose=0)), atol=1e-6)
    model.pop()
    model.add(layers.Dense(2, "softmax", name="second"))
    second, views = tta_predict(model, images, 1, beta=None)
    np.testing.assert_allclose(second, model.predict(images, verbose=0), atol=1e-6)
    crop = keras.Sequential(model.layers[1:])(corner(images, 0, 1.35, 6, 6).astype("float32"))
    np.testing.assert_allclose(views, crop, atol=1e-5)


def test_views_of_numpys_numbers_and_lists_of_images(rng: np.random.Generator) -> None:
    """Invariant: NumPy integers count as numbers, and a list of images of one size as an array."""
    model, images = stranger(), pictures(rng, 2, 9, 14)
    expected = tta_predict(model, images, 1)
    np.testing.assert_array_equal(tta_predict(model, list(images), np.int64(1)), expected)
    np.testing.assert_array_equal(tta_predict(model, images, np.arange(1), np.float32(0.4)), expected)
    np.testing.assert_allclose(tta_predict(model, images.astype(np.int64), 1), expected, atol=1e-6)
