import os
import shutil
from importlib.resources import as_file, files

import numpy as np
import pytest
from PIL import Image

from lit_guide.engine.photos.dataset import Paths
from lit_guide.engine.photos.examine import examine
from lit_guide.parts.cache import known
from lit_guide.parts.cache.known import examine_once, fingerprint, remember

BAD = {"cat/empty.jpg": "empty file", "dog/zz.jpg": "not an image"}
NAMES = sorted(["cat/1.jpg", "cat/same.jpg", "dog/1.png", *BAD])


@pytest.fixture(name="root")
def album(tmp_path):
    """A folder of good and bad files, NAMES."""
    with as_file(files("sklearn.datasets.images")) as folder:
        photo = Image.fromarray(np.array(Image.open(folder / "china.jpg")))
    root = tmp_path / "album"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    photo.crop((0, 0, 200, 150)).save(root / "cat/1.jpg")
    shutil.copy(root / "cat/1.jpg", root / "cat/same.jpg")
    photo.crop((0, 0, 40, 30)).save(root / "dog/1.png")
    (root / "cat/empty.jpg").touch()
    (root / "dog/zz.jpg").write_bytes(b"no image")
    return root


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def undecoded(monkeypatch):
    """From the call on, decoding a file is an error."""

    def forbid():
        monkeypatch.setattr(known, "examine", lambda *args, **kwargs: pytest.fail("files were decoded again"))

    return forbid


def test_names_and_sizes_that_run_into_each_other_are_told_apart(tmp_path):
    for name, size in (("a", 12), ("a1", 2)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    assert fingerprint(tmp_path, ["a"]) != fingerprint(tmp_path, ["a1"])
    assert fingerprint(tmp_path, ["ab", "c"]) != fingerprint(tmp_path, ["a", "bc"])


def test_what_earlier_versions_remember_is_found_again(tmp_path):
    for number, name in enumerate(("a.jpg", "фото 1.png")):
        (tmp_path / name).write_bytes(bytes(number))
        os.utime(tmp_path / name, ns=(0, 10**18 + 1000 * number))
    names = ["a.jpg", "фото 1.png", os.fsdecode(b"gone \xff.gif")]
    assert fingerprint(tmp_path, Paths(names)) == "485fdede6de21a2413f20517311df69d"


def test_another_version_of_what_is_stored_makes_older_caches_stale(root, monkeypatch):
    before = fingerprint(root, NAMES)
    monkeypatch.setattr(known, "VERSION", known.VERSION + 1)
    assert fingerprint(root, NAMES) != before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"bad": {"x": "y"}, "duplicates": []}', b'{"duplicates": []}'])
def test_f13_a_damaged_record_of_the_check_is_made_anew(root, store, content, undecoded):
    examine_once(root, NAMES, store)
    (record,) = store.glob("*/*/examined.json")
    record.write_bytes(content)
    for _ in range(2):
        examined = examine_once(root, NAMES, store)
        assert {NAMES[index]: reason for index, reason in examined.bad.items()} == BAD
        undecoded()


def test_a_check_that_can_not_be_remembered_is_still_a_check(root, store):
    examine_once(root, NAMES, store)
    (record,) = store.glob("*/*/examined.json")
    record.unlink()
    record.with_suffix(".part").mkdir()  # in the way
    examined = examine_once(root, NAMES, store)
    assert {NAMES[index]: reason for index, reason in examined.bad.items()} == BAD


def test_what_a_check_found_is_not_looked_for_again(root, store, undecoded):
    examined = examine(root, NAMES)
    remember(root, NAMES, store, examined)
    undecoded()
    found = examine_once(root, NAMES, store)
    assert (found.bad, found.duplicates) == (examined.bad, examined.duplicates)


def test_where_nothing_can_be_written_the_files_are_examined_all_the_same(root, store):
    store.write_text("a file in the place of the folder")
    examined = examine_once(root, NAMES, store)
    assert {NAMES[index]: reason for index, reason in examined.bad.items()} == BAD
    remember(root, NAMES, store, examined)  # does nothing
    assert store.is_file()


def test_a_name_that_no_file_can_have_is_one_that_is_missing(tmp_path):
    assert fingerprint(tmp_path, ["a\0b"]) != fingerprint(tmp_path, ["a"])
