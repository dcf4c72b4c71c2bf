import csv
import gc
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from lit_guide.data import TableData
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos.decode import decode

FIT = ["fit", "--config", "configs/table.yaml", "--accelerator", "cpu", "--run_dir", "run", "--trainer.max_epochs", "1"]
TINY = ["--model.network", "cnn", "--data.image_size", "32", "--data.num_workers", "0"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(path.as_posix().encode()))
    Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(text) writes photos.csv, and gives the data over it."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="photos.csv", **kwargs):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return TableData(str(path), image_size=8, num_workers=0, **kwargs)

    return write


def rows_of(data):
    """(path, class name) of every row of the listing."""
    listing = data.listing
    return [(path, listing.class_names[label]) for path, label in zip(listing.paths, listing.labels_N, strict=True)]


PLAIN = [("img/1.png", "cat"), ("img/2.png", "dog"), ("3.png", "cat")]


# --- CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_what_spreadsheets_write_is_read(table, delimiter, line_end, start):
    lines = [delimiter.join(cells) for cells in [("path", "label"), *PLAIN]]
    assert rows_of(table(start + line_end.join(lines) + line_end)) == PLAIN


def test_quoted_cells_may_hold_delimiters_quotes_and_line_breaks(table):
    data = table('"path","label","note"\n"a, b.png","the ""best"" cat","two\nlines"\n" c.png ",dog,\n')
    assert rows_of(data) == [("a, b.png", 'the "best" cat'), ("c.png", "dog")]


def test_paths_may_hold_what_parts_the_cells_elsewhere(table):
    assert rows_of(table("path;label\na,b.png;cat\nc\td.png;dog\n")) == [("a,b.png", "cat"), ("c\td.png", "dog")]


def test_text_of_every_language_is_read(table):
    assert rows_of(table("path,label\n写真/é.png,猫\nb.png,Hündin\n")) == [("写真/é.png", "猫"), ("b.png", "Hündin")]


def test_empty_lines_and_the_missing_end_of_the_last_one_do_not_matter(table):
    assert rows_of(table("path,label\n\nimg/1.png,cat\n,\n  \nimg/2.png,dog\n\n3.png,cat")) == PLAIN


def test_further_columns_are_not_read_even_without_or_with_equal_headings(table):
    data = table("id,,label,width,,path,width\n7,,cat,640,,a.png,427\n8,,dog,640,,b.png,427\n")
    assert rows_of(data) == [("a.png", "cat"), ("b.png", "dog")]


def test_columns_may_have_other_names(table):
    names = {"path_column": "file name", "label_column": "species", "split_column": "fold"}
    data = table("species,fold,file name,path\ncat,train,a.png,x\ndog,train,b.png,x\ncat,test,c.png,x\n", **names)
    assert rows_of(data) == [("a.png", "cat"), ("b.png", "dog"), ("c.png", "cat")]
    assert data.listing.rows["test"].tolist() == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.png\nb.png,dog\n", r"photos\.csv, line 2: 1 cells under 2 headings"),
        ('path,label\n"a\n.png",cat\nb.png,dog,x\n', r"photos\.csv, line 4: 3 cells under 2 headings"),
        (
            "path,label\na.png,\nb.png,dog\nc.png, \n",
            r"label is empty or NaN in 2 of 3 rows, counted from 1 below .*: 1, 3",
        ),
        ("path,label\na.png,cat\n,dog\n", r"path is empty in 1 of 2 rows, counted from 1 below the heading: 2\."),
        ("path,label,split\na.png,cat,train\nb.png,dog,\n", r"split is empty or NaN in 1 of 2 rows"),
        ("path,label\n", r"photos\.csv has a heading but no rows"),
        ("path,label,path\na,b,c\n", r"photos\.csv has more than one column 'path'"),
        ('path,label\n"a.png,cat\n', r"is no CSV file in UTF-8"),
        ("path,label\nä.png,cat\n".encode("latin-1"), r"is no CSV file in UTF-8: .*can't decode byte 0xe4"),
        ("path,label\na.png,cat\n".encode("utf-16"), r"is no CSV file in UTF-8"),
    ],
)
def test_a_faulty_table_is_an_error_that_says_where(table, text, words):
    with pytest.raises(UserError, match=words) as caught:
        table(text).listing  # noqa: B018
    assert caught.value.exit_code == 1


def test_many_empty_cells_are_listed_in_part(table):
    with pytest.raises(UserError, match=r"in 30 of 30 rows, .*: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.\.$"):
        table("path,label\n" + "a.png,\n" * 30).listing  # noqa: B018


