"""Photos in class folders: layouts, subsets, the decoded copy, bad files."""

import io
import os
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kbaseline.config.schema import DataConfig
from kbaseline.console import bars as progress
from kbaseline.data import cache, decode
from kbaseline.data.image_data import load_source
from kbaseline.data.pictures import pixel_digest
from kbaseline.data.prepare import load_labelled
from kbaseline.errors import DataError, RunError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))


def photo(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def flat(root, count=10, classes=("cat", "dog"), **options):
    for label, name in enumerate(classes):
        for number in range(count):
            photo(root / name / f"{number:03}.png", 100 * label + number, **options)
    return root


def load(root, console=None, **options):
    return load_source(DataConfig(source=f"folder:{root}", **{"size": 8, **options}), 42, console)


def greys(split):
    """The one grey value of each image made by `photo`."""
    return split.images[:, 0, 0, 0].tolist()


def test_one_folder_of_classes_is_split(tmp_path):
    """A stratified fifth validates; every image stands in one split with its own label."""
    data = load(flat(tmp_path / "photos"))
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.valid), data.test) == (16, 4, None)
    for split in data.splits.values():
        assert [value >= 100 for value in greys(split)] == split.labels.astype(bool).tolist()
    assert sorted(greys(data.train) + greys(data.valid)) == [*range(10), *range(100, 110)]
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32


def test_same_seed_same_split(tmp_path):
    """The split depends on the seed alone."""
    root = flat(tmp_path / "photos")
    config = DataConfig(source=f"folder:{root}", size=8)
    one, two, other = (greys(load_source(config, seed).valid) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Valid"])
def test_split_folders(tmp_path, valid):
    """`train/`, a validation folder of any usual name and `test/` become the three splits."""
    for number, split in enumerate(("train", valid, "test")):
        for label, name in enumerate(("b", "a")):
            photo(tmp_path / "photos" / split / name / "x.png", 10 * number + label)
    data = load(tmp_path / "photos")
    assert data.class_names == ("a", "b")
    assert [greys(split) for split in (data.train, data.valid, data.test)] == [[1, 0], [11, 10], [21, 20]]


def test_test_folder_validates_where_there_is_no_valid(tmp_path):
    """As in the article, `test/` serves as validation; `valid_fraction` keeps it apart instead."""
    flat(tmp_path / "photos" / "train")
    flat(tmp_path / "photos" / "test", count=3)
    data = load(tmp_path / "photos")
    assert (len(data.train), len(data.valid), data.test) == (20, 6, None)
    data = load(tmp_path / "photos", valid_fraction=0.5)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 10, 6)


def test_a_class_may_be_called_train(tmp_path):
    """`bus`, `car`, `train` full of photos are three classes, not a split."""
    data = load(flat(tmp_path / "photos", classes=("bus", "car", "train")))
    assert data.class_names == ("bus", "car", "train")


def test_which_files_count(tmp_path):
    """Nested images and any spelling of a suffix count; hidden files, other files and pipes do not."""
    root = flat(tmp_path / "photos", count=1)
    photo(root / "cat" / "deep" / "er" / "b.JPeG", 50)
    photo(root / "cat" / ".hidden.png", 51)
    photo(root / "cat" / ".trash" / "c.png", 52)
    photo(root / ".git" / "d.png", 53)
    (root / "cat" / "notes.txt").write_text("not an image")
    os.mkfifo(root / "cat" / "pipe.png")
    photo(root / "cat" / "c.webp", 54)
    photo(root / "stray.png", 55)
    data = load(root, valid_fraction=0.5)
    values = sorted(greys(data.train) + greys(data.valid))
    assert len(values) == 4
    np.testing.assert_allclose(values, [0, 50, 54, 100], atol=2)


