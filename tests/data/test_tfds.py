"""TFDS sets are fetched, prepared and read without TensorFlow; what goes wrong is said in one line."""

import functools
import http.client
import http.server
import inspect
import io
import socket
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from rich.console import Console
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import gcs_utils, lazy_imports_utils, tqdm_utils
from tensorflow_datasets.image_classification import cifar as upstream

from kbaseline.config.schema import DataConfig
from kbaseline.console import bars as progress
from kbaseline.data import decode
from kbaseline.data.image_data import load_source
from kbaseline.data.prepare import load_labelled
from kbaseline.data.sources.tfds import downloads as network
from kbaseline.data.sources.tfds.cifar import cifar_builder
from kbaseline.data.sources.tfds.records import TFRecords
from kbaseline.errors import DataError, DownloadError, RunError

COARSE, FINE = [f"coarse{number}" for number in range(20)], [f"fine{number}" for number in range(100)]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    """Builders made by a test are forgotten after it."""
    from tensorflow_datasets.core import registered

    monkeypatch.setattr(registered, "_DATASET_REGISTRY", dict(registered._DATASET_REGISTRY))


def load(source, **options):
    return load_source(DataConfig(source=source, **{"size": 32, **options}), 42)


def rows(count, label_bytes, seed):
    """Rows of the upstream binary format: labels, then the red, green and blue planes."""
    made = np.random.default_rng(seed).integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    made[:, :label_bytes] = (np.arange(count) % 10)[:, None]
    return made


def archive(path, folder, files):
    """A made-up upstream archive."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def cifar10_files():
    files = {f"data_batch_{number}.bin": rows(20, 1, number).tobytes() for number in range(1, 6)}
    return {**files, "test_batch.bin": rows(30, 1, 6).tobytes(), "batches.meta.txt": "\n".join(TEN).encode() + b"\n\n"}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Says nothing."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Lets TFDS's CIFAR builders fetch made-up archives from this machine; gives the folder they lie in."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _redirect(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def _redirect(monkeypatch, address):
    for builder in (upstream.Cifar10, upstream.Cifar100):
        genuine = builder._cifar_info.fget

        def moved(self, genuine=genuine):
            info = genuine(self)
            return info._replace(url=f"{address}/{info.url.rpartition('/')[2]}")

        monkeypatch.setattr(builder, "_cifar_info", property(moved))


def finished(data_dir):
    """Everything below TFDS's folder but empty folders."""
    return sorted(path.relative_to(data_dir).as_posix() for path in data_dir.rglob("*") if path.is_file())


def test_cifar10_is_fetched_and_prepared_without_tensorflow(served, tmp_path):
    """Download, checks, preparation and reading by TFDS itself: every pixel, label, name and split arrives."""
    files = cifar10_files()
    archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    data = load("tfds:cifar10")
    assert "tensorflow" not in sys.modules
    assert data.class_names == tuple(TEN)
    assert (len(data.train), len(data.valid), data.test) == (100, 30, None)
    train = np.concatenate([rows(20, 1, number) for number in range(1, 6)])
    for split, expected in ((data.train, train), (data.valid, rows(30, 1, 6))):
        wanted = {row[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): row[0] for row in expected}
        assert {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)} == wanted
    assert (tmp_path / "data" / "cifar10" / "3.0.2" / "dataset_info.json").is_file()


def test_a_prepared_set_is_neither_fetched_nor_decoded_again(served, monkeypatch):
    """The second load works without the server and opens the memory map."""
    path = archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_files())
    first = load("tfds:cifar10")
    path.unlink()
    monkeypatch.setattr(decode, "decode", None)
    second = load("tfds:cifar10:3.0.2")
    assert isinstance(second.train.images, np.memmap)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.train.labels, second.train.labels)


def test_data_dir_goes_before_the_environment(served, tmp_path):
    """`data.data_dir` is where the set is put and looked for; `TFDS_DATA_DIR` stays empty."""
    archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_files())
    load("tfds:cifar10", data_dir=tmp_path / "mine", limit=20)
    assert (tmp_path / "mine" / "cifar10").is_dir()
    assert not (tmp_path / "data").exists()


