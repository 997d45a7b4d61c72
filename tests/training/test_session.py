"""What may have changed when a run goes on: where things lie and how its settings are written, not what they say."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kbaseline.config.load import load_config
from kbaseline.config.schema import Config
from kbaseline.data import ImageData, Split
from kbaseline.data.pictures import FilePictures, Provenance
from kbaseline.devices.environment import environment
from kbaseline.errors import InputError
from kbaseline.models.gpu import SWITCH
from kbaseline.storage.run_folder import RunFolder
from kbaseline.training.checkpoint import Checkpoint, Checkpoints
from kbaseline.training.session import Session

EPOCH = {"stage": "head", "epoch": 1, "accuracy": 0.5}
CONFIG = load_config({"data": {"source": "folder:/then"}, "model": {"weights": "none"}, "tta": {"views": 4}})


def images(*, changed: int | None = None, labels: int = 2) -> ImageData:
    """Twenty images, one of them perhaps changed in one value of its last pixel."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
    if changed is not None:
        pixels[changed, -1, -1, -1] += 1
    return ImageData.from_arrays((pixels, np.arange(20) % labels))


def begun(
    folder: Path, config: Config, data: ImageData, *, resumed: bool, log: Callable[..., None] = lambda *_: None
) -> Session:
    session = Session(RunFolder(folder), config, log, resumed=resumed)
    try:
        session.begin(data, {"data": 1.0})
        if not resumed:
            session.save((0, 1, 0), [np.zeros(3)], [EPOCH], 1.0)
    finally:
        session.close()
    return session


def rewritten(folder: Path, changes: Mapping[str, Any]) -> None:
    """Replaces parts of the newest checkpoint's record."""
    checkpoints = Checkpoints(RunFolder(folder), pytest.fail)
    kept = checkpoints.newest()
    checkpoints.save(Checkpoint(kept.stage, kept.epoch, kept.batch, kept.state, {**kept.record, **changes}))
    checkpoints.close()


def without(key: str) -> str:
    """The configuration as a release before that key would have written it."""
    text = re.sub(rf"(?m)(\n *|, ){key}: [^,}}\n]*", "", CONFIG.to_yaml())
    assert key not in text
    return text


ACCEPTED = {
    "nothing": ({}, {}, images()),
    "where the images lie": (
        {},
        {"data.source": "csv:/now/t.csv", "data.data_dir": "/d", "data.cache_dir": "/c"},
        images(),
    ),
    "devices": ({}, {"runtime.devices": 2}, images()),
    "a release added a key": ({"config": without("dropout")}, {}, images()),
    "a release added a section's key": ({"config": without("checkpoint_minutes")}, {}, images()),
    "the order and style of the text": ({"config": CONFIG.model_dump_json()}, {}, images()),
    "a release that looked at labels alone": ({"data": images().fingerprint(contents=False)}, {}, images(changed=3)),
}
REFUSED = {
    "a value": ({}, {"model.dropout": 0.4}, images(), "model.dropout was 0.5, is 0.4"),
    "a value that had another default": (
        {"config": CONFIG.to_yaml().replace("views: 4", "views: 6")},
        {},
        images(),
        "tta.views was 6, is 4",
    ),
    "what the source says of mirrors": ({}, {"data.source": "digits"}, images(), "tta.flip was True, is False"),
    "a picture": ({}, {}, images(changed=3), "images"),
    "a picture, and where they lie": ({}, {"data.source": "folder:/now"}, images(changed=19), "images"),
    "labels": ({}, {}, images(labels=4), "labels"),
}


@pytest.mark.parametrize(("record", "overrides", "data"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_may_change(record, overrides, data, tmp_path):
    """The run goes on at its checkpoint, and its folder holds the configuration it goes on with."""
    begun(tmp_path, CONFIG, images(), resumed=False)
    rewritten(tmp_path, record)
    config = load_config(CONFIG, overrides)
    assert begun(tmp_path, config, data, resumed=True).start.epoch == 1
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("record", "overrides", "data", "said"), REFUSED.values(), ids=REFUSED)
def test_what_may_not_change(record, overrides, data, said, tmp_path):
    """One line says what changed, and the folder stays as it was."""
    begun(tmp_path, CONFIG, images(), resumed=False)
    rewritten(tmp_path, record)
    with pytest.raises(InputError, match="changed since its checkpoint") as caught:
        begun(tmp_path, load_config(CONFIG, overrides), data, resumed=True)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_config(tmp_path / "config.yaml") == CONFIG


def test_what_computes_otherwise_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: a line each for what was set and is not, and the other way; nothing where all is as before."""
    said: list[str] = []
    switched = ["0", "1", "1", "0"]
    for number, value in enumerate(switched):
        monkeypatch.setenv(SWITCH, value)
        begun(tmp_path, CONFIG, images(), resumed=number > 0, log=lambda line, *_: said.append(line))
        rewritten(tmp_path, {"environment": environment()})
    assert [line for line in said if SWITCH in line] == [
        f"{SWITCH} was {then}, is {now}: the result may differ in the last digits"
        for then, now in [("not set", "1"), ("1", "not set")]
    ]


def test_another_precision_of_products_is_said(tmp_path: Path) -> None:
    """Golden: JAX's setting, which our products on a CPU obey, is in the record where it is set."""
    said: list[str] = []
    assert "jax_default_matmul_precision" not in environment()
    with jax.default_matmul_precision("bfloat16"):
        begun(tmp_path, CONFIG, images(), resumed=False)
        rewritten(tmp_path, {"environment": environment()})
    begun(tmp_path, CONFIG, images(), resumed=True, log=lambda line, *_: said.append(line))
    assert "jax_default_matmul_precision was bfloat16, is not set: the result may differ in the last digits" in said


def test_of_decoded_images_the_digests_count():
    """The digests made when images were decoded say what they show: nothing is read again."""

    def decoded(digest: int) -> ImageData:
        data, digests = images(), np.arange(16, dtype=np.uint64)
        digests[-1] = digest
        pixels = np.broadcast_to(np.uint8(0), data.train.images.shape)
        train = Split(pixels, data.train.labels, Provenance(FilePictures(Path(), []), np.arange(16), digests))
        return replace(data, train=train)

    assert decoded(15).fingerprint() == decoded(15).fingerprint() != decoded(16).fingerprint()
    assert decoded(15).fingerprint(contents=False) == decoded(16).fingerprint(contents=False)
