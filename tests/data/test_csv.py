"""A CSV file of images: how its columns are found, what a row may lack, and that no label is ever a guess."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kbaseline.config.schema import DataConfig
from kbaseline.data.image_data import load_source
from kbaseline.data.prepare import load_labelled
from kbaseline.data.sources.csv import open_csv
from kbaseline.data.sources.csv_table import read_table
from kbaseline.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KBASELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Twenty images `p/0.png` ... whose grey value is ten times their number."""
    (tmp_path / "p").mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (10 * number,) * 3).save(tmp_path / "p" / f"{number}.png")
    return tmp_path


def table(folder, text, encoding="utf-8"):
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def rows(label=lambda i: "cat" if i % 2 else "dog", sep=",", numbers=range(20)):
    return "".join(f"p/{i}.png{sep}{label(i)}\n" for i in numbers)


def load(path, **options):
    return load_source(DataConfig(source=f"csv:{path}", **{"size": 8, **options}), 42)


def labelled(data):
    """Number of the image -> name of its class, over all splits."""
    return {
        int(image[0, 0, 0]) // 10: data.class_names[label]
        for split in data.splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    }


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["image{}label", "Class{}File Name", "target{}filepath"])
def test_delimiters_marks_and_headers(photos, sep, encoding, header):
    """Golden: comma, semicolon or tab, with or without a byte-order mark, columns in any order: the same images."""
    text = rows(sep=sep)
    if not header.startswith("image"):
        text = "".join(sep.join(reversed(line.split(sep))) + "\n" for line in text.splitlines())
    data = load(table(photos, header.format(sep) + "\n" + text, encoding))
    assert labelled(data) == {i: "cat" if i % 2 else "dog" for i in range(20)}
    assert (len(data.train), len(data.valid), data.skipped) == (16, 4, ())


def test_quotes_blank_lines_and_windows(photos):
    """Golden: quoted commas, blank lines, Windows' line ends and backslashes, and an empty last column are read."""
    (photos / "p" / "0.png").rename(photos / "p" / "a, b.png")
    text = 'path,label\r\n\r\n"p/a, b.png",dog\r\n' + rows(numbers=range(1, 20)).replace("\n", ",\r\n").replace(
        "/", "\\"
    )
    assert len(labelled(load(table(photos, text)))) == 20


