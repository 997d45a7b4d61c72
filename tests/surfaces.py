"""What reads other people's bytes, each with generated cases: the surfaces that are fuzzed.

Used by test_fuzz.py, which draws some cases of each, and by benchmarks/fuzz.py, which runs 10,000 and more.
"""

import copy
import hashlib
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from kbaseline.config.load import bundled_configs, load_config, parse_assignments
from kbaseline.config.schema import Config, DataConfig
from kbaseline.data.decode import BadImageError, decode, probe, quiet
from kbaseline.data.sources.csv import open_csv
from kbaseline.errors import DownloadError, InputError, KBaselineError
from kbaseline.storage.run_folder import RunFolder

MOST = 1_500
"""Characters of a message; more is not one line to anybody."""

Load = Callable[[Any], None]


@dataclass(frozen=True)
class Surface:
    """Something that reads other people's bytes.

    Attributes:
        name: as the table of counts calls it.
        cases: what it is given.
        prepare: takes an empty folder to work in and gives the function that reads one case there.
        refusals: the errors it may end with, and no other.
        known: cases in which it failed once.
    """

    name: str
    cases: st.SearchStrategy[Any]
    prepare: Callable[[Path], Load]
    refusals: type[Exception] = InputError
    known: tuple[Any, ...] = field(default=())


def taken(surface: Surface, load: Load, case: Any) -> bool:
    """Whether a case was taken; else it was refused, by an error of ours in one line, and without a warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        # Keras' own: on every read of a variable, see pyproject.toml; and on what is odd in somebody's network.
        warnings.filterwarnings("ignore", "__array__ implementation|.* was passed an input with a mask")
        try:
            load(case)
            refused = None
        except surface.refusals as error:
            refused = error
    assert not warned, warned[0]
    if refused is None:
        return True
    said = str(refused)
    assert said.strip(), "a refusal without a reason"
    assert len(said.splitlines()) == 1, f"not one line: {said!r}"
    assert len(said) <= MOST, f"{len(said)} characters: {said[:200]!r}"
    if isinstance(refused, KBaselineError):
        assert refused.exit_code == (2 if isinstance(refused, InputError) else 1)
    return False


# Edits of bytes, of trees of JSON or YAML, and of zip archives, at places that shrink well.

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_EDIT = st.tuples(
    st.sampled_from(["flip", "write", "insert", "delete", "repeat", "cut", "number"]),
    st.integers(0, 2**16),
    st.integers(0, 255),
    st.binary(max_size=8),
)
EDITS = st.lists(_EDIT, min_size=1, max_size=6)


def edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """Some bytes after some edits of them."""
    for kind, place, number, new in edits:
        at = place % (len(content) + 1)
        before, after = content[:at], content[at:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ (1 << number % 8)]) + after[1:]
        elif kind == "write":
            content = before + new + after[len(new) :]
        elif kind == "insert":
            content = before + new + after
        elif kind == "delete":
            content = before + after[number:]
        elif kind == "repeat":
            content = before + after[:number] * 2 + after[number:]
        elif kind == "cut":
            content = before
        elif kind == "number":
            order, width = "<>"[number % 2], "HI"[number // 2 % 2]
            value = _NUMBERS[number // 4 % len(_NUMBERS)] % (2**16 if width == "H" else 2**32)
            written = struct.pack(order + width, value)
            content = before + written + after[len(written) :]
    return content


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "none", "1e-3", "", "..", "__class__", 10**400, -1, 0.5, "9" * 5000]),
)
_TREES = st.recursive(
    _LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3), max_leaves=6
)
TREE_EDITS = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "rename", "wrap", "repeat"]), st.integers(0, 4095), _TREES), max_size=3
)


def edited_tree(tree: Any, edits: list[tuple[str, int, Any]]) -> Any:
    """A tree of dicts and lists after some edits of it."""
    tree = [copy.deepcopy(tree)]
    for kind, pick, value in edits:
        places = list(_places(tree))
        node, key = places[pick % len(places)]
        if kind == "put":
            node[key] = value
        elif kind == "drop" and node is not tree:
            del node[key]
        elif kind == "rename" and isinstance(node, dict):
            node[str(value)[:20]] = node.pop(key)
        elif kind == "wrap":
            node[key] = [node[key]]
        elif kind == "repeat" and isinstance(node[key], list):
            node[key] = node[key] * 2
    return tree[0]


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def zipped(members: Mapping[str, bytes]) -> bytes:
    """An archive whose checksums are right whatever its members hold."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


