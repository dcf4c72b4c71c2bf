"""Files that decode to nothing of use are findings of `data check`, each by its name."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from lit_guide import FolderData
from lit_guide.engine.photos.decode import Reading, decode_bytes
from lit_guide.engine.photos.headers import jpeg_scans
from lit_guide.parts.inspect.check import check
from lit_guide.parts.look.content import BIT, KINDS, signs
from tests.conftest import Run
from tests.engine.photos.files import tiff


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def seen(content: bytes, least_side: int | None = 192) -> list[str]:
    data = np.frombuffer(bytearray(content), np.uint8)
    bits = signs(data, decode_bytes(data, reading=Reading(least_side=least_side), brightness=True))
    return [kind for kind, _, _ in KINDS if bits & BIT[kind]]


@pytest.fixture(name="photo", scope="module")
def real_photo(photos) -> Image.Image:
    return Image.fromarray(photos["china.jpg"][1])


@pytest.fixture(name="large", scope="module")
def large_photo(photo) -> Image.Image:
    return photo.resize((2400, 1600))


def report_of(root: Path):
    """What `data check` finds, beside a second class, without which there is nothing to classify."""
    (root / "other").mkdir(exist_ok=True)
    Image.effect_noise((64, 64), 90).save(root / "other/noise.png")
    return check(FolderData(str(root), val_fraction=0, test_fraction=0))


def drawing(mode: str) -> Image.Image:
    """A black circle; its transparency, where there is one, is all that shows it."""
    image = Image.new(mode, (64, 64))
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).ellipse((8, 8, 50, 50), fill=255)
    if "A" in mode:
        image.putalpha(mask)
    return image


# --- what is good


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_f52_photos_have_no_signs(photos, format) -> None:
    for _, pixels_HWC in photos.values():
        assert seen(saved(Image.fromarray(pixels_HWC), format)) == []


def test_f52_jpegs_of_every_kind_have_no_signs(photos, photo, large) -> None:
    for image in (photo, large, photo.convert("L"), photo.convert("CMYK"), ImageOps.flip(photo), photo.rotate(90, expand=True)):
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"quality": 30}):
            assert seen(saved(image, "JPEG", **options)) == []
    for path, _ in photos.values():
        assert seen(path.read_bytes()) == []


def test_f52_what_comes_behind_the_end_of_a_jpeg_is_no_sign(photo) -> None:
    """A film as phones append it, with markers by chance; zeros that fill a sector; another JPEG."""
    whole = saved(photo, "JPEG")
    film = np.random.default_rng(0).bytes(400_000)
    assert film.count(b"\xff\xda") > 2
    for after in (film, bytes(5000), b"\xff\xda", saved(photo, "JPEG", progressive=True), b"\n"):
        assert seen(whole + after) == []


def test_f52_the_two_frames_of_a_phones_portrait_are_one_photo(photo) -> None:
    content = saved(photo, "MPO", save_all=True, append_images=[ImageOps.invert(photo)])
    with Image.open(io.BytesIO(content)) as file:
        assert (file.format, file.n_frames) == ("MPO", 2)
    assert seen(content) == []


# --- one colour, few levels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("colour", ["black", "white", "red", "#345678"])
def test_f52_one_colour_is_seen_in_every_format_and_size(format, colour) -> None:
    for size in ((1, 1), (30, 20), (900, 700), (3000, 2000)):
        options = {"lossless": True} if format == "WEBP" else {}
        assert seen(saved(Image.new("RGB", size, colour), format, **options)) == ["one_colour"]


def test_f52_constant_pixels_of_other_depths_are_one_colour() -> None:
    assert seen(saved(Image.new("1", (20, 20)), "PNG")) == ["one_colour"]
    assert seen(saved(Image.new("L", (20, 20), 7), "PNG")) == ["one_colour"]
    assert seen(tiff(np.full((20, 20), 40_000, np.uint16))) == ["one_colour"]
    assert seen(saved(Image.new("P", (20, 20), 3), "PNG")) == ["one_colour"]


def test_f52_one_other_pixel_is_not_one_colour_wherever_it_is() -> None:
    pixels_HW = np.zeros((300, 400), np.uint8)
    pixels_HW[151, 203] = 255
    assert seen(saved(Image.fromarray(pixels_HW), "PNG")) == ["few_levels"]


@pytest.mark.parametrize(("levels", "expected"), [(2, ["few_levels"]), (15, ["few_levels"]), (16, []), (40, [])])
def test_f52_fewer_than_16_levels_are_a_sign(levels, expected) -> None:
    value_HW = np.random.default_rng(0).integers(0, levels, (200, 300)).astype(np.uint8) * 6
    for image in (Image.fromarray(value_HW), Image.fromarray(np.dstack([value_HW, value_HW // 2, value_HW // 3]))):
        assert seen(saved(image, "PNG")) == expected


def test_f52_a_rare_level_is_counted_where_the_sample_misses_it() -> None:
    value_HW = np.zeros((480, 480), np.uint8)
    value_HW[7, 1:17] = np.arange(16)
    assert seen(saved(Image.fromarray(value_HW), "PNG")) == []


def test_f52_scans_of_drawings_and_digits_are_worth_a_look_and_not_wrong(tmp_path) -> None:
    for at in range(8):
        image = drawing("1").rotate(at)
        ImageDraw.Draw(image).text((20, 20), str(at), fill=1)
        path = tmp_path / "ab"[at % 2] / f"{at}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    report = report_of(tmp_path)
    assert [finding.kind for finding in report.findings if finding.kind == "few_levels"] == ["few_levels"]
    assert report.wrong == []


# --- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_f52_a_drawing_held_by_its_transparency_is_seen_on_white(mode, format) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    content = saved(drawing(mode), format, **options)
    image_CHW = decode_bytes(np.frombuffer(bytearray(content), np.uint8))
    assert image_CHW[:, 30, 30].tolist() == [0, 0, 0]
    assert image_CHW[:, 1, 1].tolist() == [255, 255, 255]
    assert seen(content) == ["few_levels", "transparent"]


def test_f52_a_white_drawing_that_transparency_held_is_one_colour() -> None:
    white = drawing("LA")
    content = saved(Image.merge("LA", (Image.new("L", (64, 64), 255), white.getchannel("A"))), "PNG")
    assert seen(content) == ["one_colour", "transparent"]


def test_f52_transparency_of_palettes_and_of_a_colour(photo) -> None:
    few = photo.quantize(64, dither=Image.Dither.NONE)
    assert seen(saved(few, "PNG", transparency=3)) == ["transparent"]
    assert seen(saved(few, "PNG", transparency=bytes([200]) * 64)) == []  # nothing is clear enough to have become white
    assert seen(saved(few, "GIF", transparency=3)) == ["transparent"]
    assert seen(saved(photo.convert("RGBA"), "PNG")) == []  # a fourth channel that hides nothing
    white = photo.copy()
    white.paste("white", (0, 0, 50, 50))
    assert seen(saved(white.convert("RGBA"), "PNG")) == []
    assert seen(saved(white, "PNG", transparency=(255, 255, 255))) == ["transparent"]


# --- pages


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_f52_more_than_one_page_or_frame_is_a_sign(photo, format) -> None:
    others = [ImageOps.invert(photo), ImageOps.flip(photo)]
    assert seen(saved(photo, format, save_all=True, append_images=others)) == ["pages"]


def test_f52_a_smaller_copy_or_a_mask_in_a_tiff_is_no_page(photo) -> None:
    for kind, expected in ((1, []), (4, []), (0, ["pages"]), (2, ["pages"])):
        content = bytearray(tiff(np.asarray(photo.resize((40, 30))), tags={254: (4, [0])}))
        second = tiff(np.asarray(photo.resize((20, 15))), tags={254: (4, [kind])})
        (count,) = struct.unpack_from("<H", content, 8)
        struct.pack_into("<I", content, 10 + 12 * count, len(content))
        entries = bytearray(second[8:])
        # Offsets of the second directory are from the start of the file.
        for at in range(2, 2 + 12 * count, 12):
            tag, form, number, value = struct.unpack_from("<HHII", entries, at)
            if number * {1: 1, 3: 2, 4: 4}[form] > 4 or tag == 273:
                struct.pack_into("<I", entries, at + 8, value - 8 + len(content))
        assert seen(bytes(content + entries)) == expected


# --- halves


def cut(content: bytes, share: float) -> int:
    start = content.rindex(b"\xff\xda")
    return start + int((len(content) - start) * share)


@pytest.mark.parametrize("size", ["photo", "large"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_f52_half_a_jpeg_with_an_end_is_seen_to_lack_the_rest(request, size, turn) -> None:
    """What repair programs leave: the pixels that are there, and an end marker."""
    exif = Image.Exif()
    exif[0x0112] = turn
    whole = saved(request.getfixturevalue(size), "JPEG", exif=exif.tobytes())
    assert seen(whole) == []
    assert seen(whole[: cut(whole, 0.5)] + b"\xff\xd9") == (["half_flat"] if turn != 3 else [])


@pytest.mark.parametrize("size", ["photo", "large"])
@pytest.mark.parametrize("fill", [0x00, 0xFF])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": 0}, {"progressive": True}])
def test_f52_a_jpeg_whose_second_half_was_overwritten_is_wrong(request, size, fill, options, tmp_path) -> None:
    whole = saved(request.getfixturevalue(size), "JPEG", **options)
    at = cut(whole, 0.5)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/good.jpg").write_bytes(whole)
    (tmp_path / "a/half.jpg").write_bytes(whole[:at] + bytes([fill]) * (len(whole) - at))
    report = report_of(tmp_path)
    items = [item for finding in report.wrong for item in finding.items]
    looks = [item for finding in report.findings for item in finding.items if finding.kind in ("no_end", "half_flat")]
    assert sum(item.startswith("a/half.jpg") for item in items) == 1
    assert not any("good.jpg" in item for item in items + looks)


def test_f52_a_jpeg_without_an_end_marker_is_a_finding(photo) -> None:
    for options in ({}, {"optimize": True}):
        whole = saved(photo, "JPEG", **options)
        assert seen(whole[:-2] + bytes(3000)) == ["no_end"]
    assert seen(saved(photo, "JPEG", subsampling=0)[:-2]) == ["no_end"]  # elsewhere the decoder still waits for a byte


def test_f52_a_progressive_jpeg_that_ends_after_a_scan_is_found(photo, tmp_path) -> None:
    whole = saved(photo, "JPEG", progressive=True)
    places = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert len(places) == jpeg_scans(np.frombuffer(whole, np.uint8))[0] == 10
    (tmp_path / "a").mkdir()
    names = []
    for at in places[1:]:
        names.append(f"a/{at}.jpg")
        (tmp_path / names[-1]).write_bytes(whole[:at])
    (tmp_path / "a/whole.jpg").write_bytes(whole)
    report = report_of(tmp_path)
    (found,) = [finding for finding in report.findings if finding.kind == "unreadable"]
    assert [item.partition(":")[0] for item in found.items] == sorted(names)


def test_f52_an_end_that_is_white_anyway_is_a_look_only(tmp_path) -> None:
    """A thing on white paper, photographed from above: nothing says that it is not meant."""
    paper = Image.new("RGB", (500, 375), "white")
    paper.paste(Image.effect_noise((300, 100), 60).convert("RGB"), (100, 20))
    assert seen(saved(paper, "JPEG", quality=95)) == ["half_flat"]
    assert not {kind: wrong for kind, wrong, _ in KINDS}["half_flat"]


# --- the command


def test_f52_the_report_names_each_file_under_each_kind(run: Run, photo, tmp_path) -> None:
    root = tmp_path / "photos/a"
    root.mkdir(parents=True)
    whole = saved(photo, "JPEG")
    files = {
        "one_colour": Image.new("RGB", (50, 50), "red"),
        "few_levels": Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10) // 10),
        "pages": saved(photo, "GIF", save_all=True, append_images=[ImageOps.invert(photo)]),
        "no_end": saved(photo, "JPEG", subsampling=0)[:-2],
        "half_flat": whole[: cut(whole, 0.5)] + b"\xff\xd9",
    }
    for kind, content in files.items():
        (root / kind).write_bytes(content if isinstance(content, bytes) else saved(content, "PNG"))
    (root / "good.jpg").write_bytes(saved(ImageOps.mirror(photo), "JPEG"))
    report_of(root.parent)
    run("data", "check", "--config", "configs/folder.yaml", "--data.root", "photos")
    found = {one["kind"]: one for one in json.loads(Path("data_check.json").read_text())["findings"]}
    for kind in files:
        assert found[kind]["items"] == [f"a/{kind}"]
        assert not found[kind]["wrong"]


def test_f52_a_dng_made_by_hand_is_refused_by_name(tmp_path) -> None:
    """A thumbnail first, the raw data in a SubIFD: Pillow alone would give the thumbnail."""
    for name, tags in {
        "dng": {254: (4, [1]), 50706: (1, [1, 4, 0, 0]), 330: (4, [8])},
        "nef": {254: (4, [1]), 330: (4, [8, 8])},
        "dng whose first image is whole": {254: (4, [0]), 50706: (1, [1, 4, 0, 0])},
    }.items():
        (tmp_path / "a").mkdir(exist_ok=True)
        path = tmp_path / f"a/{name}.dng"
        path.write_bytes(tiff(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8), tags=tags))
    report = report_of(tmp_path)
    assert len(report.bad_files) == 3
    items = [item for finding in report.wrong for item in finding.items if finding.kind == "unreadable"]
    assert all("camera raw, which is not read here: develop it to JPEG" in item for item in items)


def test_without_the_part_the_check_goes_on(photo, tmp_path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a/1.png")
    monkeypatch.setattr("lit_guide.parts.inspect.check.LOOKS", {"signs": "lit_guide.parts.gone.content:signs"})
    kinds = [finding.kind for finding in report_of(tmp_path).findings]
    assert "one_colour" not in kinds


@pytest.mark.parametrize("kind", ["webp", "tiff", "gif"])
def test_f52_what_decodes_though_its_rest_is_broken_is_no_crash(tmp_path: Path, photo: Image.Image, kind: str) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    small = photo.resize((64, 48))
    if kind == "webp":
        content = saved(small, "WEBP") + b"EXIF\xff\xff\xff\x7f"
    elif kind == "tiff":
        content = saved(small, "TIFF")
        (at,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, at)
        content = content[: at + 2 + 12 * count] + struct.pack("<I", 9) + content[at + 6 + 12 * count :]
    else:
        frames = [small.rotate(turn).convert("P") for turn in (0, 30, 60)]
        content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])[:-400]
    (tmp_path / "photos/cat" / f"a.{kind}").write_bytes(content)
    report = report_of(tmp_path / "photos")
    found = {finding.kind for finding in report.findings if "cat/a" in " ".join(map(str, finding.items))}
    assert found <= {"pages", "bad", "mode", "few_levels", "tiny"}