def test_split_column(photos):
    """Golden: train, any name of validation, and test, in any spelling, go where they say."""
    said = ["train", "Train", "valid", "VAL", "validation", "test"]
    text = "path,label,split\n" + "".join(f"p/{i}.png,{'ab'[i // 6 % 2]},{said[i % 6]}\n" for i in range(18))
    data = load(table(photos, text))
    found = {name: sorted(image[0, 0, 0] // 10 for image in split.images) for name, split in data.splits.items()}
    assert found == {"train": [0, 1, 6, 7, 12, 13], "valid": [2, 3, 4, 8, 9, 10, 14, 15, 16], "test": [5, 11, 17]}
    assert labelled(data) == {i: "ab"[i // 6 % 2] for i in range(18)}


def test_whole_numbers_are_sorted_by_value(photos):
    """Golden: labels 2, 10 and -1 are classes `-1`, `2`, `10`; with one word among them they are sorted as texts."""

    def label(i):
        return (2, 10, -1)[i % 3]

    data = load(table(photos, "path,label\n" + rows(label)))
    assert data.class_names == ("-1", "2", "10")
    assert labelled(data) == {i: str(label(i)) for i in range(20)}
    (photos / "x.png").write_bytes((photos / "p" / "0.png").read_bytes())
    (photos / "y.png").write_bytes((photos / "p" / "0.png").read_bytes())
    named = load(table(photos, "path,label\n" + rows(label) + "x.png,other\ny.png,other"))
    assert named.class_names == ("-1", "10", "2", "other")


def test_equal_texts_are_one_class(photos):
    """Golden: blanks around a label and two ways to compose the same letters make no second class."""

    def label(i):
        return ("caf\u00e9", " cafe\u0301 ", "bar")[i % 3]

    assert load(table(photos, "path,label\n" + rows(label))).class_names == ("bar", "caf\u00e9")


def test_columns_by_name(photos):
    """Golden: columns that cannot be told by their names are set; `none` ignores a column of folds."""
    text = "id,breed,class,fold\n" + "".join(f"p/{i}.png,{i % 2},x,{i % 5}\n" for i in range(20))
    data = load(table(photos, text), image_column="id", label_column="breed", split_column="none")
    assert labelled(data) == {i: str(i % 2) for i in range(20)}


BAD = {
    "p/0.png,cat": "'p/0.png' stands on line 2 already",
    "nope.png,cat": "'nope.png': no such file",
    "p,cat": "'p': is a folder",
    ",cat": "has no image",
    "p/19.png, ": "has no label",
    "p/19.png,cat,extra": "has 3 values for 2 columns",
    "p/19.png": "has 1 values for 2 columns",
    "x" * 5000 + ",cat": "File name too long",
    "\0,cat": "null",
}


@pytest.mark.parametrize("row", BAD, ids=list(BAD.values()))
def test_bad_rows_are_named_and_left_out_or_refused(photos, row):
    """Golden: each row that cannot be used is one line with its number and reason, or ends the run if so configured."""
    good = "path,label\n" + rows(lambda i: "cat" if i < 10 else "dog", numbers=range(19))
    path = table(photos, good + row + "\n")
    data = load(path)
    assert labelled(data) == {i: "cat" if i < 10 else "dog" for i in range(19)}
    (line,) = data.skipped
    assert line.startswith("table.csv line 21: ")
    assert BAD[row] in line
    assert len(line) < 400
    with pytest.raises(DataError, match=r"table\.csv' line 21: .*on_bad_image") as caught:
        load(path, on_bad_image="error")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("./p/../p/0.png,dog,train", "is 'cat' here and 'dog' on line 22"),
        ("ROOT/p/0.png,dog,train", "is 'cat' here and 'dog' on line 22"),
        ("p/0.png,cat,test", "is in train here and"),
    ],
)
def test_of_rows_that_differ_none_counts(photos, row, said):
    """Invariant: an image with two labels, or in two splits, is in no split at all; both lines are named."""
    good = "".join(f"p/{i}.png,{'cat' if i < 10 else 'dog'},{'valid' if i % 5 == 1 else 'train'}\n" for i in range(20))
    data = load(table(photos, f"path,label,split\n{good}{row.replace('ROOT', str(photos))}\n"))
    assert labelled(data) == {i: "cat" if i < 10 else "dog" for i in range(1, 20)}
    assert [line.split(":")[0] for line in data.skipped] == ["table.csv line 2", "table.csv line 22"]
    assert said in data.skipped[0]


def test_unreadable_images_are_skipped_beside_bad_rows(photos):
    """Golden: rows come first among what was left out, then images that cannot be read."""
    (photos / "p" / "3.png").write_bytes(b"")
    data = load(table(photos, "path,label\n" + rows() + "gone.png,cat\n"))
    assert data.skipped == ("table.csv line 22: 'gone.png': no such file", "p/3.png: the file is empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line must name the columns"),
        ("\n \n", "is empty"),
        ("path,label\n", "has no rows"),
        ("p/0.png,cat\np/1.png,dog\n", r"must name a column for the image \(image, path, .*it has 'p/0.png', 'cat'"),
        ("path,breed\np/0.png,cat\n", "a column for the label .*it has 'path', 'breed'.*data.label_column"),
        ("path,image,label\n", "several columns may hold the image: 'path', 'image'; set data.image_column"),
        ("path,label,label\n", "several columns may hold the label: 'label', 'label'"),
        ("path,label,fold\np/0.png,a,0\np/1.png,b,1\n", "'fold' must hold train, valid and test; it has '0', '1'"),
        ('path,label\n"p/0.png,cat\np/1.png,dog\n', r"line 3: is no CSV \(unexpected end of data\)"),
        ("path,label\nq/0.png,a\nq/1.png,b\n", r"none of its 2 images is there; .*'.*/q/0\.png'\. Paths count from"),
        ("path,label\np/0.png,\np/1.png\n", r"line 2: has no label; correct it. \(2 rows cannot be used\)"),
        ("path,label\np/0.png,a\np/1.png,a\n", "training needs at least two classes; got 'a'"),
        ("path,label,split\np/0.png,a,test\n", "no row is for train, only for test"),
        ("path,label,split\np/0.png,a,train\np/1.png,b,train\np/2.png,c,test\n", "valid is empty; give each class two"),
    ],
)
def test_tables_that_break_a_rule(photos, text, message):
    """Golden: each mistake is one line that names the file, what stands there and what to do."""
    with pytest.raises(DataError, match=message) as caught:
        load(table(photos, text))
    assert "\n" not in str(caught.value)
    assert "table.csv" in str(caught.value)