def test_a_loop_of_links_ends(tmp_path):
    """A link back to a parent is walked once; a link to a folder elsewhere is followed."""
    root = flat(tmp_path / "photos", count=2)
    (root / "cat" / "loop").symlink_to(root / "cat")
    photo(tmp_path / "elsewhere" / "z.png", 77)
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    data = load(root)
    assert sorted(greys(data.train) + greys(data.valid)) == [0, 1, 77, 100, 101]
    assert not data.skipped
    (root / "dog" / "up").symlink_to(root)  # else cats would be dogs, too
    data = load(root)
    assert sorted(greys(data.train) + greys(data.valid)) == [0, 1, 77, 100, 101]
    assert data.skipped == ("dog/up: a link to a folder around it is not followed",)


def test_a_link_to_itself_is_a_bad_image(tmp_path):
    """A file that is a link to itself is named and left out; a class folder that is one is no class."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "emu").symlink_to(root / "emu")
    data = load(root)
    assert data.class_names == ("cat", "dog")
    first, second = data.skipped
    assert (first.split(": ")[0], second.split(": ")[0]) == ("cat/self.png", "emu")
    assert "symbolic link" in first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, name) for name in ("фото кошки", "猫", "a" * 240, "with\nline", "esc\x1b[31m")),
        ("e\u0301", "\u00e9"),
        (os.fsdecode(b"caf\xe9"), "caf\ufffd"),
    ],
)
def test_names_of_any_kind(tmp_path, name, text):
    """Any name the file system takes can be a class and an image, as composed text of valid letters; a message about
    it is one printable line."""
    root = flat(tmp_path / "photos", classes=("cat", name))
    (root / name / f"{name}.png").write_bytes(b"")
    data = load(root)
    assert set(data.class_names) == {"cat", text}
    assert len(data.train) + len(data.valid) == 20
    (line,) = data.skipped
    assert line.isprintable()
    assert line.encode()


def test_nothing_is_written_beside_the_photos(tmp_path):
    """A folder that may only be read is enough: after loading, it holds what it held, to the nanosecond."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "bad.jpg").write_bytes(b"")
    state = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    load(root)
    assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == state


def test_a_folder_without_rights_is_named(tmp_path, monkeypatch):
    """A folder that may not be listed is named and left out, or ends the run if so configured; so does the root."""
    root, genuine = flat(tmp_path / "photos", classes=("cat", "dog", "emu")), os.scandir

    def guarded(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return genuine(path)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = "dog"
    data = load(root)
    assert data.class_names == ("cat", "emu")
    assert "dog: cannot be listed (Permission denied); check its rights" in data.skipped
    with pytest.raises(DataError, match=r"'dog': cannot be used \(cannot be listed .*on_bad_image"):
        load(root, on_bad_image="error")
    closed = "photos"
    with pytest.raises(DataError, match=r"folder '.*photos': cannot be listed \(Permission denied\); check its rights"):
        load(root)


def test_common_small_size_keeps_source_pixels(tmp_path):
    """Images of one size up to twice the network's come unresized; the model does the one resample."""
    data = load(flat(tmp_path / "photos", size=(16, 16)))
    assert data.train.images.shape[1:] == (16, 16, 3)
    assert data.size == 8


@pytest.mark.parametrize(("resize", "shape"), [("crop", (12, 12, 3)), ("squish", (12, 16, 3))])
def test_common_small_size_that_is_not_square(tmp_path, resize, shape):
    """Crop takes the centre square's own pixels; squish leaves the change of aspect to the model."""
    data = load(flat(tmp_path / "photos", size=(16, 12)), resize=resize)
    assert data.train.images.shape[1:] == shape


def test_large_or_mixed_sizes_are_resized(tmp_path):
    """Above twice the network's size, or of several sizes, images are resized to its square."""
    assert load(flat(tmp_path / "large", size=(17, 16))).train.images.shape[1:] == (8, 8, 3)
    photo(flat(tmp_path / "mixed") / "cat" / "odd.png", size=(8, 9))
    assert load(tmp_path / "mixed", size=9).train.images.shape[1:] == (9, 9, 3)


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    """The decoded copy is opened as a memory map, bad files included, without touching an image."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "bad.jpg").write_bytes(b"no image")
    first = load(root)

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode", never)
    monkeypatch.setattr(decode, "probe", never)
    second = load(root)
    assert isinstance(second.train.images.stored, np.memmap)
    assert second.skipped == first.skipped
    for name, split in first.splits.items():
        np.testing.assert_array_equal(split.images, second.splits[name].images)
        np.testing.assert_array_equal(split.labels, second.splits[name].labels)


def test_another_split_of_the_same_images_decodes_nothing(tmp_path, monkeypatch):
    """Another seed, another fraction, all as one set: the same copy serves, bad files included."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "bad.jpg").write_bytes(b"no image")
    first = load(root)

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode", never)
    seen = {tuple(greys(first.valid))}
    for seed, fraction in ((1, None), (2, None), (42, 0.4)):
        data = load_source(DataConfig(source=f"folder:{root}", size=8, valid_fraction=fraction), seed)
        assert [value >= 100 for value in greys(data.valid)] == data.valid.labels.astype(bool).tolist()
        assert sorted(greys(data.train) + greys(data.valid)) == [*range(10), *range(100, 110)]
        assert [line.split(":")[0] for line in data.skipped] == ["cat/bad.jpg"]
        for split in data.splits.values():
            digests = [pixel_digest(image.tobytes()) for image in split.images]
            assert split.provenance.digests.tolist() == digests
            names = [int(split.name(row).split("/")[1][:3]) for row in range(len(split))]
            assert names == [value % 100 for value in greys(split)]
        seen.add(tuple(greys(data.valid)))
    assert len(seen) == 4
    whole = load_labelled(DataConfig(source=f"folder:{root}", size=8), ["cat", "dog"])
    assert isinstance(whole.images, np.memmap)
    assert whole.images[:, 0, 0, 0].tolist() == [*range(10), *range(100, 110)]
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1


def test_others_may_read_the_cache(tmp_path):
    """Invariant: decoded photos have the rights that this user gives to new folders, not its own alone."""
    old = os.umask(0o002)
    try:
        load(flat(tmp_path / "photos"))
    finally:
        os.umask(old)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o775, 0o664}