def test_cifar100_has_the_fine_labels(served):
    """Of the two labels the fine one counts, with its hundred names."""
    files = {"train.bin": rows(40, 2, 1), "test.bin": rows(20, 2, 2)}
    for content in files.values():
        content[:, 1] = np.arange(len(content)) % 4 + 90
    files = {name: content.tobytes() for name, content in files.items()}
    files |= {"coarse_label_names.txt": "\n".join(COARSE).encode(), "fine_label_names.txt": "\n".join(FINE).encode()}
    archive(served / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    data = load("tfds:cifar100")
    assert data.class_names == tuple(FINE)
    assert np.unique(data.train.labels).tolist() == [90, 91, 92, 93]
    assert (len(data.train), len(data.valid)) == (40, 20)


def test_the_prepared_set_is_the_very_same():
    """Name, version, checksum and description are TFDS's own, so other programs read what is prepared."""
    mine, theirs = cifar_builder("cifar10", None), tfds.builder("cifar10")
    assert mine.info.full_name == theirs.info.full_name == "cifar10/3.0.2"
    assert mine.url_infos == theirs.url_infos
    assert mine.info.module_name == theirs.info.module_name
    assert tfds.builder_cls("cifar10") is upstream.Cifar10


@pytest.mark.parametrize("kind", ["short", "missing", "no archive"])
def test_a_spoilt_archive_leaves_nothing(served, tmp_path, kind):
    """An archive that is cut, incomplete or a web page is named; no half dataset is left to be found later."""
    files = cifar10_files()
    if kind == "short":
        files["data_batch_3.bin"] = files["data_batch_3.bin"][:-1]
    elif kind == "missing":
        del files["test_batch.bin"]
    path = archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    if kind == "no archive":
        path.write_bytes(b"<html>Sorry</html>")
    with pytest.raises(
        DownloadError, match=r"archive '.*': (cannot be unpacked|'cifar-10-batches-bin/.*' is missing or incomplete)"
    ):
        load("tfds:cifar10")
    assert not [name for name in finished(tmp_path / "data") if name.startswith("cifar10/")]
    assert not list((tmp_path / "data" / "cifar10").iterdir())


def test_the_upstream_checksum_counts(tmp_path, monkeypatch):
    """A file that is not the published one is refused and removed."""

    class Response:
        url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        headers = http.client.HTTPMessage()

    class Opened:
        def __enter__(self):
            return Response, [b"wrong"]

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(downloader, "_open_url", lambda *_, **__: Opened())
    monkeypatch.setattr("kbaseline.data.sources.tfds.downloads.Downloads._reach", lambda *_: None)
    with pytest.raises(DownloadError, match="wrong checksum"):
        load("tfds:cifar10")
    assert not [name for name in finished(tmp_path / "data") if name.startswith("cifar10/")]


def test_no_network(tmp_path, monkeypatch, capfd):
    """One line says what could not be downloaded, why, and what works without a network; nothing is left."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        _redirect(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(DownloadError) as caught:
            load("tfds:cifar10")
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    for part in (
        "could not download http://127.0.0.1:",
        "Connection refused",
        "kbaseline fit --config quickstart",
        "data.data_dir=",
        "folder:PATH",
    ):
        assert part in message
    assert finished(tmp_path / "data") == []
    assert not list((tmp_path / "data").rglob("*tmp*"))
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers(monkeypatch):
    """A network that swallows everything ends the run by itself; TFDS alone would wait for ever."""
    monkeypatch.setattr(network, "ANSWER_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _redirect(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DownloadError, match="timed out"):
            load("tfds:cifar10")


def test_a_download_that_stalls(tmp_path, monkeypatch):
    """A server that falls silent halfway ends the run too, and the half file is removed."""
    monkeypatch.setattr(network, "READ_SECONDS", 0.05)
    monkeypatch.setattr(network.Downloads, "_reach", lambda *_: None)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf"
    with socket.create_server(("127.0.0.1", 0)) as stalling:
        _redirect(monkeypatch, f"http://127.0.0.1:{stalling.getsockname()[1]}")
        kept = []

        def answer():
            connection, _ = stalling.accept()
            kept.append(connection)
            connection.recv(4096)
            connection.sendall(head)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DownloadError, match="timed out"):
            load("tfds:cifar10")
        thread.join()
        kept[0].close()
    assert finished(tmp_path / "data") == []


def test_a_missing_file_on_the_server(served):
    """A server that answers 404 is reported as such."""
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz.*404"):
        load("tfds:cifar10")


def private():
    """Everything in TFDS that `tfds/internals.py` switches or replaces."""
    fetch = downloader._Downloader._sync_download
    banner = vars(lazy_imports_utils.tensorflow)["error_callback"]
    return downloader._open_url, fetch, downloader.MAX_RETRIES, tqdm_utils._active, banner


@pytest.mark.parametrize("bars", [True, False])
def test_tfds_gets_everything_back(served, monkeypatch, bars):
    """Invariant: after a load, failed or not, TFDS's functions and switches are what they were."""
    monkeypatch.setattr(tqdm_utils, "_active", bars)
    before, verbosity = private(), logging.get_verbosity()
    with pytest.raises(DownloadError):
        load("tfds:cifar10")
    archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_files())
    load("tfds:cifar10")
    assert (private(), logging.get_verbosity()) == (before, verbosity)


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("what", "holds"),
    [
        ("downloader._open_url takes a URL and options", lambda: parameters(downloader._open_url) == ["url", "kwargs"]),
        (
            "_Downloader._sync_download takes URL, folder and verify",
            lambda: (
                parameters(downloader._Downloader._sync_download) == ["self", "url", "destination_path", "verify"]
                and "_open_url(" in inspect.getsource(downloader._Downloader._sync_download)
            ),
        ),
        (
            "downloader.MAX_RETRIES is the number of retries",
            lambda: "total=MAX_RETRIES" in inspect.getsource(downloader._open_with_requests),
        ),
        ("tqdm_utils._active says whether bars are shown", lambda: tqdm_utils._active in (True, False)),
        (
            "lazy_imports_utils.tensorflow.error_callback prints the banner",
            lambda: callable(vars(lazy_imports_utils.tensorflow)["error_callback"]),
        ),
        (
            "DatasetBuilder prints in _log_download_bytes and _log_download_done alone",
            lambda: (
                parameters(tfds.core.DatasetBuilder._log_download_bytes) == ["self"]
                and parameters(tfds.core.DatasetBuilder._log_download_done) == ["self"]
            ),
        ),
        ("Google's bucket, asked without a timeout, is left alone", lambda: gcs_utils._is_gcs_disabled),
    ],
)
def test_what_we_use_of_tfds_without_its_promise(what, holds):
    """The assumptions of `tfds/internals.py`, each checked against TFDS 4.9.10; a new release may break them."""
    try:
        true = holds()
    except (AttributeError, KeyError, TypeError) as error:
        true = error
    assert true is True, f"TFDS {tfds.__version__} differs from 4.9.10: no longer true that {what} ({true!r})"


