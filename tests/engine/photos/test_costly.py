"""Small files that would cost much are refused with the reason in no time, or cost no more than an image may."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode_bytes
from lit_guide.engine.photos.headers import MAX_SCANS, jpeg_scans

MANY = f"more than {MAX_SCANS} scans, which no program writes: get the file again"


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG of one colour, its last scan as often as makes up so many in all."""
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    have = content.count(b"\xff\xda")
    return content[:-2] + last * (scans - have) + content[-2:]


def as_bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(content), np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(extra: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    content = file.getvalue()
    at = content.index(b"IDAT") - 4
    return content[:at] + extra + content[at:]


def gif_of(frames: int, canvas: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("P", (16, 16)).save(file, "GIF")
    content = file.getvalue()
    frame = content[content.index(b"\x2c\0\0\0\0") : -1]
    return content[:6] + struct.pack("<HH", *canvas) + content[10:-1] + frame * (frames - 1) + content[-1:]


def tiff_of_pages(pages: int) -> bytes:
    """Each page is the same 16 x 16 pixels."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "TIFF")
    content = bytearray(file.getvalue())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    directory = bytes(content[at : at + 2 + 12 * count])
    last = at + len(directory)
    for _ in range(pages - 1):
        struct.pack_into("<I", content, last, len(content))
        last = len(content) + len(directory)
        content += directory + bytes(4)
    return bytes(content)


def tiff_of_tags(tags: int, longs: int = 1) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "TIFF")
    content = file.getvalue()
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    own, body = content[at + 2 : at + 2 + 12 * count], content + bytes(4 * longs)
    more = b"".join(struct.pack("<HHII", 65_000 + i % 500, 4, longs, len(content)) for i in range(tags - count))
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + struct.pack("<H", tags) + own + more + bytes(4)


@pytest.mark.parametrize("scans", [MAX_SCANS + 1, 300, 20_000])
def test_f38_a_jpeg_of_more_scans_than_any_program_writes_is_refused(scans: int) -> None:
    content = jpeg_of_scans(1000, 800, scans)
    assert jpeg_scans(as_bytes(content))[0] == MAX_SCANS + 1  # where counting ends
    odd = content[:20] + b"junk" + content[20:]  # what libjpeg skips hides nothing
    for one in (content, odd, content + content):
        for least_side in (None, 100):
            with pytest.raises(UnreadableImageError) as caught:
                decode_bytes(as_bytes(one), reading=Reading(least_side=least_side))
            assert str(caught.value) == MANY


def test_f38_a_sequential_jpeg_of_empty_scans_is_refused_too() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "JPEG")
    content = file.getvalue()
    one = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"  # of the first component, without a bit of it
    with pytest.raises(UnreadableImageError, match=MANY):
        decode_bytes(as_bytes(content[: content.rindex(b"\xff\xda")] + one * 4000 + b"\xff\xd9"))


def test_f38_as_many_scans_as_are_allowed_are_read_and_no_real_file_has_half_of_them(photos) -> None:
    assert decode_bytes(as_bytes(jpeg_of_scans(100, 80, MAX_SCANS))).shape == (3, 80, 100)
    for path, pixels_HWC in photos.values():
        counts = {}
        for options in ({}, {"progressive": True}, {"progressive": True, "quality": 100, "subsampling": 0}):
            for mode in ("RGB", "L", "CMYK"):
                file = io.BytesIO()
                Image.fromarray(pixels_HWC).convert(mode).save(file, "JPEG", **options)
                scans, ended = jpeg_scans(as_bytes(file.getvalue()))
                assert ended
                counts[mode, bool(options)] = scans
        assert max(counts.values()) <= 18
        assert counts["RGB", False] == 1
        assert counts["RGB", True] == 10
        assert jpeg_scans(as_bytes(path.read_bytes())) == (1, True)


COSTLY = {
    "jpeg of 300 scans": lambda: jpeg_of_scans(4000, 3000, 300),
    "jpeg of 100 scans": lambda: jpeg_of_scans(2000, 1500, 100),
    "gif of 20,000 frames": lambda: gif_of(20_000),
    "gif with a screen of 4 billion pixels": lambda: gif_of(1, (65_535, 65_535)),
    "gif of 1,000 frames on a large screen": lambda: gif_of(1000, (3000, 3000)),
    "png with text of 50 MB": lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "png with a hundred such texts": lambda: png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 100),
    "png with a profile of 200 MB": lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "png of 100,000 texts": lambda: png_with(chunk(b"tEXt", b"a\0b") * 100_000),
    "tiff of 20,000 pages": lambda: tiff_of_pages(20_000),
    "tiff of 65,000 tags": lambda: tiff_of_tags(65_000),
    "tiff with a tag of a million values": lambda: tiff_of_tags(40, 1_000_000),
}
MEASURE = """
import resource, sys, time, warnings
from pathlib import Path
from lit_guide.engine.photos.examine import examine
from lit_guide.parts.look.content import signs
warnings.simplefilter("ignore")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
for path in sorted(Path("good").iterdir()):
    examine(Path(), [str(path)], look=signs)
before, started = peak(), time.process_time()
examine(Path(), [sys.argv[1]], look=signs)
print(peak() - before, time.process_time() - started)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_f38_a_small_file_costs_seconds_and_little_memory(tmp_path, name: str) -> None:
    (tmp_path / "good").mkdir()
    Image.new("RGB", (2000, 1500)).save(tmp_path / "good/1.jpg", progressive=True)
    (tmp_path / "costly.bin").write_bytes(COSTLY[name]())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", MEASURE, "costly.bin"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    mebibytes, seconds = map(float, done.stdout.split())
    assert mebibytes < 250
    assert seconds < 5
