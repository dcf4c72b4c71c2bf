import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader

from lit_guide.engine.errors import UserError
from lit_guide.engine.photos.crops import resize_shorter
from lit_guide.engine.photos.dataset import ImageDataset, Paths
from lit_guide.engine.photos.decode import decode
from lit_guide.engine.photos.examine import examine
from lit_guide.parts.cache import copies, known
from lit_guide.parts.cache.copies import CachedImages, in_memory, on_disk
from lit_guide.parts.cache.known import default_folder, examine_once, fingerprint

SIDE = 48
GOOD = ["cat/1.jpg", "cat/2.jpg", "cat/same.jpg", "dog/high.png", "dog/small.png", "dog/turned.jpg"]
BAD = {"cat/empty.jpg": "empty file", "dog/zz.jpg": "not an image"}
NAMES = sorted([*GOOD, *BAD])


@pytest.fixture(scope="module")
def photo():
    """A real photo, 640 x 427."""
    with as_file(files("sklearn.datasets.images")) as folder:
        return Image.fromarray(np.array(Image.open(folder / "china.jpg")))


@pytest.fixture(name="root")
def album(tmp_path, photo):
    """A folder of good and bad files, GOOD and BAD."""
    root = tmp_path / "album"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    photo.crop((0, 0, 200, 150)).save(root / "cat/1.jpg")
    photo.crop((200, 100, 440, 260)).save(root / "cat/2.jpg")
    shutil.copy(root / "cat/1.jpg", root / "cat/same.jpg")
    photo.crop((0, 0, 60, 400)).save(root / "dog/high.png")
    photo.crop((0, 0, 40, 30)).save(root / "dog/small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.crop((0, 0, 120, 90)).save(root / "dog/turned.jpg", exif=exif)
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
        for module in (known, copies):
            monkeypatch.setattr(module, "examine", lambda *args, **kwargs: pytest.fail("files were decoded again"))

    return forbid


def open_files(root, names, kind, side, store):
    """What a DataModule opens for `data.cache: kind`."""
    if kind == "none":
        return examine_once(root, names, store), None
    return {"ram": in_memory, "disk": on_disk}[kind](root, names, side, store)


def expected(root, name, side=SIDE):
    return resize_shorter(decode(root / name), side, enlarge=False)


def assert_right(root, names, found, side=SIDE):
    """All of what was found is what decoding these files gives."""
    examined, images = found
    good = [name for name in names if name not in BAD]
    assert {names[index]: reason for index, reason in examined.bad.items()} == {k: v for k, v in BAD.items() if k in names}
    if {"cat/1.jpg", "cat/same.jpg"} <= set(names):
        assert [[names[index] for index in group] for group in examined.duplicates] == [["cat/1.jpg", "cat/same.jpg"]]
    for name in good:
        image_CHW = images[names.index(name)]
        assert image_CHW.dtype == torch.uint8
        assert torch.equal(image_CHW, expected(root, name, side))


def result(store):
    """The folder of the only disk cache."""
    (done,) = store.glob("*/*/shorter-side-*")
    return done


def damaged(content):
    return lambda path: path.write_bytes(content)


# --- what is found


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("names", [NAMES, Paths(NAMES)], ids=["list", "Paths"])
def test_copies_are_the_decoded_and_scaled_files(root, store, kind, names):
    found = open_files(root, names, kind, SIDE, store)
    assert_right(root, list(names), found)
    assert_right(root, list(names), open_files(root, names, kind, SIDE, store))
    shapes = {name: tuple(found[1][index].shape) for index, name in enumerate(names)}
    assert shapes == {
        "cat/1.jpg": (3, 48, 64),
        "cat/2.jpg": (3, 48, 72),
        "cat/empty.jpg": (3, 0, 0),
        "cat/same.jpg": (3, 48, 64),
        "dog/high.png": (3, 320, 48),
        "dog/small.png": (3, 30, 40),  # not enlarged
        "dog/turned.jpg": (3, 64, 48),
        "dog/zz.jpg": (3, 0, 0),
    }


def test_without_a_cache_the_files_are_only_checked(root, store):
    examined, images = open_files(root, NAMES, "none", SIDE, store)
    assert images is None
    assert {NAMES[index]: reason for index, reason in examined.bad.items()} == BAD
    assert examined.duplicates == [[0, 3]]
    assert not list(store.rglob("images.bin"))


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_files_that_are_all_bad_and_no_files_at_all_are_no_error(root, store, kind):
    for _ in range(2):
        assert open_files(root, list(BAD), kind, SIDE, store)[0].bad == {0: "empty file", 1: "not an image"}
        assert open_files(root, [], kind, SIDE, store)[0].bad == {}


def test_a_dataset_reads_from_the_copies(root, store):
    _, images = open_files(root, NAMES, "disk", SIDE, store)
    dataset = ImageDataset(root, NAMES, torch.arange(len(NAMES)), read=images)
    image_BCHW, label_B = dataset.batch([0, 3])
    assert torch.equal(image_BCHW, torch.stack([expected(root, "cat/1.jpg")] * 2))
    assert label_B.tolist() == [0, 3]


def test_writing_to_an_image_changes_nothing_on_disk(root, store):
    _, images = open_files(root, NAMES, "disk", SIDE, store)
    images[0].zero_()
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))