@pytest.mark.parametrize(
    ("text", "kwargs", "words"),
    [
        ("file,label\na,b\n", {}, r"has no column 'path'; it has file, label\. .* --data\.path_column NAME"),
        ("path,class\na,b\n", {}, r"has no column 'label'; it has path, class\. .* --data\.label_column NAME"),
        ("path,label\na,b\n", {"split_column": "fold"}, r"has no column 'fold'; .* --data\.split_column NAME"),
        ("", {}, r"has no column 'path'; it has none at all"),
    ],
)
def test_a_column_that_is_not_there_is_an_error_of_the_configuration(table, text, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        table(text, **kwargs).listing  # noqa: B018


def test_a_table_that_is_not_there_is_an_error_of_the_configuration(run):
    outcome = run(*FIT, "--data.table", "gone.csv")
    assert outcome.code == 2
    assert outcome.err.endswith(": There is no file gone.csv. Give your table with --data.table FILE.\n")
    assert not Path("run").exists()


# --- labels


def test_classes_are_in_the_order_of_their_names(table):
    assert table("path,label\n1,zebra\n2,Ape\n3,ape\n4,zebra\n").listing.class_names == ["Ape", "ape", "zebra"]


def test_numbers_as_labels_are_in_the_order_of_their_values(table):
    listing = table("path,label\na,10\nb,2\nc,0\nd,10\n").listing
    assert listing.class_names == ["0", "2", "10"]
    assert listing.labels_N.tolist() == [2, 1, 0, 2]
    assert listing.labels_N.dtype == np.int64


def test_numbers_among_words_are_words(table):
    assert table("path,label\na,10\nb,2\nc,none\n").listing.class_names == ["10", "2", "none"]


# --- splits


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "VALIDATION", "Testing")])
def test_a_split_column_says_where_each_row_goes(table, train, val, test):
    text = f"path,label,split\na,x,{train}\nb,y,{test}\nc,y,{train}\nd,x,{val}\ne,x,{test}\n"
    rows = table(text).listing.rows
    assert {name: indices.tolist() for name, indices in rows.items()} == {"train": [0, 2], "val": [3], "test": [1, 4]}


def test_a_split_that_no_row_names_is_cut_from_train(table, tmp_path):
    names = [f"{index:02d}.png" for index in range(50)]
    for name in names:
        write_image(tmp_path / name)
    lines = [f"{name},{'xy'[index % 2]},{'test' if index < 10 else 'train'}" for index, name in enumerate(names)]
    data = table("path,label,split\n" + "\n".join(lines), val_fraction=0.25)
    assert data.rows["test"].tolist() == list(range(10))
    assert data.class_counts("val") == [5, 5]
    assert sorted([*data.rows["train"].tolist(), *data.rows["val"].tolist()]) == list(range(10, 50))


def test_null_as_the_split_column_divides_the_rows_here(table):
    assert table("path,label,split\na,x,A\nb,y,B\n", split_column=None).listing.rows is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label,split\na,x,train\nb,x,holdout\nc,x,extra\n",
            "names splits that there are not; use train, val, test:\n  extra\n",
        ),
        ("path,label,split\na,x,val\nb,x,test\n", "has no row for train"),
    ],
)
def test_a_split_column_that_does_not_fit_is_an_error(table, text, words):
    with pytest.raises(UserError, match=words):
        table(text).listing  # noqa: B018


def test_f16_a_class_that_train_lacks_is_an_error_in_a_table_too(table):
    with pytest.raises(UserError, match=r"The test split of .* has 1 classes that train lacks:\n  emu"):
        table("path,label,split\na,x,train\nb,emu,test\nc,x,test\n").listing  # noqa: B018


# --- where the images are


def test_paths_are_relative_to_the_table_or_to_the_root_or_absolute(table, tmp_path):
    for name in ("1.png", "other/1.png", "third/2.png"):
        write_image(tmp_path / name)
    text = f"path,label\n1.png,cat\n{tmp_path / 'third/2.png'},dog\n"
    for kwargs, first in ({}, "1.png"), ({"root": str(tmp_path / "other")}, "other/1.png"):
        data = table(text, val_fraction=0, test_fraction=0, **kwargs)
        assert torch.equal(data.source.dataset[0][0], decode(tmp_path / first))
        assert torch.equal(data.source.dataset[1][0], decode(tmp_path / "third/2.png"))
        assert data.sample_names("train") == [str(tmp_path / first), str(tmp_path / "third/2.png")]


