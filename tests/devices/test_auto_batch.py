"""`data.batch_size: auto`: the size it chooses, the network unchanged, and the number saved."""

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from kbaseline.baseline import find_learning_rate
from kbaseline.config.load import load_config
from kbaseline.config.schema import DataConfig
from kbaseline.data import ImageData
from kbaseline.devices import auto_batch as batch_size
from kbaseline.devices.auto_batch import largest, power_of_two
from kbaseline.errors import ConfigError, LRFinderError, RunError
from kbaseline.learner import Learner


@pytest.mark.parametrize(("room", "most", "chosen"), [(100, 1024, 64), (2000, 1024, 1024), (5, 1024, 4), (99, 8, 8)])
def test_the_largest_that_fits(room: int, most: int, chosen: int) -> None:
    """Golden: the largest power of two within memory and the upper limit; no size is tried twice."""
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert largest(fits, most) == chosen
    assert len(set(tried)) == len(tried)
    assert max(tried) <= most


def test_devices_share_the_batch_that_is_left() -> None:
    """Golden: fewer images than a batch make one of a multiple of the devices, if there is an image for each."""
    wanted = load_config(None, {"data.batch_size": 64})
    for images, devices, size in ((13, 4, 12), (3, 4, 64), (64, 4, 64), (200, 1, 64)):
        few = SimpleNamespace(train=range(images))
        found = batch_size.resolve_batch_size(wanted, None, few, Console(quiet=True), devices)
        assert found.data.batch_size == size


def test_two_images_at_least() -> None:
    """Golden: `auto` leaves eight steps an epoch, but two images a batch, for the sake of BatchNorm."""
    wanted = load_config(None, {"data.batch_size": "auto"})
    for images, size in ((1, 1), (2, 2), (12, 2), (31, 2), (32, 4)):
        few = SimpleNamespace(train=range(images))
        assert batch_size.resolve_batch_size(wanted, None, few, Console(quiet=True)).data.batch_size == size


def test_powers_of_two() -> None:
    """Golden: rounded down; 1 at least."""
    assert [power_of_two(n) for n in (0, 1, 2, 3, 64, 100, 1023, 1024)] == [1, 1, 2, 2, 64, 64, 512, 1024]


@pytest.fixture(scope="module")
def data() -> ImageData:
    """300 training images, of which an eighth is 37."""
    return ImageData.from_source("digits", size=16, limit=300, limit_valid=40)


def config(backbone: str, size: Any) -> dict[str, Any]:
    return {"model": {"backbone": backbone, "hidden": 8, "train_bn": True}, "data": {"batch_size": size}}


def test_fewer_images_than_a_batch(tiny_backbone: str, data: ImageData) -> None:
    """Golden: all images are one batch, said in a line; a batch that they fill stays."""
    said = io.StringIO()
    learn = Learner(data, config=config(tiny_backbone, 1024), console=Console(file=said))
    assert (learn.config.data.batch_size, len(learn._batches)) == (300, 1)
    assert said.getvalue() == "data.batch_size: 300, since there are not enough training images for 1024\n"
    assert Learner(data, config=config(tiny_backbone, 300), console=Console(file=said)).config.data.batch_size == 300
    assert said.getvalue().count("\n") == 1


