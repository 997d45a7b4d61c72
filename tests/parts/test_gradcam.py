"""Grad-CAM: the paper's equations, on small models and on the classifier."""

import keras
import numpy as np
import pytest
from keras import layers

from kbaseline.errors import InputError
from kbaseline.gradcam import grad_cam
from kbaseline.models.classifier import build_classifier
from kbaseline.tta import tta_predict


def convolutional(*head, classes=3, **last):
    """Two convolutions, then `head`, then a dense layer."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, 2, "same", activation="relu", name="early")(image)
    x = layers.Conv2D(4, 3, padding="same", name="late")(x)
    for layer in head or (layers.GlobalAveragePooling2D(),):
        x = layer(x)
    return keras.Model(image, layers.Dense(classes, name="scores", **last)(x))


def features_of(model, images):
    return keras.Model(model.input, model.get_layer("late").output).predict(images, verbose=0)


def scaled(maps):
    return maps / maps.max(axis=(1, 2), keepdims=True)


def test_with_average_pooling_it_is_the_class_activation_map(rng):
    """Reference: with average pooling the dense layer's weights are the paper's alphas (section 3.1), in NumPy."""
    model, images, classes = convolutional(), rng.normal(size=(6, 8, 8, 3)), np.array([0, 1, 2, 0, 1, 2])
    kernel = model.get_layer("scores").get_weights()[0]
    expected = np.maximum(np.einsum("nhwc,cn->nhw", features_of(model, images), kernel[:, classes]), 0)
    found = grad_cam(model, images, classes)
    assert found.dtype == np.float32
    assert found.shape == (6, 4, 4)
    np.testing.assert_allclose(found, scaled(expected), atol=1e-5)


def test_gradients_go_through_any_head(rng):
    """Reference: finite differences of the class's score, place by place, through pooling, a hidden layer and ReLU."""
    model = convolutional(layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(16, activation="relu"))
    images, classes = rng.normal(size=(2, 8, 8, 3)).astype("float32"), [2, 0]
    features = features_of(model, images)
    head = keras.Model(model.get_layer("late").output, model.output)
    step, expected = 1e-2, []
    for feature, label in zip(features, classes, strict=True):
        nudges = np.eye(feature.size, dtype="float32").reshape(-1, *feature.shape) * step
        up, down = (head.predict(feature + sign * nudges, verbose=0)[:, label] for sign in (1, -1))
        alphas = ((up - down) / (2 * step)).reshape(feature.shape).mean(axis=(0, 1))
        expected.append(np.maximum(feature @ alphas, 0))
    np.testing.assert_allclose(grad_cam(model, images, classes, "late"), scaled(np.stack(expected)), atol=2e-3)


def test_it_points_at_what_decides():
    """Golden: a network that scores red against blue points at the red spot for red and the blue one for blue."""
    image = keras.Input((16, 16, 3))
    pooled = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(4, name="cells")(image))
    model = keras.Model(image, layers.Dense(2, use_bias=False, kernel_initializer="zeros")(pooled))
    model.layers[-1].set_weights([np.array([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])])
    picture = np.zeros((2, 16, 16, 3), np.float32)
    picture[:, 0:4, 4:8, 0] = 1
    picture[:, 12:16, 8:12, 2] = 1
    red, blue = grad_cam(model, picture, [0, 1])
    assert np.argwhere(red > 0).tolist() == [[0, 1]]
    assert np.argwhere(blue > 0).tolist() == [[3, 2]]
    assert red.max() == blue.max() == 1


@pytest.mark.parametrize("end", ["in the layer", "a layer", "an activation"])
def test_a_softmax_at_the_end_is_left_out(rng, end):
    """Invariant: a model of probabilities has the maps of its logits, and keeps its probabilities."""
    plain, images = convolutional(), rng.normal(size=(3, 8, 8, 3))
    model = convolutional(activation="softmax") if end == "in the layer" else convolutional()
    model.set_weights(plain.get_weights())
    if end != "in the layer":
        last = layers.Softmax() if end == "a layer" else layers.Activation("softmax")
        model = keras.Model(model.input, last(model.output))
    np.testing.assert_allclose(grad_cam(model, images, [0, 1, 2]), grad_cam(plain, images, [0, 1, 2]), atol=1e-5)
    np.testing.assert_allclose(model.predict(images, verbose=0).sum(axis=1), 1, atol=1e-5)


def test_no_evidence_is_an_empty_map():
    """Golden: if every channel lowers the score of the class, the map is 0, not NaN."""
    model = convolutional()
    model.get_layer("late").set_weights([np.zeros((3, 3, 5, 4)), np.ones(4)])
    model.get_layer("scores").set_weights([-np.ones((4, 3)), np.zeros(3)])
    assert not grad_cam(model, np.ones((1, 8, 8, 3)), [1]).any()


def test_the_last_map_is_the_default_and_others_have_names(rng):
    """Invariant: default is the last layer with more than one place; a sequential model does as well."""
    model = convolutional(layers.GlobalAveragePooling2D(keepdims=True), layers.Flatten())
    images, classes = rng.normal(size=(3, 8, 8, 3)), [0, 1, 2]
    default = grad_cam(model, images, classes)
    np.testing.assert_array_equal(default, grad_cam(model, images, classes, "late"))
    assert not np.array_equal(default, grad_cam(model, images, classes, "early"))
    sequential = keras.Sequential([keras.Input((8, 8, 3)), *model.layers[1:]])
    np.testing.assert_array_equal(grad_cam(sequential, images, classes), default)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The package's own, on a backbone of two convolutions."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, 2, "same", activation="relu")(layers.Rescaling(1 / 255)(image))
    path = tmp_path_factory.mktemp("backbone") / "tiny.keras"
    keras.Model(image, layers.Conv2D(8, 3, 2, "same", activation="relu")(x)).save(path)
    return build_classifier(4, 16, str(path), hidden=16)