def test_what_a_killed_decode_left_goes_after_a_day(tmp_path):
    """An hour old it may be at work; two days old, nobody writes to it. What has another name is somebody else's."""
    images = tmp_path / "cache" / "images"
    for name, hours in ((f".{'0' * 32}-new", 1), (f".{'0' * 32}-old", 48), (".mine-old", 48)):
        (images / name).mkdir(parents=True)
        (images / name / "images.npy").write_bytes(b"half")
        for path in (images / name / "images.npy", images / name):
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    load(flat(tmp_path / "photos"))
    left = sorted(path.name for path in images.iterdir() if path.name.startswith("."))
    assert left == [f".{'0' * 32}-new", ".mine-old"]


def test_a_changed_file_is_decoded_again(tmp_path):
    """A file of the same name, size and time that holds another image is noticed."""
    root = flat(tmp_path / "photos")
    photo(root / "cat" / "x.bmp", 50)
    before, status = load(root), (root / "cat" / "x.bmp").stat()
    photo(root / "cat" / "x.bmp", 99)
    os.utime(root / "cat" / "x.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    after, now = load(root), (root / "cat" / "x.bmp").stat()
    assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert 99 not in greys(before.train) + greys(before.valid)
    assert 99 in greys(after.train) + greys(after.valid)


def test_only_the_subset_is_decoded(tmp_path, monkeypatch):
    """`limit` chooses by label before anything is decoded."""
    root, opened, genuine = flat(tmp_path / "photos", count=50), [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda file, *rest: (opened.append(file), genuine(file, *rest))[1])
    data = load(root, limit=6, limit_valid=4)
    assert (len(data.train), len(data.valid)) == (6, 4)
    assert len(opened) == 10
    assert np.bincount(data.train.labels).tolist() == [3, 3]


def test_chunks_are_joined_in_order(tmp_path, monkeypatch):
    """However little memory a chunk may take, rows and labels stay together."""
    monkeypatch.setattr(cache, "CHUNK_BYTES", 1)
    root = flat(tmp_path / "photos", count=100)
    (root / "dog" / "050b.png").write_bytes(b"")
    data = load(root)
    assert (len(data.train) + len(data.valid), len(data.skipped)) == (200, 1)
    for split in data.splits.values():
        assert [value >= 100 for value in greys(split)] == split.labels.astype(bool).tolist()


def test_images_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    """Invariant: one thread and seven decode the same images into the same order, and leave the same ones out."""
    root = flat(tmp_path / "photos", count=60)
    (root / "cat" / "017.png").write_bytes(b"no image")
    found = []
    for threads in (1, 7):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=threads: range(n), raising=False)
        data = load(root, cache_dir=tmp_path / f"{threads} threads")
        found.append((greys(data.train), greys(data.valid), data.train.labels.tolist(), data.skipped))
    assert found[0] == found[1]
    assert len(found[0][-1]) == 1