def test_a_tilde_is_the_home_folder_of_table_and_root(table, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    write_image(tmp_path / "deep/1.png")
    table("path,label\n1.png,cat\n1.png,dog\n")
    data = TableData("~/photos.csv", root="~/deep", image_size=8, val_fraction=0, test_fraction=0)
    assert torch.equal(data.source.dataset[0][0], decode(tmp_path / "deep/1.png"))


def test_f13_files_that_are_not_there_are_listed(table, tmp_path):
    write_image(tmp_path / "there.png")
    with pytest.raises(
        UserError, match=r"2 of 3 files can't be used:\n.*gone\.png: no such file or directory\n.*also\.png: no such"
    ):
        table("path,label\nthere.png,cat\ngone.png,cat\nalso.png,dog\n").source  # noqa: B018


def test_f16_a_row_that_is_there_twice_is_one_image_in_two_splits(table, tmp_path, capsys):
    for name in ("1.png", "2.png", "3.png"):
        write_image(tmp_path / name)
    table("path,label,split\n1.png,a,train\n2.png,b,train\n1.png,a,test\n3.png,b,test\n", val_fraction=0).source  # noqa: B018
    warned = capsys.readouterr().err
    assert "1 images are in more than one split, so scores on them mean nothing:\n  1.png = 1.png\n" in warned
    assert "more than one class" not in warned


def test_f16_a_file_with_two_labels_is_a_warning_that_names_it(table, tmp_path, capsys):
    for index in range(10):
        write_image(tmp_path / f"{index}.png")
    lines = [f"{index}.png,{'ab'[index % 2]}" for index in range(10)]
    data = table("path,label\n" + "\n".join([*lines, "3.png,a"]), val_fraction=0)
    assert data.source.class_names == data.class_names == ["a", "b"]
    warned = capsys.readouterr().err
    assert "1 images are in more than one class:\n  3.png = 3.png\n" in warned
    assert "more than one split" not in warned


def test_f16_a_table_of_one_class_is_an_error(table, tmp_path):
    for index in range(10):
        write_image(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match="The data have 1 class: a classifier needs at least two"):
        table("path,label\n" + "\n".join(f"{index}.png,cat" for index in range(10))).source  # noqa: B018


# --- Parquet


def write_parquet(file, **columns):
    parquet.write_table(pa.table(columns), file)
    return TableData(str(file), image_size=8)


def test_parquet_is_read_as_csv_is(tmp_path):
    paths, labels = zip(*PLAIN, strict=True)
    data = write_parquet(tmp_path / "photos.parquet", width=[1, 2, 3], label=labels, path=paths, split=["train", "train", "test"])
    assert rows_of(data) == PLAIN
    assert data.listing.root == tmp_path
    assert data.listing.rows["test"].tolist() == [2]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (pa.array([10, 2, 10]), ["2", "10"], [1, 0, 1]),
        (pa.array([True, False, True]), ["false", "true"], [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1]),
        (pa.array([b"b", b"a", b"b"]), ["a", "b"], [1, 0, 1]),
    ],
)
def test_labels_of_every_plain_type_become_classes(tmp_path, labels, names, numbers):
    listing = write_parquet(tmp_path / "photos.pq", path=["a", "b", "c"], label=labels).listing
    assert listing.class_names == names
    assert listing.labels_N.tolist() == numbers