def test_the_classifier_saved_and_loaded(classifier, rng, tmp_path):
    """Invariant: the classifier's map is its backbone's, before and after TTA, and after loading."""
    images = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    first = grad_cam(classifier, images, [3, 1])
    assert first.shape == (2, 4, 4)
    assert (first.max(axis=(1, 2)) == 1).all()
    before = classifier.predict(images, verbose=0)
    tta_predict(classifier, images, 2)
    np.testing.assert_array_equal(grad_cam(classifier, images, [3, 1], "backbone"), first)
    np.testing.assert_array_equal(classifier.predict(images, verbose=0), before)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(grad_cam(loaded, images, [3, 1]), first, atol=1e-5)


def test_what_cannot_be_asked_is_refused(classifier):
    """Errors: an unknown layer (the message names the others), an unknown class, a model without a graph."""
    model, image = convolutional(), np.zeros((1, 8, 8, 3))
    with pytest.raises(InputError, match=r"'lat': must give .* these do: early, late"):
        grad_cam(model, image, [0], "lat")
    with pytest.raises(InputError, match="'scores': must give"):
        grad_cam(model, image, [0], "scores")
    with pytest.raises(InputError, match="0 to 2; got 3 to 3"):
        grad_cam(model, image, [3])
    with pytest.raises(InputError, match="must be 1 integers"):
        grad_cam(model, image, [0, 1])
    with pytest.raises(InputError, match="has no graph"):
        grad_cam(keras.Sequential([layers.Dense(2)]), image, [0])
    both = keras.Input((8, 8, 3))
    side = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3, name="one")(both))
    other = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3, name="two")(both))
    forked = keras.Model(both, layers.Add()([side, other]))
    with pytest.raises(InputError, match="'one': the output must depend"):
        grad_cam(forked, image, [0], "one")
    assert grad_cam(model, image[:0], np.zeros(0, int)).shape[0] == 0


def test_layers_inside_a_nested_model_have_names(rng):
    """Reference: a layer inside a nested model gives the map it gives in the same model built flat."""
    flat, images = convolutional(), rng.normal(size=(2, 8, 8, 3))
    body = keras.Model(flat.inputs[0], flat.get_layer("late").output, name="body")
    image = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(body(image, training=False))
    nested = keras.Model(
        image, keras.Sequential([keras.Input((4,)), flat.get_layer("scores"), layers.Softmax()])(pooled)
    )
    for name in ("early", "body/early", "late", "body", None):
        expected = grad_cam(flat, images, [0, 2], "early" if name and "early" in name else None)
        np.testing.assert_allclose(grad_cam(nested, images, [0, 2], name), expected, atol=1e-5)
    twin = keras.models.clone_model(body)
    twin.name = "twin"
    image = keras.Input((8, 8, 3))
    both = layers.Concatenate()([body(image), twin(image)])
    with pytest.raises(InputError, match="'early': there are several: body/early, twin/early"):
        grad_cam(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(both))), images, [0, 0], "early")


def test_one_unit_with_a_sigmoid_is_its_logit(rng):
    """Invariant: a saturated sigmoid hides no evidence."""
    model, images = convolutional(classes=1, activation="sigmoid"), rng.normal(size=(2, 8, 8, 3))
    plain = convolutional(classes=1)
    plain.set_weights(model.get_weights())
    for network in (model, plain):
        network.layers[-1].bias.assign([50.0])
    np.testing.assert_allclose(grad_cam(model, images, [0, 0]), grad_cam(plain, images, [0, 0]), atol=1e-5)


def test_it_compiles_once_and_sees_new_weights(rng, monkeypatch):
    """Invariant: a second call traces nothing, and uses the weights as they are then, the skipped softmax's too."""
    model, images = convolutional(activation="softmax"), rng.normal(size=(2, 8, 8, 3))
    grad_cam(model, images, [0, 1])
    other = convolutional()
    model.set_weights(other.get_weights())
    expected = grad_cam(other, images, [0, 1])
    monkeypatch.setattr(layers.Conv2D, "call", None)
    np.testing.assert_allclose(grad_cam(model, images, [0, 1]), expected, atol=1e-5)


def test_other_backends_and_shapes_are_refused(monkeypatch):
    """Errors: images without a batch axis or of several sizes, several outputs, a backend that is not JAX."""
    model = convolutional()
    with pytest.raises(InputError, match=r"images: must be \(number, height, width, channels\); got \(8, 8, 3\)"):
        grad_cam(model, np.zeros((8, 8, 3)), [0])
    with pytest.raises(InputError, match="all of one size"):
        grad_cam(model, [np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], [0, 0])
    with pytest.raises(InputError, match="one input and one output; it has 1 and 2"):
        grad_cam(keras.Model(model.inputs, [*model.outputs, model.outputs[0] * 2]), np.zeros((1, 8, 8, 3)), [0])
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match="works on Keras' JAX backend, and Keras uses 'torch'"):
        grad_cam(model, np.zeros((1, 8, 8, 3)), [0])