def test_files_that_are_no_table(photos):
    """Golden: another encoding, a missing file, a folder and an unknown column are named with the remedy."""
    with pytest.raises(DataError, match=r"is not UTF-8 .*save it as CSV UTF-8"):
        load(table(photos, "path,label\n" + rows(lambda i: "é"), "latin-1"))
    with pytest.raises(DataError, match=r"no such file; .*Did you mean '.*/table\.csv'\?"):
        load(photos / "tabel.csv")
    with pytest.raises(DataError, match="is a folder, not a file; write folder:"):
        load(photos)
    with pytest.raises(DataError, match="names no file"):
        load("")
    with pytest.raises(DataError, match=r"has no column 'pth' .*Did you mean 'path'\?"):
        load(table(photos, "path,label\n" + rows()), image_column="pth")


def test_a_table_is_scored_on_whole_or_by_split(photos):
    """Golden: `evaluate` takes a table that holds nothing to train on, and matches classes by name."""
    path = table(photos, "path,label,split\np/1.png,cat,test\np/0.png,dog,test\np/2.png,dog,valid\n")
    config = DataConfig(source=f"csv:{path}", size=8)
    test, everything = (load_labelled(config, ("dog", "cat", "emu"), split) for split in (None, "all"))
    assert (test.split, test.labels.tolist()) == ("test", [1, 0])
    assert everything.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("header", "values", "expected"),
    [
        ("split", ("Training", "Testing"), {"train": 15, "valid": 5}),
        ("split", ("train", "dev"), {"train": 15, "valid": 5}),
        ("split", ("train_set", "Holdout "), {"train": 15, "valid": 5}),
        ("Usage", ("Training", "PrivateTest"), {"train": 15, "valid": 5}),
        ("is_valid", ("False", "True"), {"train": 15, "valid": 5}),
        ("is_train", ("1", "0"), {"train": 15, "valid": 5}),
        ("is test", ("no", "yes"), {"train": 15, "valid": 5}),
    ],
)
def test_columns_of_splits_as_people_write_them(photos, header, values, expected):
    """Golden: a column that may say the split is named, and does so once it is named in `data.split_column`."""
    lines = [f"p/{i}.png,{'ab'[i % 2]},{values[i // 5 == 2]}" for i in range(20)]
    path = table(photos, "\n".join([f"path,label,{header}", *lines]))
    data = load(path, split_column=header)
    assert {name: len(split) for name, split in data.splits.items()} == expected
    assert sorted(image[0, 0, 0] // 10 for image in data.valid.images) == [10, 11, 12, 13, 14]
    assert data.skipped == ()
    if header != "split":
        data = load(path)
        assert data.skipped == (
            f"column {header!r}: may say the split and is not used; data.split_column={header} uses it",
        )
        assert load(path, split_column="none").skipped == ()


def test_other_columns_are_no_splits(photos):
    """Golden: numbers, words and one split alone say nothing; a name that does is told of, without advice."""
    lines = [f"p/{i}.png,{'ab'[i % 2]},{i},train,{i % 2},red" for i in range(20)]
    path = table(photos, "\n".join(["path,label,size,album,usage,colour", *lines]))
    assert load(path).skipped == ("column 'usage': may say the split and is not used",)


@pytest.mark.parametrize(
    "spelt",
    ["p/{i}", "P/{i}.PNG", "p\\{i}", "./p/{i}.Png", "p/../P/{i}"],
)
def test_paths_that_can_mean_one_file(photos, spelt):
    """Golden: without a suffix, in another case, with backslashes: the one file that can be meant."""
    (photos / "p" / "3.txt").write_text("not an image")
    lines = [f"{spelt.format(i=i)},{'cat' if i % 2 else 'dog'}" for i in range(20)]
    assert labelled(load(table(photos, "\n".join(["path,label", *lines])))) == {
        i: "cat" if i % 2 else "dog" for i in range(20)
    }


def test_letters_composed_otherwise_in_paths(photos):
    """Golden: a table in NFC finds files and folders in NFD, and the other way round."""
    apart = photos / "cafe\u0301"
    (photos / "p").rename(apart)
    for i in range(20):
        (apart / f"{i}.png").rename(apart / f"\u00e9{i}.png")
    lines = [f"caf\u00e9/e\u0301{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(20)]
    assert len(labelled(load(table(photos, "\n".join(["path,label", *lines]))))) == 20


def test_a_path_that_can_mean_two_files_is_named(photos):
    """Golden: nobody knows which is meant; and a row that means the file of another row repeats it."""
    (photos / "p" / "3.jpg").write_bytes((photos / "p" / "3.png").read_bytes())
    text = "path,label\n" + rows(numbers=[0, 1, 2, 4, 5, 6]) + "p/3,cat\np/4,dog\np/nope,cat\n"
    assert load(table(photos, text)).skipped == (
        "table.csv line 8: 'p/3': several files may be meant: '3.jpg', '3.png'",
        "table.csv line 9: 'p/4.png' stands on line 5 already",
        "table.csv line 10: 'p/nope': no such file",
    )


def test_rows_of_files_that_are_not_read_say_why(photos):
    """Golden: the reasons are those of folders; a strange suffix does not matter."""
    (photos / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "b.txt").write_text("no image")
    (photos / "gone.png").symlink_to("/nowhere")
    (photos / "p" / "3.png").rename(photos / "p" / "3.png?w=1")
    lines = "a.heic,cat\nb.txt,cat\ngone.png,dog\n"
    data = load(table(photos, "path,label\n" + rows().replace("3.png", "3.png?w=1", 1) + lines))
    assert len(labelled(data)) == 20
    assert [line.split(": ", 1)[1] for line in data.skipped] == [
        "'a.heic': HEIC is not read; convert it to JPEG",
        "'b.txt': is no image",
        "'gone.png': is a broken link",
    ]


def test_labels_that_differ_only_in_case_are_named(photos):
    """Golden: as folders do, they stay apart, with a word."""
    data = load(table(photos, "path,label\n" + rows(lambda i: ("cat", "Cat")[i % 2])))
    assert data.skipped[0].startswith("classes 'Cat', 'cat': differ only in case")


CELL = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["path", "label", "split", "train", "p/1.png"]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=5).map("\n".join) | st.binary(max_size=60))
def test_any_file_is_read_or_is_a_data_error(tmp_path_factory, text):
    """Property: whatever the file holds, it is a listing with a label for every image or a one-line DataError."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.with_name("a").touch()
    path.write_bytes(text if isinstance(text, bytes) else ("path,label\n" + text).encode())
    said, listing = "", None
    try:
        with open_csv(str(path), DataConfig()) as listing:
            pass
    except DataError as error:
        said = str(error)
    assert not re.search(r"[\r\n\0]", said)
    assert said or sum(map(len, listing.labels.values())) == len(listing.pictures.files)


def test_no_row_is_lost(tmp_path):
    """Invariant: every row that is not blank is either read or named with a reason."""
    lines = [f"{i}.png,{'' if i % 7 == 0 else i % 3}{',x' * (i % 11 == 0)}" for i in range(200)]
    path = table(tmp_path, "path,label\n" + "\n\n".join(lines))
    found = read_table(path, "csv", DataConfig())
    assert sorted([row.line for row in found.rows] + list(found.bad)) == [2 * i + 2 for i in range(200)]
    assert np.array_equal([int(row.label) for row in found.rows], [int(row.image[:-4]) % 3 for row in found.rows])