# --- what is remembered


@pytest.mark.parametrize(("first", "second"), [("none", "none"), ("disk", "disk"), ("disk", "none")])
def test_f13_what_was_decoded_once_is_not_decoded_again_and_bad_files_are_remembered(root, store, undecoded, first, second):
    before, _ = open_files(root, NAMES, first, SIDE, store)
    undecoded()
    after, images = open_files(root, NAMES, second, SIDE, store)
    assert (after.bad, after.duplicates) == (before.bad, before.duplicates)
    assert sorted(NAMES[index] for index in after.bad) == sorted(BAD)
    if second == "disk":
        assert_right(root, NAMES, (after, images))


def test_copies_in_memory_leave_nothing_on_disk(root, store):
    open_files(root, NAMES, "ram", SIDE, store)
    assert not store.exists()


def changed(root, photo):
    photo.crop((300, 50, 500, 200)).save(root / "cat/1.jpg")
    shutil.copy(root / "cat/1.jpg", root / "cat/same.jpg")


def touched(root, photo):
    stat = (root / "cat/2.jpg").stat()
    os.utime(root / "cat/2.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def mended(root, photo):
    photo.crop((300, 50, 500, 200)).save(root / "dog/zz.jpg", "jpeg")


def removed(root, photo):
    (root / "cat/2.jpg").unlink()


@pytest.mark.parametrize("kind", ["none", "disk"])
@pytest.mark.parametrize("change", [changed, touched, mended, removed])
def test_files_that_changed_are_decoded_anew(root, store, photo, kind, change):
    before = fingerprint(root, NAMES)
    open_files(root, NAMES, kind, SIDE, store)
    change(root, photo)
    assert fingerprint(root, NAMES) != before
    examined, images = open_files(root, NAMES, kind, SIDE, store)
    bad = {index for index, name in enumerate(NAMES) if name in BAD}
    bad ^= {NAMES.index("dog/zz.jpg")} if change is mended else {NAMES.index("cat/2.jpg")} if change is removed else set()
    assert set(examined.bad) == bad
    if kind == "disk":
        for index in set(range(len(NAMES))) - bad:
            assert torch.equal(images[index], expected(root, NAMES[index]))


def test_another_list_of_files_is_another_set(root, store):
    lists = [NAMES, NAMES[:-1], NAMES[1:], NAMES[::-1], [*NAMES, "cat/1.jpg"]]
    assert len({fingerprint(root, names) for names in lists}) == len(lists)
    for names in lists:
        examined, images = open_files(root, names, "disk", SIDE, store)
        for index, name in enumerate(names):
            assert (index in examined.bad) == (name in BAD)
            assert torch.equal(images[index], expected(root, name)) if name in GOOD else images[index].numel() == 0


def test_equal_names_below_another_root_are_another_set(root, store, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root, other)  # with the times of the files
    stat = (root / "cat/2.jpg").stat()
    content = bytearray((root / "cat/2.jpg").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    (other / "cat/2.jpg").write_bytes(content)
    os.utime(other / "cat/2.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(root, NAMES) == fingerprint(other, NAMES)
    for folder in (root, other):
        assert_right(folder, NAMES, open_files(folder, NAMES, "disk", SIDE, store))
    assert not torch.equal(expected(root, "cat/2.jpg"), expected(other, "cat/2.jpg"))


def test_each_size_of_copies_has_a_place_of_its_own(root, store, undecoded):
    for side in (SIDE, 20):
        assert_right(root, NAMES, open_files(root, NAMES, "disk", side, store), side)
    undecoded()
    for side in (20, SIDE):
        assert_right(root, NAMES, open_files(root, NAMES, "disk", side, store), side)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no text")
@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_names_need_not_be_valid_text(tmp_path, store, photo, kind, undecoded):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    names = [os.fsdecode(b"\xff.jpg"), "写真 1.jpg", os.fsdecode(b"bad\xfe.jpg")]
    for name in names[:2]:
        photo.crop((0, 0, 80, 60)).save(root / name, "jpeg")
    (root / names[2]).touch()
    for _ in range(2):
        examined, images = open_files(root, names, kind, SIDE, store)
        assert (examined.bad, examined.duplicates) == ({2: "empty file"}, [[0, 1]])
        if images is not None:
            assert torch.equal(images[0], expected(root, names[0]))
        if kind != "ram":
            undecoded()


def test_the_default_place_follows_the_users_settings(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder().parent == tmp_path / "xdg"
    open_files(root, NAMES, "disk", SIDE, None)
    assert result(default_folder()).is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "lit-guide"
    open_files(root, NAMES, "disk", SIDE, Path("~/mine"))
    assert result(tmp_path / "home" / "mine").is_dir()


def test_old_states_of_a_set_are_removed_once_they_were_not_used_for_a_month(root, store, tmp_path, photo):
    def age(home, days):
        os.utime(home, (time.time() - days * 86400,) * 2)

    def states():
        return {home for home in store.glob("*/*") if (home / "shorter-side-48").is_dir()}

    open_files(tmp_path, ["album/cat/1.jpg"], "disk", SIDE, store)
    (another_set,) = states()
    open_files(root, NAMES, "disk", SIDE, store)
    (first,) = states() - {another_set}
    touched(root, photo)
    open_files(root, NAMES, "disk", SIDE, store)
    (second,) = states() - {another_set, first}
    age(another_set, 99)
    age(first, 31)
    age(second, 99)
    open_files(root, NAMES, "disk", SIDE, store)  # so that it is in use, and nothing is built
    assert states() == {another_set, first, second}
    age(first, 29)
    touched(root, photo)
    open_files(root, NAMES, "disk", SIDE, store)
    assert {another_set, first, second} < states()
    age(first, 31)
    changed(root, photo)
    open_files(root, NAMES, "none", SIDE, store)
    assert not first.exists()
    assert len(states()) == 3
    assert {another_set, second} < states()


# --- damage, interruption, no place


def shortened(path):
    path.write_bytes(path.read_bytes()[:-100])


def lengthened(path):
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.bin", shortened),
        ("images.bin", lengthened),
        ("images.bin", Path.unlink),
        ("manifest.json", shortened),
        ("manifest.json", Path.unlink),
        ("manifest.json", damaged(b"")),
        ("manifest.json", damaged(b"[]")),
        ("manifest.json", damaged(b'{"bad": {}}')),
        ("manifest.json", damaged(b'{"bad": [], "duplicates": []}')),
        ("manifest.json", damaged(b"\xff\xfe{}")),
        ("sizes.npy", Path.unlink),
        ("sizes.npy", shortened),
        ("sizes.npy", damaged(b"")),
        ("sizes.npy", damaged(b"no numbers")),
        ("sizes.npy", damaged(pickle.dumps([[1, 2]]))),
    ],
)
def test_a_damaged_cache_is_built_anew(root, store, name, damage, undecoded):
    open_files(root, NAMES, "disk", SIDE, store)
    damage(result(store) / name)
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))
    undecoded()
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))