# Configurations.

_SETTINGS = sorted({*Config.model_fields, *DataConfig.model_fields, "epochs", "max_lr", "momentum", "views", "log"})
_KEYS = st.sampled_from([*_SETTINGS, "0", "1", "-1", "²", "9" * 5000, ""]) | st.text(max_size=5)
_WORDS = st.sampled_from(
    [
        "&a ",
        "*a",
        "<<: ",
        "!!python/object/apply:os.system ",
        "!!binary ",
        "- ",
        "? ",
        "{",
        "[",
        "|\n",
        "'",
        "2020-02-30",
    ]
)
_YAML = (
    st.tuples(st.just("text"), st.text(max_size=60))
    | st.tuples(st.just("bytes"), st.binary(max_size=40))
    | st.tuples(st.just("words"), st.lists(_WORDS | _KEYS | st.just(": ") | st.just("\n"), max_size=16).map("".join))
    | st.tuples(st.just("tree"), TREE_EDITS)
    | st.tuples(st.just("edits"), EDITS)
)
LAUGHS = "a0: &a0 [0, 0]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
"""Forty lines that stand for a tree of 2^40 leaves."""


def _yaml_file(folder: Path) -> Load:
    whole = load_config(bundled_configs()["quickstart"]).to_yaml()
    tree = yaml.safe_load(whole)

    def load(case: tuple[str, Any]) -> None:
        kind, value = case
        if kind == "tree":
            content = yaml.safe_dump(edited_tree(tree, value)).encode("utf-8", "surrogatepass")
        elif kind == "edits":
            content = edited(whole.encode(), value)
        else:
            content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        path = folder / "any.yaml"
        path.write_bytes(content)
        config = load_config(path)
        assert load_config(config) == config

    return load


_VALUES = st.text(max_size=12) | _TREES.map(lambda t: yaml.safe_dump(t, default_flow_style=True)) | _WORDS
_GOOD = st.sampled_from(
    [
        "seed=3",
        "data.size=32",
        "stages.0.epochs=5",
        "stages.1.max_lr=[1e-5, 1e-3]",
        "tta=null",
        "tta.views=4",
        "lr_find.steps=50",
    ]
)
_ITEM = (
    _GOOD
    | st.text(max_size=16)
    | st.builds("{}={}".format, st.lists(_KEYS, min_size=1, max_size=4).map(".".join), _VALUES)
)


def _assignments(folder: Path) -> Load:
    def load(items: list[str]) -> None:
        config = load_config(None, parse_assignments(items))
        assert load_config(config) == config

    return load


# Sources and tables.

_PATHS = st.text(max_size=12) | st.sampled_from(
    ["", ".", "photos", "photos/", "photos/cat", "photos/cat/1.png", "t.csv", "t.tsv", "~", "~nobody", "a\0b", "\udcff"]
)
_SOURCES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["folder:", "csv:", "tfds:", "digits", "Folder:", "folder", "tfd:", "http://", "", ":"]),
    _PATHS,
    st.sampled_from(["", "", ":", "/", ":1.0.0", "/x:1.*.*", " "]),
)


def _photos(folder: Path) -> None:
    """Two images in each of two classes, and a table of them."""
    for number in range(4):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    rows = [f"photos/{('cat', 'dog')[n % 2]}/{n}.png,{('cat', 'dog')[n % 2]}\n" for n in range(4)]
    (folder / "t.csv").write_text("path,label\n" + "".join(rows))


def _outside(source: str, folder: Path) -> bool:
    """Whether a source means a folder elsewhere on this machine, whose photos nobody asked to read."""
    with suppress(OSError, RuntimeError, ValueError):
        path = Path(source.partition(":")[2]).expanduser().resolve()
        return path.exists() and not path.is_relative_to(folder.resolve())
    return False


def _source(folder: Path) -> Load:
    from kbaseline.data.image_data import load_source
    from kbaseline.data.sources.tfds import tfds

    _photos(folder)

    def no_network(name: str, *_: Any) -> None:
        raise DownloadError(f"tfds:{name}: not fetched while fuzzing.")

    def load(source: str) -> None:
        here, home, fetch = Path.cwd(), os.environ.get("HOME", ""), tfds._download_and_prepare
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
        tfds._download_and_prepare = no_network
        try:
            if not _outside(source, folder):
                load_source(DataConfig(source=source, size=8, data_dir=folder / "tfds", cache_dir=folder / "cache"), 0)
        finally:
            os.chdir(here)
            os.environ["HOME"] = home
            tfds._download_and_prepare = fetch

    return load