MISSING = {
    "text": (pa.array(["x", None, "y", ""]), [2, 4]),
    "words": (pa.array(["x", "nan", "y", "<NA>"]), [2, 4]),
    "float64": (pa.array([0.0, float("nan"), 1.0, None]), [2, 4]),
    "float16": (pa.array(np.array([0, np.nan, 1, 2], np.float16)), [2]),
    "integers": (pa.array([0, None, 1, 2]), [2]),
    "booleans": (pa.array([True, False, None, None]), [3, 4]),
    "categories": (pa.array(["x", None, "y", "x"]).dictionary_encode(), [2]),
    "categories of floats": (pa.array([0.0, float("nan"), 1.0, 2.0]).dictionary_encode(), [2]),
    "bytes": (pa.array([b"x", b"y", b" ", None]), [3, 4]),
    "nothing": (pa.nulls(4), [1, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", MISSING)
def test_f50_labels_that_are_missing_in_parquet_are_named_by_row(tmp_path, kind):
    labels, rows = MISSING[kind]
    data = write_parquet(tmp_path / "photos.parquet", path=["a", "b", "c", "d"], label=labels)
    listed = rf"label is empty or NaN in {len(rows)} of 4 rows, counted from 1 below the heading: {', '.join(map(str, rows))}\."
    with pytest.raises(UserError, match=listed):
        data.listing  # noqa: B018


@pytest.mark.parametrize("name", ["photos.csv", "photos.tsv"])
@pytest.mark.parametrize("nothing", ["", " ", '""', "NaN", "nan", "<NA>"])
def test_f50_labels_that_are_missing_in_text_are_named_by_row(table, name, nothing):
    rows = [("path", "label"), ("a", "cat"), ("b", nothing), ("c", "dog"), ("d", nothing)]
    text = "\n".join(("," if name.endswith("csv") else "\t").join(row) for row in rows)
    with pytest.raises(UserError, match=r"label is empty or NaN in 2 of 4 rows, counted from 1 below the heading: 2, 4\."):
        table(text, name).listing  # noqa: B018


@pytest.mark.parametrize("word", ["None", "NULL", "NA", "n/a", "nano", "naan"])
def test_f50_other_words_are_classes(table, word):
    assert table(f"path,label\na,scratch\nb,dent\nc,{word}\n").listing.class_names == sorted(["scratch", "dent", word])


def test_f50_a_missing_split_is_named_by_row(tmp_path):
    columns = {"path": ["a", "b", "c"], "label": ["x", "y", "x"], "split": pa.array(["train", None, "test"])}
    with pytest.raises(UserError, match=r"split is empty or NaN in 1 of 3 rows, .*: 2\."):
        write_parquet(tmp_path / "photos.parquet", **columns).listing  # noqa: B018


def test_f50_fit_ends_before_training_with_the_rows(run, tmp_path):
    for at in range(4):
        write_image(tmp_path / f"{at}.png")
    labels = pa.array([0.0, 1.0, float("nan"), None])
    write_parquet(tmp_path / "photos.parquet", path=[f"{at}.png" for at in range(4)], label=labels)
    outcome = run(*FIT, *TINY, "--data.table", "photos.parquet")
    assert outcome.code == 1
    assert "label is empty or NaN in 2 of 4 rows, counted from 1 below the heading: 3, 4." in outcome.err


def test_images_inside_a_parquet_file_are_not_read(tmp_path):
    images = [{"bytes": b"\xff\xd8", "path": "a"}] * 2
    data = write_parquet(tmp_path / "photos.parquet", path=["a", "b"], label=["x", "y"], image=images)
    assert rows_of(data) == [("a", "x"), ("b", "y")]
    with pytest.raises(UserError, match=r"photos\.parquet can't be read as Parquet: Unsupported cast from struct"):
        TableData(str(tmp_path / "photos.parquet"), path_column="image").listing  # noqa: B018


def test_faulty_parquet_is_an_error(tmp_path):
    (tmp_path / "text.parquet").write_text("path,label\n")
    with pytest.raises(UserError, match=r"text\.parquet can't be read as Parquet: "):
        TableData(str(tmp_path / "text.parquet")).listing  # noqa: B018
    data = write_parquet(tmp_path / "null.parquet", path=["a", None], label=["x", "y"])
    with pytest.raises(UserError, match=r"null\.parquet: path is empty in 1 of 2 rows, .*: 2\."):
        data.listing  # noqa: B018
    data = write_parquet(tmp_path / "other.parquet", name=["a"], label=["x"])
    with pytest.raises(ConfigError, match=r"has no column 'path'; it has name, label"):
        data.listing  # noqa: B018


# --- the command


def test_fit_trains_from_a_table_with_its_splits_and_finds_it_from_elsewhere(run, tmp_path, monkeypatch):
    lines = []
    for index in range(24):
        write_image(tmp_path / "files" / f"{index}.png")
        lines.append(
            {"path": f"{index}.png", "label": 7 + index % 2 * 5, "split": ["train", "train", "val", "test"][index % 8 // 2]}
        )
    with Path("photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(lines)
    outcome = run(*FIT, *TINY, *NO_EXPORT, "--data.table", "photos.csv", "--data.root", "files")
    assert outcome.code == 0, outcome.err
    results = json.loads(Path("run/results.json").read_text())
    for split in ("val", "test"):
        assert np.sum(results[split]["confusion_matrix"], axis=1).tolist() == [3, 3]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    outcome = run("predict", "--run", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    with (tmp_path / "run/predictions.csv").open(newline="") as file:
        found = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    expected = [(str(tmp_path / "files" / line["path"]), str(line["label"])) for line in lines if line["split"] == "test"]
    assert found == expected


# --- size


@pytest.mark.slow
def test_the_index_of_a_million_rows_takes_at_most_120_bytes_a_row(tmp_path):
    N = 1_000_000
    with (tmp_path / "photos.csv").open("w") as file:
        file.write("path,label,split\n")
        file.writelines(
            f"class{n % 1000:04d}/photo_{n:08d}.jpg,class{n % 1000:04d},{'test' if n // 1000 % 5 == 0 else 'train'}\n"
            for n in range(N)
        )
    data = TableData(str(tmp_path / "photos.csv"))
    gc.collect()
    tracemalloc.start()
    listing = data.listing
    rows = data.divide()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, rows.values())) == len(listing.paths) == N
    assert listing.paths[765_432] == "class0432/photo_00765432.jpg"
    assert listing.class_names[listing.labels_N[765_432]] == "class0432"
    assert held / N <= 120