def test_on_a_cpu(tiny_backbone: str, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: 64 or less, limited by the number of images, in one line; no size is tried, because a CPU would swap."""
    said = io.StringIO()
    monkeypatch.setattr(batch_size, "compiled_step", None)
    auto = Learner(data, config=config(tiny_backbone, "auto"), console=Console(file=said))
    assert auto.config.data.batch_size == auto.config.data.batch == 32
    assert said.getvalue() == (
        "data.batch_size auto: 32, chosen for a CPU, limited by 300 training images; learning rates are unchanged\n"
    )


class Step:
    """A compiled step of a fake accelerator on which batches above `room` do not fit."""

    def __init__(self, real: Any, batch: int, room: int, needs: float) -> None:
        self.real, self.batch, self.room, self.needs = real, batch, room, needs

    def memory_analysis(self) -> SimpleNamespace:
        sizes = {"output_size_in_bytes": 40, "alias_size_in_bytes": 40}  # donated, all of it
        return SimpleNamespace(temp_size_in_bytes=self.needs * self.batch, **sizes)

    def __call__(self, state: Any, batch: Any) -> Any:
        if self.batch > self.room:
            # As on a real device: the compiled step has donated the buffers.
            jax.tree.map(lambda array: array.delete(), state)
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return self.real(state, batch) if self.real else ()


def with_memory(monkeypatch: pytest.MonkeyPatch, room: int, needs: float = 0.0, *, real: bool = False) -> list[int]:
    """Fakes an accelerator of 64 bytes, 8 of them in use; returns the list of sizes tried.

    Batches above `room` run out of memory; an image needs `needs` bytes. With `real`, those that fit are trained.
    """
    tried: list[int] = []
    compiled = batch_size.compiled_step
    # The peak of an earlier learner, which never falls.
    stats = {"peak_bytes_in_use": 64, "bytes_in_use": 8, "bytes_limit": 64}
    device = SimpleNamespace(platform="gpu", device_kind="Fake 1", memory_stats=lambda: stats)
    monkeypatch.setattr(batch_size, "_devices", lambda: [device])

    def step(model: Any, inputs: Any) -> Step:
        tried.append(len(inputs[1][1]))
        return Step(compiled(model, inputs) if real else None, tried[-1], room, needs)

    monkeypatch.setattr(batch_size, "compiled_step", step)
    return tried


def test_out_of_memory_halves_and_leaves_no_trace(
    tiny_backbone: str, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant: a batch that does not fit is not chosen, and the network is bitwise equal to an untouched one."""
    untouched = Learner(data, config=config(tiny_backbone, 8), console=Console(quiet=True))
    said = io.StringIO()
    with monkeypatch.context() as patch:
        assert with_memory(patch, room=8, real=True) == []
        learner = Learner(data, config=config(tiny_backbone, "auto"), console=Console(file=said))
    assert learner.config.data.batch_size == 8
    assert "data.batch_size auto: 8, tested on Fake 1; learning rates are unchanged\n" in said.getvalue()
    assert not learner.model.compiled
    for mine, theirs in zip(learner.model.variables, untouched.model.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_tenth_of_the_memory_stays_free(tiny_backbone: str, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: 8 of 64 bytes in use, a step that needs 64 is not chosen, one of 32 is; so again by a second learner.

    Both are searched downwards, though all of the memory was in use once.
    """
    tried = with_memory(monkeypatch, room=99, needs=2.0)
    for _ in range(2):
        chosen = Learner(data, config=config(tiny_backbone, "auto"), console=Console(quiet=True))
        assert (chosen.config.data.batch_size, tried) == (16, [32, 16])
        tried.clear()


def test_not_even_one_image(tiny_backbone: str, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: the error is one line with the remedy."""
    tried = with_memory(monkeypatch, room=0)
    monkeypatch.setattr("kbaseline.devices.xla.jax", batch_size.jax)
    monkeypatch.setattr("kbaseline.learner.with_precision", lambda _: nullcontext())
    monkeypatch.setattr("kbaseline.learner.set_compilation_cache", lambda _: None)
    monkeypatch.setattr("kbaseline.learner.start_jax", lambda **_: None)
    with pytest.raises(RunError, match=r"1 does not fit into the memory of .*; set data\.size lower"):
        Learner(data, config=config(tiny_backbone, "auto"), console=Console(quiet=True))
    assert tried == [32, 16, 8, 4, 2, 1]


def test_the_number_is_kept(tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: the run folder's configuration, used to resume and repeat the run, has the number and not `auto`."""

    def sweep(_: Learner) -> None:
        raise LRFinderError("enough seen")

    monkeypatch.setattr(Learner, "lr_sweep", sweep)
    changes = {"data.source": "digits", "data.size": 16, "data.limit": 200, "data.limit_valid": 40}
    recipe = load_config(config(tiny_backbone, "auto"), changes)
    with pytest.raises(LRFinderError):
        find_learning_rate(recipe, out=tmp_path / "run", console=Console(quiet=True))
    assert load_config(tmp_path / "run" / "config.yaml").data.batch_size == 16


def test_auto_is_not_a_number_yet() -> None:
    """Golden: reading the number before it is resolved is an error; so is a value that is neither number nor `auto`."""
    with pytest.raises(ConfigError, match=r"data\.batch_size: 'auto' is resolved by a Learner"):
        _ = DataConfig(batch_size="auto").batch
    assert json.loads(load_config({"data": {"batch_size": "auto"}}).model_dump_json())["data"]["batch_size"] == "auto"
    for wrong in (0, "all", 1.5):
        with pytest.raises(ConfigError, match=r"data\.batch_size"):
            load_config({"data": {"batch_size": wrong}})