_CELLS = st.text(max_size=8) | st.sampled_from(
    ["path", "label", "split", "train", "valid", "p/1.png", "a", "²", "9" * 5000, "٣", "-0", '"', "x" * 140_000, "\0"]
)
_GOOD_ROW = st.builds(
    lambda *cells: list(cells),
    st.sampled_from(["a", "p/1.png", "p\\2.png"]),
    _CELLS,
    st.sampled_from(["train", "Valid", "test", "x"]),
)
_ROWS = st.lists(_GOOD_ROW, min_size=1, max_size=6) | st.lists(st.lists(_CELLS, max_size=4) | _GOOD_ROW, max_size=6)
_COLUMN = (
    st.none()
    | st.none()
    | st.none()
    | st.sampled_from(["path", "label", "split", "none"])
    | st.text(min_size=1, max_size=5)
)
_TABLES = st.tuples(
    st.tuples(st.sampled_from([",", ";", "\t"]), st.sampled_from(["path,label\n", "path,label,split\n", ""]), _ROWS)
    | EDITS
    | st.binary(max_size=60),
    st.tuples(_COLUMN, _COLUMN, _COLUMN),
    st.sampled_from(["skip", "error"]),
)


def _table(folder: Path) -> Load:
    (folder / "p").mkdir()
    for name in ("a", "p/1.png", "p/2.png"):
        (folder / name).touch()
    whole = b'\xef\xbb\xbfpath,label,split\r\np/1.png,"cat",train\r\np/2.png,dog,valid\r\na,cat,test\r\n'

    def load(case: Any) -> None:
        content, columns, strictness = case
        if isinstance(content, tuple):
            delimiter, header, rows = content
            content = (header.replace(",", delimiter) + "\n".join(map(delimiter.join, rows))).encode()
        elif isinstance(content, list):
            content = edited(whole, content)
        path = folder / "any.csv"
        path.write_bytes(content)
        names = dict(zip(("image_column", "label_column", "split_column"), columns, strict=True))
        with open_csv(str(path), DataConfig(**names, on_bad_image=strictness)) as listing:
            assert sum(map(len, listing.labels.values())) == len(listing.pictures.files) > 0

    return load


# Images.

_FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "progressive": (
        "JPEG",
        "RGB",
        {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    ),
    "cmyk": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGB", {}),
    "palette": ("PNG", "P", {"transparency": 3}),
    "grey 16": ("PNG", "I;16", {}),
    "animated png": ("PNG", "RGBA", {"frames": 3}),
    "webp": ("WEBP", "RGB", {}),
    "animated webp": ("WEBP", "RGBA", {"frames": 3, "lossless": True}),
    "gif": ("GIF", "P", {}),
    "animated gif": ("GIF", "P", {"frames": 3}),
    "bmp": ("BMP", "RGB", {}),
    "bmp 1": ("BMP", "1", {}),
    "tiff": ("TIFF", "RGB", {}),
    "float tiff": ("TIFF", "F", {}),
    "lzw": ("TIFF", "RGB", {"compression": "tiff_lzw", "frames": 2}),
    "deflate": ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}),
    "jpeg in tiff": ("TIFF", "RGB", {"compression": "jpeg"}),
    "fax": ("TIFF", "1", {"compression": "group4"}),
    "avif": ("AVIF", "RGB", {}),
    "ppm": ("PPM", "RGB", {}),
}


@cache
def image_file(kind: str) -> bytes:
    """A small real image of one of `_FORMATS`."""
    form, mode, options = _FORMATS[kind]
    options = dict(options)
    pixels = np.add.outer(np.arange(20) * 7, np.arange(24) * 3)[..., None] + np.array([0, 40, 80])
    frames = []
    for number in range(options.pop("frames", 1)):
        image = Image.fromarray(((pixels + 20 * number) % 256).astype(np.uint8))
        if mode in ("F", "I;16"):
            image = Image.fromarray(pixels[..., 0].astype(np.float32 if mode == "F" else np.uint16))
        frames.append(image if mode in ("F", "I;16") else image.convert(mode))
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    file = io.BytesIO()
    frames[0].save(file, form, **options, **more)
    return file.getvalue()