def test_what_an_interrupted_build_left_is_not_used(root, store):
    open_files(root, NAMES, "disk", SIDE, store)
    done = result(store)
    part = done.with_name(done.name + ".part")
    done.rename(part)
    (part / "manifest.json").unlink()
    (part / "images.bin").write_bytes(bytes(1000))
    (part / "stray").touch()
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))
    assert sorted(path.name for path in done.iterdir()) == ["images.bin", "manifest.json", "sizes.npy"]
    assert not part.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")])
def test_a_build_that_fails_leaves_nothing_and_gives_the_lock_back(root, store, monkeypatch, error):
    with monkeypatch.context() as patch:

        def fail(*args):
            assert list(store.rglob("images.bin"))
            raise error

        patch.setattr(copies, "_decode_all", fail)
        with pytest.raises(UserError if isinstance(error, OSError) else error):
            open_files(root, NAMES, "disk", SIDE, store)
    assert [path.name for path in store.rglob("*") if path.is_file()] == ["lock"]
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))


def test_a_build_appears_in_one_step_once_it_is_complete(root, store, monkeypatch):
    def interrupted(part, done):
        assert sorted(path.name for path in part.iterdir()) == ["images.bin", "manifest.json", "sizes.npy"]
        assert not done.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_files(root, NAMES, "disk", SIDE, store)
    assert not list(store.rglob("shorter-side-*"))
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))