def test_bad_files_are_named_and_left_out(tmp_path):
    """Each unreadable image gives one line with its path and reason; the others stay."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "text.jpg").write_text("I am text")
    (root / "dog" / "link.jpg").symlink_to(root / "nowhere.jpg")
    (root / "dog" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    good = (root / "dog" / "000.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(good[:-30])
    data = load(root)
    assert len(data.train) + len(data.valid) == 20
    lines = sorted(data.skipped)
    names = ["cat/empty.jpg", "dog/cut.png", "dog/link.jpg", "dog/phone.HEIC", "dog/text.jpg"]
    assert [line.split(":")[0] for line in lines] == names
    assert all("\n" not in line and line.split(": ")[1] for line in lines)
    assert "empty" in lines[0]


def test_bad_file_is_an_error_on_request(tmp_path):
    """`on_bad_image: error` names the file, also when the copy was made while skipping."""
    root = flat(tmp_path / "photos")
    (root / "cat" / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/empty\.jpg.*the file is empty"):
        load(root, on_bad_image="error")
    assert list((tmp_path / "cache" / "images").iterdir()) == []
    assert len(load(root).skipped) == 1
    with pytest.raises(DataError, match=r"cat/empty\.jpg.*the file is empty"):
        load(root, on_bad_image="error")


def test_a_class_without_readable_images(tmp_path):
    """A class that would silently vanish from training ends the run and names a file."""
    root = flat(tmp_path / "photos", count=5)
    for number in range(3):
        (root / "emu" / f"{number}.png").parent.mkdir(exist_ok=True)
        (root / "emu" / f"{number}.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"'emu' has no readable image left in train \(emu/\d\.png: "):
        load(root)


def test_no_readable_image_at_all(tmp_path):
    """Nothing readable is an error, and no copy is left behind."""
    root = flat(tmp_path / "photos", count=5)
    for path in root.rglob("*.png"):
        path.write_bytes(b"?")
    with pytest.raises(DataError, match="none of 8 can be read"):
        load(root)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    """What appears in the cache is whole: after Ctrl-C there is nothing."""
    root = flat(tmp_path / "photos")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_the_faster_of_two_processes_wins(tmp_path, monkeypatch):
    """Where another process finished the same copy meanwhile, its files stay and both runs are right."""
    root, genuine, other, inodes = flat(tmp_path / "photos"), cache._make, [], []

    def overtaken(*args):
        if not other:
            other.append(None)
            other[0] = load(root)
            inodes.extend(path.stat().st_ino for path in (tmp_path / "cache" / "images").glob("*/images.npy"))
        return genuine(*args)

    monkeypatch.setattr(cache, "_make", overtaken)
    mine = load(root)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    assert inodes == [(folder / "images.npy").stat().st_ino]
    np.testing.assert_array_equal(mine.train.images, other[0].train.images)


def test_many_at_once_all_end_right(tmp_path):
    """Four threads that prepare the same folder at once get the same images, and one copy is left."""
    root, results = flat(tmp_path / "photos"), []
    threads = [threading.Thread(target=lambda: results.append(load(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len({tuple(greys(data.train)) for data in results}) == 1
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 1


@pytest.mark.parametrize("name", ["bad.json", "images.npy", "digests.npy"])
def test_a_spoilt_copy_is_made_again(tmp_path, name):
    """A cache file that was cut is no reason to fail or to train on half the images."""
    root = flat(tmp_path / "photos")
    before = greys(load(root).train)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert greys(load(root).train) == before
    assert list((tmp_path / "cache" / "images").iterdir()) == [folder]


def test_a_copy_with_too_few_rows_is_made_again(tmp_path):
    """Images and labels of different number would be paired wrongly; such a copy does not count."""
    root = flat(tmp_path / "photos")
    before = greys(load(root).train)
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    np.save(folder / "images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    assert greys(load(root).train) == before


def test_a_cache_that_cannot_be_written(tmp_path):
    """The cache folder and the key that moves it are named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cache '.*file/images': cannot be written .*data\.cache_dir"):
        load(flat(tmp_path / "photos"), cache_dir=tmp_path / "file")


