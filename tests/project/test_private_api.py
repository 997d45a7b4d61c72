"""What is used of other libraries' private API, each use behind one function: the first to fail after their release."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from keras import layers

import kbaseline
from kbaseline.devices import multihost
from kbaseline.models.backbones import sublayers
from kbaseline.training.state import leave_state_untracked

PACKAGE = Path(kbaseline.__file__).parent


def python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_keras_names_the_layers_inside_a_layer() -> None:
    """`models.backbones.sublayers`: the layers a layer holds itself, in the order they were given to it."""
    cell = layers.StackedRNNCells([layers.LSTMCell(2, name="a"), layers.LSTMCell(2, name="b")], name="cells")
    within = [layer.name for layer in sublayers(layers.RNN(cell))]
    assert within == ["cells"], f"Keras {keras.__version__} changed Layer._flatten_layers: mend backbones.sublayers"
    assert [layer.name for layer in sublayers(cell)] == ["a", "b"]
    assert sublayers(layers.Dense(2)) == []


def test_keras_tells_what_decays_and_calls_the_optimizer_when_a_fit_ends() -> None:
    """`optimizer.clone_optimizer` asks what is excluded; `LRFinder` restores when `fit` finalizes, whatever ends it."""
    changed = f"Keras {keras.__version__} changed"
    optimizer, (kernel, bias) = (
        keras.optimizers.SGD(),
        (keras.Variable([1.0], name=name) for name in ("kernel", "bias")),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    decays = [optimizer._use_weight_decay(variable) for variable in (kernel, bias)]
    assert decays == [True, False], f"{changed} exclude_from_weight_decay: mend optimizer.clone_optimizer"

    class Stops(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    ended = []
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    optimizer.finalize_variable_values = ended.append
    model.compile(optimizer, "mse")
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((1, 1)), np.ones((1, 1)), verbose=0, callbacks=[Stops()])
    assert len(ended) == 1, f"{changed} fit: mend LRFinder.on_train_begin"


def test_keras_tracks_attributes_of_a_model() -> None:
    """`training.state.leave_state_untracked`: the state stays a plain dictionary, all else is tracked as before."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    model._jax_state = {"trainable_variables": [1]}
    assert type(model._jax_state) is not dict, (
        f"Keras {keras.__version__} tracks it no more: leave_state_untracked can go"
    )
    leave_state_untracked(model)
    model._jax_state = {"trainable_variables": [1]}
    assert type(model._jax_state) is dict, f"Keras {keras.__version__} changed Layer._tracker: mend training.state"
    model.others = {"a": [1]}
    assert type(model.others) is not dict


def test_jax_says_whether_it_has_started() -> None:
    """`devices.xla.jax_has_started`: not by its import and its settings, but by the first look at the devices."""
    code = """
import jax
from kbaseline.devices.xla import jax_has_started
jax.config.update("jax_platforms", "cpu")
print(jax_has_started())
jax.devices()
print(jax_has_started())
"""
    assert python(code) == ["False", "True"], f"JAX {jax.__version__} changed xla_bridge: mend xla.jax_has_started"


def test_jax_counts_its_processes_before_it_starts() -> None:
    """`devices.multihost._state`: one process of its own number; joined, its client has a barrier with a time limit."""
    changed = f"JAX {jax.__version__} changed its global state of processes: mend multihost._state"
    state = multihost._state()
    assert (state.process_id, state.num_processes, state.client) == (0, 1, None), changed
    code = """
import socket
import jax
from kbaseline.devices import multihost, xla
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
multihost._state().client.wait_at_barrier("a place", 1000)
print(multihost._state().process_id, multihost._state().num_processes, xla.jax_has_started())
"""
    assert python(code) == ["0", "1", "False"], changed


def test_private_api_stands_where_it_is_tested() -> None:
    """Invariant: nothing private of another object is used elsewhere; what TFDS' sources use has tests of its own."""
    known = {
        "models/backbones.py": {"layer._flatten_layers"},
        "optimizer.py": {"optimizer._use_weight_decay"},
        "devices/xla.py": {"jax._src"},
        "devices/multihost.py": {"jax._src", "os._exit"},
        "storage/torch_file.py": {"torch._utils"},  # a name in the file, never imported
        "training/stage.py": {"variable._value"},  # tests/recipe/test_learner.py fails without it
        "training/state.py": {"model._tracker"},
    }
    found = {
        path.relative_to(PACKAGE).as_posix(): set(
            re.findall(r"\b(?!(?:self|cls)\._)[\w.]*\w\._[a-z]\w*", path.read_text(encoding="utf-8"))
        )
        for path in PACKAGE.rglob("*.py")
        if "data" not in path.relative_to(PACKAGE).parts
    }
    assert {path: names for path, names in found.items() if names} == known