def many(root, photo, count=120):
    for index in range(count):
        photo.crop((index, 0, index + 64, 48)).save(root / f"{index:03}.bmp")
    return [f"{index:03}.bmp" for index in range(count)]


def test_a_disk_that_is_too_full_is_an_error_before_it_is_full(root, store, photo, monkeypatch):
    names = many(root, photo)
    usage = shutil.disk_usage(root)
    needed = 20 * 64 * 48 * 3  # for what is left when it is looked at, after 100 files
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError) as caught:
        open_files(root, names, "disk", SIDE, store)
    assert type(caught.value) is UserError
    assert str(store) in str(caught.value)
    assert "0.0 GiB are free. Set data.cache_dir to another disk, or data.cache to none." in str(caught.value)
    assert not list(store.rglob("shorter-side-*"))
    assert open_files(root, names, "none", SIDE, store)[0].bad == {}
    assert torch.equal(open_files(root, names, "ram", SIDE, store)[1][119], expected(root, names[119]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert torch.equal(open_files(root, names, "disk", SIDE, store)[1][119], expected(root, names[119]))


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file as Unix does")
def test_a_write_that_fails_is_an_error_with_the_reason_and_leaves_nothing(root, store, photo):
    import resource

    names = many(root, photo)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"can't be written \(File too large\)\. Set data\.cache_dir to another disk"):
            open_files(root, names, "disk", SIDE, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(store.rglob("shorter-side-*"))
    assert torch.equal(open_files(root, names, "disk", SIDE, store)[1][119], expected(root, names[119]))


def no_folder(store):
    store.write_text("a file in the place of the folder")


def no_lock(store):
    for lock in store.glob("*/*/lock"):
        lock.unlink()
        lock.mkdir()


@pytest.mark.parametrize("obstacle", [no_folder, no_lock])
def test_where_nothing_can_be_written_the_others_still_work(root, store, obstacle):
    if obstacle is no_lock:
        open_files(root, NAMES, "disk", SIDE, store)
        shutil.rmtree(result(store))
        next(store.glob("*/*/examined.json")).unlink()
    obstacle(store)
    with pytest.raises(UserError) as caught:
        open_files(root, NAMES, "disk", SIDE, store)
    assert type(caught.value) is UserError
    assert str(caught.value).startswith(str(store))
    assert "no cache can be written there (" in str(caught.value)
    assert "Set data.cache_dir to another disk, or data.cache to none." in str(caught.value)
    assert_right(root, NAMES, open_files(root, NAMES, "ram", SIDE, store))
    examined, images = open_files(root, NAMES, "none", SIDE, store)
    assert {NAMES[index]: reason for index, reason in examined.bad.items()} == BAD
    assert images is None


def test_a_whole_cache_is_used_where_nothing_can_be_locked(root, store, undecoded):
    open_files(root, NAMES, "disk", SIDE, store)
    no_lock(store)
    undecoded()
    assert_right(root, NAMES, open_files(root, NAMES, "disk", SIDE, store))


# --- other processes


def test_copies_on_disk_are_sent_to_other_processes_without_their_pixels(root, store):
    _, images = open_files(root, NAMES, "disk", SIDE, store)
    before = len(pickle.dumps(images))
    assert_right(root, NAMES, (examine(root, NAMES), images))  # now the file is mapped
    sent = pickle.dumps(images)
    assert len(sent) == before < 3000 < (result(store) / "images.bin").stat().st_size
    received = pickle.loads(sent)
    assert isinstance(received, CachedImages)
    for index in range(len(NAMES)):
        assert torch.equal(received[index], images[index])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_loader_processes_read_the_copies_however_they_are_started(root, store, kind):
    _, images = open_files(root, NAMES, kind, SIDE, store)
    images[0]
    names = ["cat/1.jpg", "dog/small.png", "cat/2.jpg", "dog/turned.jpg"]
    dataset = ImageDataset(root, Paths(NAMES), torch.arange(len(NAMES)), read=images)
    rows = [NAMES.index(name) for name in names]
    loader = DataLoader(dataset, batch_size=None, sampler=rows, num_workers=1, multiprocessing_context="spawn")
    samples = list(loader)
    assert [int(label) for _, label in samples] == rows
    for name, (image_CHW, _) in zip(names, samples, strict=True):
        assert torch.equal(image_CHW, expected(root, name))


BUILD = """
import hashlib, json, sys, time
from pathlib import Path
from lit_guide.parts.cache import copies

root, store, go = map(Path, sys.argv[1:4])
builds, scale, examine = [], copies.resize_shorter, copies.examine

def slowly(*args, **kwargs):
    time.sleep(0.02)
    return scale(*args, **kwargs)

copies.resize_shorter = slowly
copies.examine = lambda *args: builds.append(1) or examine(*args)
go.with_suffix(f".{sys.argv[4]}").touch()
while not go.exists():
    time.sleep(0.001)
examined, images = copies.on_disk(root, sys.argv[5:], 48, store)
pixels = hashlib.sha256()
for index in range(len(sys.argv[5:])):
    pixels.update(images[index].numpy().tobytes())
print(json.dumps([len(builds), examined.bad, pixels.hexdigest()]))
"""


@pytest.fixture
def builder(root, store, tmp_path):
    """builder(names, number): start a process that builds, slowly, once the file `go` is there."""
    started = []

    def start(names, number):
        command = [sys.executable, "-c", BUILD, str(root), str(store), str(tmp_path / "go"), str(number), *names]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


@pytest.mark.slow
def test_of_two_processes_one_builds_and_both_read_the_same(root, store, tmp_path, photo, builder):
    names = many(root, photo) + list(BAD)
    processes = [builder(names, number) for number in range(2)]
    wait_for(lambda: all((tmp_path / f"go.{number}").exists() for number in range(2)))
    (tmp_path / "go").touch()
    wait_for(lambda: list(store.rglob("images.bin")))
    assert all(process.poll() is None for process in processes)
    results = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert sorted(builds for builds, *_ in results) == [0, 1]
    assert results[0][1:] == results[1][1:]
    assert results[0][1] == {"120": "empty file", "121": "not an image"}
    _, images = open_files(root, names, "disk", SIDE, store)
    for index in range(120):
        assert torch.equal(images[index], expected(root, names[index]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_build_that_was_killed_is_never_used_and_keeps_no_lock(root, store, tmp_path, photo, builder):
    names = many(root, photo) + list(BAD)
    process = builder(names, 0)
    (tmp_path / "go").touch()
    wait_for(lambda: any(path.stat().st_size > 50_000 for path in store.rglob("images.bin")))
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    (left,) = store.glob("*/*/shorter-side-*")
    assert left.suffix == ".part"
    assert 50_000 < (left / "images.bin").stat().st_size < 120 * 64 * 48 * 3
    with FileLock(left.with_name("lock"), timeout=10):
        pass
    examined, images = open_files(root, names, "disk", SIDE, store)
    assert examined.bad == {120: "empty file", 121: "not an image"}
    for index in range(120):
        assert torch.equal(images[index], expected(root, names[index]))
    assert not left.exists()
    assert result(store) == left.with_suffix("")


@pytest.mark.parametrize("kind", ["none", "disk"])
def test_f13_a_bad_file_that_can_be_read_after_all_is_noticed(root, store, kind, monkeypatch):
    """A permission, or a plugin of Pillow's for another format, changes neither size nor time."""
    examined, _ = open_files(root, NAMES, kind, SIDE, store)
    first = min(examined.bad)
    really = known.decode

    def reads_all(path):
        return torch.zeros(3, 4, 4, dtype=torch.uint8) if path == root / NAMES[first] else really(path)

    monkeypatch.setattr(known, "decode", reads_all)
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return examine(*args, **kwargs)

    for module in (known, copies):
        monkeypatch.setattr(module, "examine", counted)
    open_files(root, NAMES, kind, SIDE, store)
    assert len(calls) == 1
    monkeypatch.setattr(known, "decode", really)
    open_files(root, NAMES, kind, SIDE, store)
    assert len(calls) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a file of nothing but a hole")
def test_a_cache_larger_than_memory_is_mapped(tmp_path):
    count = 3 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (3 * 1024**2)
    with (tmp_path / "images.bin").open("wb") as file:
        file.truncate(count * 3 * 1024**2 - 3)
        file.seek(0, os.SEEK_END)
        file.write(b"\1\2\3")
    images = CachedImages(torch.full((count, 2), 1024), tmp_path / "images.bin")
    assert images[count - 1][:, -1, -1].tolist() == [1, 2, 3]
    assert images[0].sum() == 0