def mended_png(content: bytes) -> bytes:
    """A PNG with right checksums in every chunk, so that what is wrong in them is read."""
    start, done = 8, content[:8]
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        body = content[start + 4 : start + 8 + length]
        done += content[start : start + 4] + body + struct.pack(">I", zlib.crc32(body))
        start += 12 + length
    return done


_IMAGES = st.tuples(st.sampled_from(list(_FORMATS)), EDITS, st.booleans()) | st.binary(max_size=64)


def _image(folder: Path) -> Load:
    def load(case: Any) -> None:
        content = case
        if isinstance(case, tuple):
            kind, edits, mend = case
            content = edited(image_file(kind), edits)
            content = mended_png(content) if mend and "png" in kind else content
        # Real limits would only cost time here; bombs have tests of their own.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 500_000
        try:
            with quiet():
                with suppress(BadImageError):
                    probe(io.BytesIO(content))
                image = decode(io.BytesIO(content), 8, 8, ("crop", "squish")[len(content) % 2])
        finally:
            Image.MAX_IMAGE_PIXELS = before
        assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)

    return load


# Run folders, models and checkpoints.


def finished_folder(path: Path) -> Path:
    """The files of a finished run that are read again, its model left out."""
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    folder.write_text("config.yaml", "data: {source: digits}\nstages: [{name: head, freeze: true, epochs: 1}]\n")
    epoch = {"stage": "head", "epoch": 1, "accuracy": 0.5, "images_per_s": 9.0, "seconds": 2.5, "valid_loss": 1.0}
    result = {
        "accuracy": 0.5,
        "stages": {"head": 0.5},
        "tta_accuracy": 0.5,
        "test_accuracy": {"plain": 0.5, "tta": 0.5},
        "suggested_lrs": {"head": {"valley": 1e-3}},
        "seconds": {"head": 2.5, "valid tta": 1.0, "test tta": 1.0},
        "seed": 42,
        "data": {"source": "digits", "images": {"train": 8, "valid": 4, "test": 4}, "skipped": []},
        "history": [epoch],
        "environment": {"kbaseline": "1.0"},
    }
    folder.write_json("result.json", result)
    probabilities = np.full((4, 2), 0.5, np.float32)
    arrays = {
        f"{split}_{kind}_probabilities": probabilities for split in ("valid", "test") for kind in ("plain", "tta")
    }
    labels = np.array([0, 1, 0, 1])
    folder.write_npz(
        "predictions.npz", class_names=np.array(["a", "b"]), valid_labels=labels, test_labels=labels, **arrays
    )
    folder.write_csv("history.csv", [epoch])
    return path


_ARRAYS = st.one_of(
    st.sampled_from(["valid_labels", "class_names", "valid_plain_probabilities", "test_tta_probabilities"]).flatmap(
        lambda name: st.tuples(st.just(name), EDITS)
    )
)
_FOLDERS = (
    st.tuples(st.just("result.json"), TREE_EDITS)
    | st.tuples(st.sampled_from(["result.json", "config.yaml", "predictions.npz", "history.csv"]), EDITS)
    | st.tuples(st.just("member"), _ARRAYS)
    | st.tuples(
        st.just("array"),
        st.tuples(
            st.sampled_from(["valid_labels", "test_labels", "class_names", "valid_plain_probabilities"]),
            st.sampled_from(["nan", "shorter", "flat", "negative", "text", "none", "empty", "object", "more"]),
        ),
    )
)


def _spoilt(array: np.ndarray, how: str) -> np.ndarray:
    if how in ("nan", "negative"):
        return np.full(array.shape, np.nan if how == "nan" else -1)
    made = {"shorter": array[1:], "flat": array.reshape(-1, 1), "text": array.astype(str), "none": np.array(None)}
    made |= {"empty": array[:0], "object": array.astype(object), "more": np.concatenate([array, array])}
    return made[how]


