"""Test-time augmentation: its views against plain numpy crops, its weights, and models from elsewhere."""

import keras
import numpy as np
import pytest
from keras import layers
from slow_geometry import for_aspect, rotate_matrix, slow_resample, warp_matrix, zoom_matrix

from kbaseline.errors import InputError
from kbaseline.transforms import RandomTransforms
from kbaseline.tta import TestTimeViews, tta_predict

STILL = {"max_rotate": 0.0, "max_zoom": 1.0, "max_lighting": 0.0, "max_warp": 0.0}


def corner(images: np.ndarray, number: int, scale: float, height: int, width: int) -> np.ndarray:
    """View `number` in float64: a corner's crop of 1/scale of the image, resized align-corners, then mirrored."""
    rows, columns = images.shape[1:3]
    top, left = (rows - 1) * (1 - 1 / scale) * (number & 1), (columns - 1) * (1 - 1 / scale) * (number >> 1 & 1)
    y, x = np.linspace(top, top + (rows - 1) / scale, height), np.linspace(left, left + (columns - 1) / scale, width)
    tall = np.apply_along_axis(lambda line: np.interp(y, np.arange(rows), line), 1, images.astype(np.float64))
    shown = np.apply_along_axis(lambda line: np.interp(x, np.arange(columns), line), 2, tall)
    return shown[:, :, ::-1] if number >> 2 & 1 else shown


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
        ({"scale": 0.9}, r"scale: must be at least 1; got 0\.9"),
    ],
)
def test_bad_arguments_are_errors(rng: np.random.Generator, options: dict, said: str) -> None:
    """Golden: a value outside its range raises with the rule."""
    with pytest.raises(InputError, match=said):
        tta_predict(ours(), pictures(rng, 2, 8, 8), **options)


def test_a_subclassed_model_is_refused(rng: np.random.Generator) -> None:
    """Golden: a model that is not functional is an InputError with the reason."""
    with pytest.raises(InputError, match="must be a functional or sequential model"):
        tta_predict(Unshaped(), pictures(rng, 2, 8, 8))