def test_progress_of_download_and_preparation(served, monkeypatch):
    """A long download and a long preparation each show a bar."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_files())
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    load_source(DataConfig(source="tfds:cifar10", size=32), 0, console)
    for label in ("Preparing cifar10/3.0.2", "Downloading", "Preparing train", "Reading labels", "Decoding"):
        assert label in console.file.getvalue()


def made_up(name, features, examples, **members):
    """A registered builder called `name` whose examples are given by split."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def split_generators(self, _):
        return {split: self._generate_examples(values) for split, values in examples.items()}

    def generate(self, values):
        yield from enumerate(values() if callable(values) else values)

    functions = {"_info": info, "_split_generators": split_generators, "_generate_examples": generate, **members}
    return type(name, (tfds.core.GeneratorBasedBuilder,), {"VERSION": tfds.core.Version("1.0.0"), **functions})


def picture(value, size=(8, 8)):
    return Image.new("L", size, value)


GREY = {"image": tfds.features.Image(shape=(None, None, 1)), "label": tfds.features.ClassLabel(names=["a", "b"])}


def test_any_other_set_of_any_sizes():
    """A set of grey images of several sizes with its own validation split and a secret test."""
    examples = {
        "train": [{"image": picture(number, (9 + number, 20)), "label": number % 2} for number in range(10)],
        "validation": [{"image": picture(100 + number), "label": number % 2} for number in range(4)],
        "test": [{"image": picture(200), "label": -1} for _ in range(3)],
    }
    made_up("SomeGreys", GREY, examples)
    data = load("tfds:some_greys", size=16)
    assert (len(data.train), len(data.valid), data.test) == (10, 4, None)
    assert data.train.images.shape == (10, 16, 16, 3)
    assert data.class_names == ("a", "b")
    for split in data.splits.values():
        np.testing.assert_array_equal(split.images[:, 8, 8, 0] % 2, split.labels)
    assert "tensorflow" not in sys.modules


def test_a_damaged_file_is_named_and_forgotten_once_it_is_whole(tmp_path):
    """Invariant: a file cut short, missing or overwritten is one line with a remedy; put right, the set loads."""
    values = [{"image": Image.effect_noise((64, 64), 80), "label": number % 2} for number in range(60)]
    made_up("HalfCopied", GREY, {"train": values})
    assert len(load("tfds:half_copied").train) == 48
    (file,) = (tmp_path / "data").rglob("*train.array_record*")
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"no record", None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(RunError, match=r"tfds:half_copied train.*cannot be read \(.*prepare it again\.") as caught:
            load("tfds:half_copied")
        assert "\n" not in str(caught.value)
    file.write_bytes(content)
    assert len(load("tfds:half_copied").train) == 48