def _run_folder(folder: Path) -> Load:
    from kbaseline.commands.compare import comparison, print_comparison
    from kbaseline.commands.evaluate import evaluate_kept
    from kbaseline.commands.evaluate_view import print_evaluation
    from kbaseline.runs.record import read_run

    whole = {path.name: path.read_bytes() for path in finished_folder(folder).iterdir()}
    with zipfile.ZipFile(folder / "predictions.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with np.load(folder / "predictions.npz") as kept:
        arrays = dict(kept)
    silent = Console(file=io.StringIO(), width=80)

    def load(case: tuple[str, Any]) -> None:
        name, edits = case
        for file, content in whole.items():
            (folder / file).write_bytes(content)
        if name == "member":
            changed = {**members, f"{edits[0]}.npy": edited(members[f"{edits[0]}.npy"], edits[1])}
            (folder / "predictions.npz").write_bytes(zipped(changed))
        elif name == "array":
            np.savez(folder / "predictions.npz", **{**arrays, edits[0]: _spoilt(arrays[edits[0]], edits[1])})
        elif isinstance(edits, dict) or (name == "result.json" and (not edits or len(edits[0]) == 3)):
            tree = json.loads(whole[name])
            tree = {**tree, **edits} if isinstance(edits, dict) else edited_tree(tree, edits)
            (folder / name).write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
        else:
            (folder / name).write_bytes(edited(whole[name], edits))
        run = read_run(folder)
        print_evaluation(evaluate_kept(run), silent)
        found = comparison([run, run])
        print_comparison(found, silent)
        json.dumps(found, allow_nan=False)

    return load


@cache
def model_members() -> dict[str, bytes]:
    """The members of a `.keras` file with a convolution, a BatchNorm and a Dense layer."""
    import tempfile

    import keras

    image = keras.Input((None, None, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3)(image))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.keras")
        with zipfile.ZipFile(Path(folder) / "m.keras") as archive:
            return {name: archive.read(name) for name in archive.namelist()}


_MODELS = (
    st.tuples(st.just("config.json"), TREE_EDITS)
    | st.tuples(st.sampled_from(["config.json", "metadata.json", "model.weights.h5"]), EDITS)
    | st.tuples(st.just(""), EDITS)
    | st.tuples(
        st.sampled_from(["without config.json", "without metadata.json", "without model.weights.h5"]), st.none()
    )
)


def _model(folder: Path) -> Load:
    from kbaseline.models.backbones import read_model

    members = model_members()
    whole, tree = zipped(members), json.loads(members["config.json"])
    path = folder / "model.keras"

    def load(case: tuple[str, Any]) -> None:
        name, edits = case
        if not name:
            path.write_bytes(edited(whole, edits))
        elif edits is None:
            path.write_bytes(zipped({key: value for key, value in members.items() if not name.endswith(key)}))
        elif name == "config.json" and (not edits or len(edits[0]) == 3):
            path.write_bytes(zipped({**members, name: json.dumps(edited_tree(tree, edits)).encode()}))
        else:
            path.write_bytes(zipped({**members, name: edited(members[name], edits)}))
        read_model(path, "model")

    return load


_CHECKPOINTS = (
    st.tuples(st.just("record"), TREE_EDITS, st.booleans())
    | st.tuples(st.sampled_from(["000001.npz", "000001.json"]), EDITS, st.booleans())
    | st.tuples(st.sampled_from(["record.npy", "0.npy", "1.npy"]), EDITS, st.booleans())
)


def _checkpoint(folder: Path) -> Load:
    from kbaseline.lr_finder import LRCurve
    from kbaseline.training import session

    config, task = load_config(None), "fingerprint"

    class Data:
        def fingerprint(self, *, contents: bool = True) -> str:
            return task

    class Reached(Exception):
        pass

    # It asks every package for its version, which takes longer than all the rest.
    facts = session.environment()
    run, lines = RunFolder(folder), []
    keeper = session.Session(run, config, lambda *_: None, resumed=False)
    keeper.begin(Data(), {"data": 1.0})
    curve = LRCurve(np.array([1e-3, 1e-2]), np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    keeper.curve("head", lambda: curve)
    epoch = {"stage": "head", "epoch": 1, "accuracy": 0.5}
    keeper.save((0, 1, 0), [np.zeros(3, np.float32), np.ones((), np.int64)], [epoch], 1.0)
    keeper.close()
    place = folder / "checkpoints"
    whole = {name: (place / name).read_bytes() for name in ("000001.npz", "000001.json")}
    with zipfile.ZipFile(place / "000001.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    record = json.loads(np.load(place / "000001.npz")["record"].tobytes())

    def load(case: tuple[str, Any, bool]) -> None:
        name, edits, mend = case
        changed = dict(whole)
        if name == "record":
            tree = {**record, "record": {**record["record"], **edits}} if isinstance(edits, dict) else None
            text = json.dumps(tree or edited_tree(record, edits)).encode()
            file = io.BytesIO()
            np.save(file, np.frombuffer(text, np.uint8))
            changed["000001.npz"] = zipped({**members, "record.npy": file.getvalue()})
        elif name in whole:
            changed[name] = edited(whole[name], edits)
        else:
            changed["000001.npz"] = zipped({**members, name: edited(members[name], edits)})
        if mend:
            digest = hashlib.sha256(changed["000001.npz"]).hexdigest()
            changed["000001.json"] = json.dumps({"sha256": digest}).encode()
        for file_name, content in changed.items():
            (place / file_name).write_bytes(content)
        lines.clear()
        asked, session.environment = session.environment, lambda: facts
        begun = session.Session(run, config, lambda line, *_: lines.append(line), resumed=True)
        try:
            begun.begin(Data(), {})
            assert all(len(line.splitlines()) == 1 for line in lines)
            if begun.start is not None:
                with suppress(Reached):
                    begun.curve("head", lambda: (_ for _ in ()).throw(Reached))
        finally:
            begun.close()
            session.environment = asked

    return load


_LONG = "9" * 5000
_TOKENS = [
    ("insert", 24407, 31, b"'\xe9\xcc)q\x80\xda\x01"),
    ("delete", 65535, 177, b""),
    ("insert", 985, 135, b"\xc3\xfe\xd9"),
]
_UNEVEN = {"lrs": [0.1, 0.2], "losses": [1.0], "smoothed": [[1.0], 2.0], "planned": 2}

SURFACES = (
    Surface("YAML file", _YAML, _yaml_file, known=(("text", LAUGHS), ("text", f"model: {{dropout: '{_LONG}'}}"))),
    Surface(
        "--set",
        st.lists(_ITEM, max_size=3),
        _assignments,
        known=(["stages.²=1"], [f"stages.{_LONG}.epochs=1"], [f"{_LONG}=1"]),
    ),
    Surface("source string", _SOURCES, _source, KBaselineError, known=("Folder:g\x1e8@",)),
    Surface(
        "CSV table",
        _TABLES,
        _table,
        known=(((",", "path,label\n", [["a", _LONG], ["p/1.png", "1"]]), (None, None, None), "skip"),),
    ),
    Surface("image", _IMAGES, _image, BadImageError),
    Surface(
        "run folder",
        _FOLDERS,
        _run_folder,
        known=(
            ("result.json", {"stages": [0.5]}),
            ("result.json", {"stages": {"other": 0.5}}),
            ("result.json", {"seconds": {"head": 10**400}}),
            ("result.json", {"history": [{"epoch": 1}]}),
            ("result.json", {"data": {"source": "digits", "images": {"valid": 4}, "skipped": []}}),
            ("member", ("valid_labels", [("repeat", 790, 179, b""), ("flip", 779, 59, b"")])),
            ("member", ("valid_labels", [("repeat", 67, 58, b""), ("flip", 6373, 3, b"")])),
            ("member", ("class_names", [("number", 133, 13, b"")])),
            ("predictions.npz", [("cut", 100, 0, b"")]),
            ("array", ("valid_labels", "object")),
        ),
    ),
    Surface(
        "model.keras",
        _MODELS,
        _model,
        known=(("model.weights.h5", [("insert", 176, 185, b"l\xbc\xe1")]), ("", [("cut", 50, 0, b"")])),
    ),
    Surface(
        "checkpoint",
        _CHECKPOINTS,
        _checkpoint,
        known=(
            ("record.npy", [("flip", 4, 0, b"")], True),
            ("1.npy", _TOKENS, True),
            ("record", {"seconds": [1.0]}, True),
            ("record", {"environment": [[None]]}, True),
            ("record", {"sweeps": {"head": [1]}}, True),
            ("record", {"sweeps": {"head": _UNEVEN}}, True),
            ("000001.npz", [("cut", 100, 0, b"")], True),
        ),
    ),
)


def property_of(surface: Surface, folder: Path, counts: Counter[str]) -> Any:
    """The Hypothesis test of a surface, which counts what became of its cases.

    Args:
        surface: what is tried.
        folder: an empty one to work in.
        counts: grows, under `taken` and `refused`.
    """
    load = surface.prepare(folder)

    def tried(case: Any) -> None:
        counts["taken" if taken(surface, load, case) else "refused"] += 1

    return given(surface.cases)(tried)


def drawn(surface: Surface, folder: Path, cases: int) -> Counter[str]:
    """What became of so many cases, the same ones every time, and of those in which it failed once."""
    counts: Counter[str] = Counter()
    test = property_of(surface, folder, counts)
    for case in surface.known:
        test = example(case)(test)
    settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )(test)()
    return counts
