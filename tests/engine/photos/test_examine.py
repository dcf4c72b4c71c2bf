import io
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
from PIL import Image

from lit_guide.engine.photos import examine as module
from lit_guide.engine.photos.decode import decode, decode_bytes
from lit_guide.engine.photos.examine import difference_hash, examine


@pytest.fixture(scope="module")
def photos():
    """Two real photos, 640 x 427."""
    with as_file(files("sklearn.datasets.images")) as folder:
        return [Image.fromarray(np.array(Image.open(folder / name))) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture(name="crop")
def cut(photos):
    """crop(i) -> a part of a photo, always the same, another one for each i."""

    def crop(index):
        left, top = np.random.default_rng(index).integers(0, [440, 277])
        return photos[index % 2].crop((left, top, left + 200, top + 150))

    return crop


def encoded(image, kind="jpeg", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(folder, contents):
    """Write name -> bytes or image; the names."""
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else encoded(content))
    return list(contents)


def differing_bits(one, other):
    return (one ^ other).bit_count()


# --- what is found


def test_f13_every_bad_file_is_found_with_its_reason_and_the_good_ones_beside_it(tmp_path, crop):
    jpeg, png = encoded(crop(0)), encoded(crop(1), "png")
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + png[24:29]
    bomb = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    contents = {
        "good.jpg": jpeg,
        "empty.jpg": b"",
        "text.jpg": b"no image at all",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "cut.gif": encoded(crop(2), "gif")[:-2000],
        "cut.tif": encoded(crop(3), "tiff")[:5000],
        "start.jpg": jpeg[:20],
        "bomb.png": bomb,
        "good.png": png,
    }
    names = [*write(tmp_path, contents), "missing.jpg", "folder.jpg"]
    (tmp_path / "folder.jpg").mkdir()
    found = examine(tmp_path, names)
    reasons = {names[index]: reason for index, reason in found.bad.items()}
    assert list(found.bad) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert "pixels" in reasons.pop("bomb.png")
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {
        "empty.jpg": "empty file",
        "text.jpg": "not an image, but text",
        "cut.jpg": "broken",
        "cut.png": "broken",
        "cut.gif": "broken",
        "cut.tif": "broken",
        "start.jpg": "broken, or of a kind not read here, such as 12 bits",
        "missing.jpg": "no such file or directory",
        "folder.jpg": "is a directory",
    }
    assert found.seen_N["width"].tolist() == [200, 0, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0]
    assert found.seen_N["height"].tolist() == [150, 0, 0, 0, 0, 0, 0, 0, 0, 150, 0, 0]
    assert found.seen_N["mode"].tolist() == ["RGB", *[""] * 8, "RGB", "", ""]
    assert np.flatnonzero(found.seen_N["dhash"]).tolist() == [0, 9]
    assert found.seen_N["dhash"][9] == difference_hash(decode(tmp_path / "good.png"))
    assert found.duplicates == []


def test_nothing_is_found_in_nothing(tmp_path):
    found = examine(tmp_path, [])
    assert (found.bad, found.duplicates, len(found.seen_N["width"])) == ({}, [], 0)


def test_groups_of_equal_files_are_ascending_and_bad_files_are_in_none(tmp_path, crop):
    one, two = encoded(crop(0)), encoded(crop(1))
    contents = [one, two, one[:3000], two, encoded(crop(3)), one, one[:3000], b"", two, b""]
    names = write(tmp_path, {f"{index}.jpg": content for index, content in enumerate(contents)})
    found = examine(tmp_path, names)
    assert sorted(found.bad) == [2, 6, 7, 9]
    assert found.duplicates == [[0, 5], [1, 3, 8]]
    json.dumps(found.duplicates)  # plain numbers


def test_equal_pictures_of_equal_length_are_no_duplicates_when_a_byte_differs(tmp_path, crop):
    def note(text):
        return encoded(crop(0), comment=text)

    contents = [
        note(b"first"),
        encoded(crop(1)),
        note(b"other"),
        encoded(crop(1)),
        note(b"other"),
        note(b"third"),
        note(b"first"),
    ]
    assert len({len(contents[index]) for index in (0, 2, 4, 5, 6)}) == 1
    found = examine(tmp_path, write(tmp_path, {f"{index}.jpg": content for index, content in enumerate(contents)}))
    assert len(set(found.seen_N["dhash"].tolist())) == 2
    assert found.duplicates == [[0, 6], [1, 3], [2, 4]]


def test_files_of_another_length_or_picture_are_not_read_again(tmp_path, crop, monkeypatch):
    contents = {f"{index}.bmp": encoded(crop(index), "bmp") for index in range(5)}
    contents |= {f"{kind}.png": encoded(crop(0), kind) for kind in ("bmp", "tiff", "png")}
    monkeypatch.setattr(module.hashlib, "sha256", lambda data: pytest.fail("read again"))
    names = write(tmp_path, contents)
    assert examine(tmp_path, [name for name in names if name != "bmp.png"]).duplicates == []
    with pytest.raises(pytest.fail.Exception):
        examine(tmp_path, names)


def test_plain_images_of_one_length_are_told_apart(tmp_path):
    plain = [encoded(Image.new("RGB", (20, 20), (value, 0, 0)), "bmp") for value in (1, 2, 1, 3)]
    found = examine(tmp_path, write(tmp_path, {f"{index}.bmp": image for index, image in enumerate(plain)}))
    assert found.seen_N["dhash"].tolist() == [0] * 4
    assert found.duplicates == [[0, 2]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_those_of_the_upright_image(tmp_path, crop, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = {f"a.{kind}": encoded(crop(0), kind, exif=exif) for kind in ("jpeg", "png", "webp")}
    found = examine(tmp_path, write(tmp_path, contents))
    wide, high = (200, 150) if orientation < 5 else (150, 200)
    assert found.seen_N["width"].tolist() == [wide] * 3
    assert found.seen_N["height"].tolist() == [high] * 3


def test_modes_are_those_that_the_files_have(tmp_path, crop):
    image, clear = crop(0), crop(0)
    clear.putalpha(100)
    sixteen = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    kinds = {
        "RGB": ["jpeg", "png", "webp", "bmp", "tiff"],
        "L": ["jpeg", "png", "bmp", "tiff"],
        "CMYK": ["jpeg", "tiff"],
        "RGBA": ["png", "webp", "tiff"],
        "LA": ["png"],
        "P": ["png", "gif"],
        "1": ["png", "tiff"],
    }
    contents = {
        f"{mode}.{kind}": encoded((clear if mode.endswith("A") else image).convert(mode), kind)
        for mode, of in kinds.items()
        for kind in of
    }
    contents |= {f"I;16.{kind}": encoded(sixteen, kind) for kind in ("png", "tiff")}
    names = write(tmp_path, contents)
    found = examine(tmp_path, names)
    assert found.bad == {}
    assert dict(zip(names, found.seen_N["mode"].tolist(), strict=True)) == {name: name.partition(".")[0] for name in names}


def test_a_file_that_pillow_refuses_and_torchvision_reads_is_good(tmp_path, crop):
    good = encoded(crop(0), "webp")
    content = good[:4] + (len(good) + 93).to_bytes(4, "little") + good[8:] + b"x" * 101
    with pytest.raises(OSError, match="decoder"):
        Image.open(io.BytesIO(content))
    found = examine(tmp_path, write(tmp_path, {"odd.webp": content, "good.webp": good}))
    assert found.bad == {}
    assert found.seen_N["mode"].tolist() == ["?", "RGB"]
    assert found.seen_N["dhash"][0] == found.seen_N["dhash"][1]


def test_names_may_hold_spaces_and_any_letters(tmp_path, crop):
    contents = {"two words.jpg": crop(0), "Übung.jpg": crop(1), "写真 1.jpg": crop(0), "a'b\"$.jpg": crop(2), "[red].jpg": b""}
    found = examine(tmp_path, write(tmp_path, contents))
    assert found.bad == {4: "empty file"}
    assert found.duplicates == [[0, 2]]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no text")
def test_names_need_not_be_valid_text(tmp_path, crop):
    names = write(tmp_path, {os.fsdecode(b"\xff\xfe.jpg"): crop(0), "plain.jpg": crop(0), os.fsdecode(b"bad\xe9.jpg"): b""})
    found = examine(tmp_path, names)
    assert found.bad == {2: "empty file"}
    assert found.duplicates == [[0, 1]]


# --- how it works


@pytest.fixture
def album(tmp_path, crop):
    """Thirty files, each third of them bad, and two that are equal."""
    contents = {f"{index:02}.jpg": encoded(crop(index)) if index % 3 else b"no image" for index in range(30)}
    contents["29.jpg"] = contents["01.jpg"]
    return tmp_path, write(tmp_path, contents)


@pytest.mark.parametrize("chunk", [1, 3, 29, 30, 31])
def test_files_a_task_change_nothing(album, monkeypatch, chunk):
    expected = examine(*album, copy=lambda image_CHW: image_CHW)
    assert expected.duplicates == [[1, 29]]
    assert sorted(expected.bad) == list(range(0, 30, 3))
    monkeypatch.setattr(module, "CHUNK", chunk)
    kept = []
    found = examine(*album, copy=lambda image_CHW: image_CHW, keep=kept.append)
    assert (found.bad, found.duplicates) == (expected.bad, expected.duplicates)
    for name in ("width", "height", "mode", "dhash"):
        np.testing.assert_array_equal(found.seen_N[name], expected.seen_N[name])
    assert [image is None for image in kept] == [index % 3 == 0 for index in range(30)]


def test_copies_are_kept_in_the_order_of_the_files_by_the_calling_thread(album, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(module, "usable_cores", lambda: 4)
    folder, names = album
    workers, keepers, kept = set(), set(), []
    delays = iter(np.random.default_rng(0).permutation(np.linspace(0, 0.02, 30)).tolist())

    def copy(image_CHW):
        time.sleep(next(delays))
        workers.add(threading.get_ident())
        return image_CHW[:, :2, :2]

    def keep(copy_CHW):
        keepers.add(threading.get_ident())
        kept.append(copy_CHW)

    examine(folder, names, copy=copy, keep=keep)
    assert keepers == {threading.get_ident()}
    assert len(workers) > 1
    assert not workers & keepers
    assert len(kept) == len(names)
    for name, copy_CHW in zip(names, kept, strict=True):
        if copy_CHW is not None:
            assert torch.equal(copy_CHW, decode(folder / name)[:, :2, :2])


def test_keep_gets_nothing_where_no_copy_was_asked_for(album):
    kept = []
    examine(*album, keep=kept.append)
    assert kept == [None] * 30


def test_few_copies_wait_however_slow_they_are_kept(album, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    folder, names = album
    good = [name for index, name in enumerate(names) if index % 3]
    made, kept, waiting = [], [], []

    def keep(copy_CHW):
        time.sleep(0.005)
        kept.append(None)
        waiting.append(len(made) - len(kept))

    examine(folder, good, copy=lambda image_CHW: made.append(None) or image_CHW, keep=keep)
    assert len(made) == len(kept) == 20
    assert max(waiting) <= 5


def test_what_has_not_begun_is_given_up_when_it_is_interrupted(album, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    folder, names = album
    made = []

    def copy(image_CHW):
        time.sleep(0.01)
        made.append(None)
        return image_CHW

    def interrupted(copy_CHW):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(folder, [name for index, name in enumerate(names) if index % 3], copy=copy, keep=interrupted)
    assert 4 <= len(made) <= 16  # of 20: the first four, and those that had begun
    before = len(made)
    time.sleep(0.05)
    assert len(made) == before


def test_torch_works_with_one_thread_meanwhile_and_with_as_many_as_before_in_the_end(album):
    seen = set()

    def copy(image_CHW):
        seen.add(torch.get_num_threads())
        return image_CHW

    def fail(copy_CHW):
        raise OSError("no space")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        examine(*album, copy=copy)
        assert torch.get_num_threads() == 3
        with pytest.raises(OSError, match="no space"):
            examine(*album, keep=fail)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_the_bar_is_for_many_files_on_a_terminal_only(album, monkeypatch, capfd):
    monkeypatch.setattr(module, "QUIET_BELOW", 31)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("TERM", "xterm")  # one that can draw
    examine(*album)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(module, "QUIET_BELOW", 30)
    examine(*album, "Looking at images")
    assert "Looking at images" in (shown := capfd.readouterr().err)
    assert "30/30" in shown
    monkeypatch.delenv("FORCE_COLOR")
    examine(*album)
    assert capfd.readouterr().err == "Checking images: 30 files\n"  # a log of a cluster shows what takes the time


# --- difference_hash


def test_hash_says_of_eight_by_nine_pixels_where_the_next_one_is_brighter():
    grey_89 = np.random.default_rng(0).permutation(72).reshape(8, 9).astype(np.uint8)
    bits = "".join("1" if grey_89[y, x + 1] > grey_89[y, x] else "0" for y in range(8) for x in range(8))
    assert 20 < bits.count("1") < 44
    image_CHW = torch.from_numpy(np.stack([grey_89] * 3))
    assert difference_hash(image_CHW) == int(bits, 2)
    assert difference_hash(image_CHW[1:2]) == int(bits, 2)  # grey: the only channel
    assert difference_hash(torch.cat([image_CHW, image_CHW[:1]])) == int(bits, 2)


def test_colours_count_by_their_brightness():
    colours_389 = np.random.default_rng(1).integers(0, 256, (3, 8, 9), dtype=np.uint8)
    grey_189 = torch.from_numpy(np.tensordot([0.299, 0.587, 0.114], colours_389, 1).round().astype(np.uint8)[None])
    differing = difference_hash(torch.from_numpy(colours_389)) ^ difference_hash(grey_189)
    assert differing.bit_count() <= 1  # rounding may make two areas equal
    assert difference_hash(torch.from_numpy(colours_389[1:2])) != difference_hash(grey_189)


def test_a_file_hashes_alike_whether_its_colours_are_decoded_or_not(album):
    alone, with_copies = examine(*album), examine(*album, copy=lambda image_CHW: image_CHW)
    bits = np.bitwise_count(alone.seen_N["dhash"] ^ with_copies.seen_N["dhash"])
    assert bits.max() <= 2
    assert (alone.bad, alone.duplicates) == (with_copies.bad, with_copies.duplicates)
    for name in ("width", "height", "mode"):
        np.testing.assert_array_equal(alone.seen_N[name], with_copies.seen_N[name])


@pytest.mark.parametrize("shape", [(8, 9), (200, 130), (40, 500)])
def test_images_without_contrast_have_hash_0_at_any_brightness(shape):
    assert {difference_hash(torch.full((3, *shape), value, dtype=torch.uint8)) for value in range(256)} == {0}


@pytest.mark.parametrize("shape", [(1, 9), (1, 20), (100, 10), (2, 50_000), (50_000, 20)])
def test_images_of_any_shape_have_a_hash(shape):
    brighter_CHW = torch.linspace(0, 255, shape[1]).to(torch.uint8).expand(3, *shape)
    assert difference_hash(brighter_CHW) == 2**64 - 1
    assert difference_hash(brighter_CHW.flip(2)) == 0
    assert difference_hash(brighter_CHW[:, :, :1]) == 0


def test_the_hash_does_not_depend_on_the_layout_in_memory(crop):
    image_HWC = torch.from_numpy(np.array(crop(0)))
    assert difference_hash(image_HWC.permute(2, 0, 1)) == difference_hash(image_HWC.permute(2, 0, 1).contiguous())


CHANGES = {
    "jpeg": lambda image: encoded(image, quality=60),
    "png": lambda image: encoded(image, "png"),
    "webp": lambda image: encoded(image, "webp", quality=70),
    "half": lambda image: encoded(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)),
    "larger": lambda image: encoded(image.resize((int(image.width * 1.6), int(image.height * 1.6)))),
    "darker": lambda image: encoded(image.point(lambda value: value * 0.9)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_survives_that_an_image_is_saved_or_scaled_again(photos, crop, change):
    def hash_of(content):
        return difference_hash(decode_bytes(np.frombuffer(bytearray(content), dtype=np.uint8)))

    images = [*photos, *map(crop, range(8))]
    distances = [differing_bits(hash_of(encoded(image, quality=90)), hash_of(CHANGES[change](image))) for image in images]
    assert max(distances) <= 5


def test_hashes_of_other_parts_of_a_photo_differ(photos):
    parts = [photo.crop((x, y, x + 200, y + 200)) for photo in photos for x in (0, 210, 420) for y in (0, 210)]
    hashes = [difference_hash(torch.from_numpy(np.array(part)).permute(2, 0, 1)) for part in parts]
    assert min(differing_bits(one, other) for at, one in enumerate(hashes) for other in hashes[:at]) > 10


# --- many files


CHECK_FOLDER = """
import json, resource, sys
from pathlib import Path
from lit_guide.engine.photos.examine import examine
from lit_guide.data.folder import files_below
from lit_guide.parts.cache.known import examine_once
from lit_guide.parts.cache.copies import on_disk
from lit_guide.parts.inspect.near import near_duplicates

def peak():  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

root, cache = map(Path, sys.argv[1:])
paths = list(files_below(root))
before = peak()
found = examine(root, paths)
near = near_duplicates(found.seen_N["dhash"], 0)
after = peak()
known, images = on_disk(root, paths, 64, cache)
again = examine_once(root, paths, cache)
assert (known.bad, known.duplicates) == (again.bad, again.duplicates) == (found.bad, found.duplicates)
print(json.dumps({
    "count": len(paths), "bad": {paths[i]: reason for i, reason in found.bad.items()},
    "duplicates": [[paths[i] for i in group] for group in found.duplicates],
    "near": [[paths[i] for i in group] for group in near],
    "sizes": sorted(set(zip(found.seen_N["width"].tolist(), found.seen_N["height"].tolist()))),
    "copies": images.sizes_N2.unique(dim=0).tolist(), "peaks": [before, after, peak()],
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="reads the peak memory as Unix tells it")
def test_f13_ten_thousand_files_are_checked_in_little_memory(tmp_path, photos):
    folder = tmp_path / "photos"
    folder.mkdir()
    places = [(y, x) for y in range(0, 52) for x in range(0, 140)]
    chosen = np.random.default_rng(0).permutation(2 * len(places))[:10_000].tolist()

    def save(index):
        y, x = places[chosen[index] // 2]
        photos[chosen[index] % 2].crop((x, y, x + 500, y + 375)).save(folder / f"{index:05}.jpg", quality=85)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(10_000)))
    whole = (folder / "00000.jpg").read_bytes()
    for name in ("02000.jpg", "09999.jpg"):
        (folder / name).write_bytes(whole)
    (folder / "00031.jpg").write_bytes(b"")
    (folder / "05000.jpg").write_bytes(whole[:20_000])
    (folder / "09998.jpg").write_bytes(b"no image")
    command = [sys.executable, "-c", CHECK_FOLDER, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    result = json.loads(done.stdout)
    assert result["count"] == 10_000
    assert set(result["bad"]) == {"00031.jpg", "05000.jpg", "09998.jpg"}
    assert result["duplicates"] == [["00000.jpg", "02000.jpg", "09999.jpg"]]
    group = next(group for group in result["near"] if "00000.jpg" in group)
    assert {"02000.jpg", "09999.jpg"} < set(group)
    assert result["sizes"] == [[0, 0], [500, 375]]
    assert result["copies"] == [[0, 0], [64, 85]]
    start, examined, cached = result["peaks"]
    # Importing torch alone takes 200 MiB, and 700 in a build with CUDA: what counts is what the files add.
    assert examined - start < 200
    assert cached - start < 400  # with pages of the cache that were just written