def test_a_split_of_a_set_is_scored_alone(monkeypatch):
    """As a set to score on, a split keeps all its images, and only they are decoded; classes go by name."""
    examples = {
        "train": [{"image": picture(number), "label": number % 2} for number in range(10)],
        "test": [{"image": picture(100 + number), "label": number % 2} for number in range(4)],
    }
    made_up("ScoredGreys", GREY, examples)
    opened, genuine = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args: (opened.append(1), genuine(*args))[1])
    found = load_labelled(DataConfig(source="tfds:scored_greys", size=8, limit=2), ["b", "a"])
    shades = found.images[:, 4, 4, 0]
    assert (found.split, sorted(shades.tolist()), len(opened)) == ("test", [100, 101, 102, 103], 4)
    np.testing.assert_array_equal(found.labels, 1 - shades % 2)


def test_a_bad_image_is_named_by_its_number():
    """An example without a readable image is left out and named."""
    values = [{"image": picture(number), "label": number % 2} for number in range(10)]
    values[3]["image"] = b"no image"
    made_up("OneBad", GREY, {"train": values, "test": values[:3]})
    data = load("tfds:one_bad")
    assert len(data.train) == 9
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("tfds:one_bad train #")


def test_a_builder_that_needs_tensorflow(tmp_path, capfd):
    """The message names the extra; nothing is printed beside it and nothing half-prepared stays."""
    if "tensorflow" in sys.modules or __import__("importlib.util").util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed here")
    arrays = [{"image": np.zeros((8, 8, 1), np.uint8), "label": number % 2} for number in range(4)]
    made_up("OnlyArrays", GREY, {"train": arrays})
    with pytest.raises(DataError, match=r"needs the module tensorflow .* `pip install 'kbaseline\[tensorflow\]'`"):
        load("tfds:only_arrays")
    assert finished(tmp_path / "data") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", r"has no such dataset; .* Did you mean 'cifar10'\?"),
        ("cifar10:9.9.9", "cannot be loaded at version 9.9.9, only: 3.0.2"),
        ("cifar10/foo", "BuilderConfig foo not found"),
        ("", "Parsing builder name"),
        ("huggingface:mnist", "community datasets are not supported"),
        ("imdb_reviews", r"must have one image and one class label per example; it has text \(Text\)"),
        ("some_failure", r"could not prepare it in '.*' \(Boom\)"),
        ("no_train", "must have a split called train; it has test"),
        ("unlabelled", "every image must have a label; train has 1 without one"),
    ],
)
def test_sets_that_cannot_be_used(name, message):
    """Each reason is one line, before anything is downloaded where it can be known."""

    def fails():
        raise RuntimeError("Boom\nand much more")

    made_up("SomeFailure", GREY, {"train": fails})
    made_up("NoTrain", GREY, {"test": [{"image": picture(1), "label": 0}]})
    made_up("Unlabelled", GREY, {"train": [{"image": picture(1), "label": label} for label in (0, 1, -1)]})
    with pytest.raises((DataError, RunError), match=message) as caught:
        load(f"tfds:{name}")
    assert "\n" not in str(caught.value)


def test_limit_of_a_set_decodes_only_the_subset(served, monkeypatch):
    """Labels choose; only chosen images are decoded."""
    archive(served / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar10_files())
    opened, genuine = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args: (opened.append(1), genuine(*args))[1])
    data = load("tfds:cifar10", limit=20, limit_valid=10)
    assert len(opened) == 30
    assert np.bincount(data.train.labels).tolist() == [2] * 10


def test_tfrecord_files_are_read_without_tensorflow(tmp_path):
    """Golden bytes: what older TFDS runs left as TFRecord is found record by record, skip and take included."""
    contents = [b"one", b"", b"three" * 1000]
    framed = [len(content).to_bytes(8, "little") + b"crc4" + content + b"crc4" for content in contents]
    (tmp_path / "a").write_bytes(b"".join(framed))
    (tmp_path / "b").write_bytes(b"".join(framed[:2]))
    records = TFRecords([(str(tmp_path / "a"), 0, 3), (str(tmp_path / "b"), 1, 1)])
    assert [records[number] for number in range(len(records))] == [*contents, b""]
    for cut in (10, 5020):
        (tmp_path / "a").write_bytes(b"".join(framed)[:cut])
        with pytest.raises((ValueError, struct.error)):
            TFRecords([(str(tmp_path / "a"), 0, 3)])
