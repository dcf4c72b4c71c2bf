"""What Pillow does not read is called by its name, with what to do; and what only looks like an image is none."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_guide.engine.photos.decode import UnreadableImageError, decode, decode_bytes, format_of
from tests.engine.photos.files import HEIC, tiff

HEAD = "<?xml version='1.0' encoding='UTF-8'?>\n<!-- made by hand -->\n"
DOCTYPE = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n'
LICENCE = "<!-- " + "as is, " * 200 + "-->"
SVG = "<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
FILES = {
    "DICOM": [bytes(128) + b"DICM\x02\0\0\0UL\x04\0" + bytes(300), b"II*\0" + bytes(124) + b"DICM" + bytes(50)],
    "JPEG XL": [b"\xff\x0a\xfa\x1f" + bytes(60), b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a" + bytes(60)],
    "AVIF": [b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(90)],
    "HEIC": [
        b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + bytes(90) for brand in (b"heic", b"heix", b"hevc", b"heis", b"mif1", b"msf1")
    ],
    "camera raw": [
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(90),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(90),
        b"IIU\0\x18\0\0\0" + bytes(90),
        b"IIRO\x08\0\0\0" + bytes(90),
        b"FUJIFILMCCD-RAW 0201" + bytes(90),
        tiff(np.zeros((4, 6, 3), np.uint8), tags={254: (4, [1]), 330: (4, [200])}),  # a thumbnail first: NEF, ARW
        tiff(np.zeros((4, 6, 3), np.uint8), tags={50706: (1, [1, 4, 0, 0])}),  # DNG
    ],
    "TIFF": [
        tiff(np.ones((4, 6, 3), np.float32)),
        tiff(np.ones((4, 6), np.float64)),
        tiff(np.ones((4, 6), np.float16)),
        tiff(np.ones((4, 6), np.uint64)),
        tiff(np.ones((4, 6, 5), np.uint8), tags={262: (3, [1])}),
        tiff(np.ones((4, 6, 5), np.uint16), ">"),
        tiff(np.ones((4, 6), np.uint8), tags={262: (3, [32803])}),  # a colour filter array
        b"II+\0\x08\0\0\0" + bytes(60),  # BigTIFF without a directory
    ],
    "OpenEXR": [b"v/1\x01\x02\0\0\0channels\0" + bytes(90), b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 2\n" + bytes(90)],
    "PDF": [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", b"%PDF-1.4\n1 0 obj << >> endobj"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"\xc5\xd0\xd3\xc6" + bytes(40)],
    "SVG": [text.encode() for text in (SVG, f"\ufeff{SVG}", f"\n {SVG}", HEAD + SVG, HEAD + DOCTYPE + SVG, LICENCE + SVG)],
    "a Git LFS pointer": [POINTER],
    "a web page": [
        b"<!DOCTYPE html>\n<html><svg></svg></html>",
        b"\n\n  <html lang='en'><body>404</body></html>",
        "\ufeff<!doctype HTML><title>Sign in</title>".encode(),
        b"<script>location = 'login'</script>",
    ],
    "an archive": [
        b"PK\x03\x04" + bytes(40),
        b"\x1f\x8b\x08" + bytes(40),
        b"Rar!\x1a\x07" + bytes(40),
        b"7z\xbc\xaf\x27\x1c" + bytes(40),
    ],
    "a film": [b"\0\0\0\x20ftypisom" + bytes(40), b"RIFF\x24\0\0\0AVI LIST" + bytes(40), b"\x1aE\xdf\xa3" + bytes(40)],
    "not an image, but text": [
        b"path,label\na.png,cat\n",
        "猫的照片在另一个文件夹里。\n".encode(),
        b'{"error": {"code": 403, "message": "Forbidden"}}',
        b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
        b"caf\xe9, ol\xe9, d\xe9j\xe0 vu\r\n",
        b"long " * 2000,
    ],
    "broken, or of a kind not read here": [b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"8BPS\0\1" + bytes(40)],
    "not an image": [
        b"\0" * 500,
        b"G",
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        zlib.compress(b"x" * 999),
    ],
}
CASES = [(name, at) for name, files in FILES.items() for at in range(len(files))]


def refusal(content: bytes, mode: str = "RGB") -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode_bytes(np.frombuffer(bytearray(content), np.uint8), mode)
    return str(caught.value)


@pytest.mark.parametrize(("name", "at"), CASES)
def test_f53_what_is_not_read_is_called_by_its_name(name: str, at: int) -> None:
    for mode in ("RGB", "L"):
        reason = refusal(FILES[name][at], mode)
        assert reason.startswith(name)
        assert (": " in reason) == (not name.startswith("not an image"))  # what to do


def test_f53_the_stored_order_of_the_table_decides_where_two_marks_fit() -> None:
    avif_in_heif = np.frombuffer(FILES["AVIF"][0], np.uint8)
    assert format_of(avif_in_heif).startswith("AVIF")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_f53_a_tiff_that_lost_its_end_may_be_cut_off() -> None:
    whole = tiff(np.ones((40, 60, 3), np.uint8))
    assert "cut off" in refusal(whole[:4] + b"\xff\xff\xff\x7f" + whole[8:])  # its directory is beyond the end
    assert refusal(whole[:-100]).startswith("broken: ")


def test_f53_fits_is_refused_whatever_is_in_it() -> None:
    """Its 16 bits are signed, and Pillow takes them as unsigned."""
    cards = [b"SIMPLE  =                    T", b"BITPIX  =                   16", b"NAXIS   =                    2"]
    cards += [b"NAXIS1  =                    2", b"NAXIS2  =                    1", b"END"]
    header = b"".join(card.ljust(80) for card in cards).ljust(2880)
    assert refusal(header + np.array([-5, 5], ">i2").tobytes().ljust(2880, b"\0")).startswith("OpenEXR, HDR or FITS")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI"])
def test_f53_what_pillow_reads_is_still_read(format: str) -> None:
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    image.save(file, format)
    with Image.open(io.BytesIO(file.getvalue())) as again:
        expected = np.asarray(again.convert("RGB"))
    actual = decode_bytes(np.frombuffer(bytearray(file.getvalue()), np.uint8)).permute(1, 2, 0).numpy()
    assert np.abs(actual.astype(int) - expected).max() <= 2


def test_f53_a_pyramid_whose_first_image_is_whole_is_read(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(pixels, tags={254: (4, [0]), 330: (4, [200])}))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").permute(1, 2, 0).numpy(), pixels)


def test_f52_a_heic_photo_is_read_upright(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    y, x = np.mgrid[:60, :80]
    pixels_CHW = np.stack([x * 3, y * 4, (x + y) // 2 * 3])
    (tmp_path / "a.heic").write_bytes(HEIC)
    image_CHW = decode(tmp_path / "a.heic")
    assert image_CHW.shape == (3, 60, 80)
    assert np.abs(image_CHW.numpy().astype(int) - pixels_CHW).mean() < 3
    (tmp_path / "cut.heic").write_bytes(HEIC[:-200])
    with pytest.raises(UnreadableImageError, match="broken"):
        decode(tmp_path / "cut.heic")


@pytest.mark.slow
def test_f52_a_heic_photo_is_called_by_its_name_where_pi_heif_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    code = "import sys; sys.modules['pi_heif'] = None; from lit_guide.engine.photos.decode import decode; decode(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.heic"], capture_output=True, encoding="utf-8", check=False)
    assert "HEIC, which needs pi-heif, or broken: pip install pi-heif, or save it as JPEG" in done.stderr