def test_progress_is_shown_only_after_a_while(tmp_path, monkeypatch):
    """A bar with rate and time left appears when decoding takes long, and is gone afterwards."""
    for patience, shown in ((1e9, False), (-1.0, True)):
        monkeypatch.setattr(progress, "PATIENCE_SECONDS", patience)
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        load(flat(tmp_path / f"photos{shown}"), console)
        assert ("Decoding" in console.file.getvalue()) == shown
        assert ("100 %" in console.file.getvalue()) == shown


def broken(kind, root):
    """Makes a folder that breaks one rule."""
    root.mkdir()
    if kind == "no class folders":
        photo(root / "a.png")
    elif kind == "empty classes":
        (root / "emu").mkdir()
        (root / "fox").mkdir()
    elif kind == "telephone":
        (root / "emu").mkdir()
        (root / "emu" / "a.heic").touch()
    elif kind == "one class":
        flat(root, classes=("cat",))
    elif kind == "nested":
        flat(root / "inner")
    elif kind == "empty train":
        (root / "train").mkdir()
        flat(root / "test")
    elif kind == "no train":
        flat(root / "test")
    elif kind == "two valids":
        for name in ("train", "val", "valid"):
            flat(root / name)
    elif kind == "same text":
        for name in (b"caf\xe9", b"caf\xe8"):
            photo(root / os.fsdecode(name) / "a.png")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty; it must hold one folder of images for each class"),
        ("no class folders", r"holds images but no class folders; put .*photos/cat"),
        ("empty classes", "is empty; it must hold one folder of images for each class"),
        (
            "telephone",
            r"none of its images can be used; the first is 'emu/a\.heic': HEIC is not read; convert it to JPEG",
        ),
        ("one class", "at least two class folders; got only 'cat'"),
        ("nested", r"got only 'inner'\. Did you mean folder:.*photos/inner\?"),
        ("empty train", r"photos/train': is empty; it must hold one folder"),
        ("no train", "has 'test' but no 'train'"),
        ("two valids", "'val' and 'valid' both mean valid"),
        ("same text", r"two names of classes are not UTF-8 and read 'caf\ufffd'; rename their folders in UTF-8"),
    ],
)
def test_folders_that_break_a_rule(tmp_path, kind, message):
    """Each mistake is one line that names the folder, the rule and what to do."""
    broken(kind, tmp_path / "photos")
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "photos")
    assert "\n" not in str(caught.value)


def test_missing_folder_and_file(tmp_path):
    """A path that is wrong gets the likely one; a file is no folder."""
    flat(tmp_path / "photos")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"no such folder; .*Did you mean '.*/photos'\?"):
        load(tmp_path / "potos")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load(tmp_path / "a.txt")
    with pytest.raises(DataError, match="names no folder"):
        load_source(DataConfig(source="folder:"), 0)


def test_data_loads_neither_keras_nor_jax(tmp_path):
    """Reading a folder needs no network library: importing Keras would fix the backend."""
    root = flat(tmp_path / "photos")
    script = (
        "import sys; from kbaseline.data.image_data import ImageData; "
        f"ImageData.from_source('folder:{root}', size=8, cache_dir='{tmp_path / 'c'}'); "
        "print([name for name in ('keras', 'jax', 'tensorflow', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
