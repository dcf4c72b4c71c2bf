import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from lit_guide.engine.photos import decode as decode_module
from lit_guide.engine.photos.decode import (
    MAX_PIXELS,
    UnreadableImageError,
    decode,
    decode_bytes,
    image_mode,
    jpeg_header,
    read_bytes,
    webp_size,
)
from lit_guide.engine.photos.listing import find_images

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, what Pillow converts to grey with
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What each EXIF orientation asks for, by its definition.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture(name="rgb_HWC")
def small_picture():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photo(photos):
    """A real photo, 160 x 107: odd sides, so that no subsampling of colours comes out even."""
    return Image.fromarray(photos["china.jpg"][1]).resize((160, 107), Image.Resampling.LANCZOS)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def as_bytes(content):
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def as_array(image_CHW):
    assert image_CHW.dtype == torch.uint8
    return image_CHW.permute(1, 2, 0).numpy()


def decoded(content, mode="RGB"):
    return as_array(decode_bytes(as_bytes(content), mode))


def on_white(pixels_HWC, alpha_HW):
    """What is seen of 8 bits a channel where they are transparent, by the definition of alpha."""
    share_HW1 = alpha_HW[:, :, None] / 255
    return (pixels_HWC.reshape(*alpha_HW.shape, -1) * share_HW1 + 255 * (1 - share_HW1) + 0.5).astype(np.uint8)


def by_pillow(content, mode="RGB"):
    with Image.open(io.BytesIO(content)) as file:
        image = ImageOps.exif_transpose(file)
        if mode != "RGBA" and image.has_transparency_data:
            rgba_HWC = np.asarray(image.convert("RGBA"))
            image = Image.fromarray(on_white(rgba_HWC[:, :, :3], rgba_HWC[:, :, 3]))
        pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def assert_close(actual_HWC, expected_HWC, atol=2):
    assert actual_HWC.shape == expected_HWC.shape
    assert np.abs(actual_HWC.astype(int) - expected_HWC.astype(int)).max() <= atol


def refusal(content, mode="RGB"):
    with pytest.raises(UnreadableImageError) as caught:
        decode_bytes(as_bytes(content), mode)
    return str(caught.value)


# --- Files that Pillow does not write


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels_HWC, color_type, *extra, interlaced=False):
    """A PNG of uint8 or uint16 pixels; color_type 0: grey, 2: RGB, 4: grey and alpha, 6: RGBA."""
    height, width = pixels_HWC.shape[:2]
    # Adam7 sends seven smaller images: (first row, first column, step down, step right).
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels_HWC[top::down, left::right] for top, left, down, right in passes] if interlaced else [pixels_HWC]
    big_endian = pixels_HWC.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(big_endian).tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, pixels_HWC.dtype.itemsize * 8, color_type, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def into_png(content, *extra, late=False):
    """A PNG file with more chunks, before or after its pixels."""
    at = len(content) - 12 if late else content.index(b"IDAT") - 4
    return content[:at] + b"".join(extra) + content[at:]


def into_jpeg(content, *segments):
    """A JPEG file with more segments, (marker, content), in front."""
    packed = [bytes([0xFF, marker]) + struct.pack(">H", len(inside) + 2) + inside for marker, inside in segments]
    return content[:2] + b"".join(packed) + content[2:]


def ycck(photo):
    """A JPEG of luma, two chromas and black, as Photoshop saves CMYK images."""
    # The Adobe format stores the inverse of the ink; the luma and chroma are the ink's. Pillow inverts what it writes, too.
    ycc_HWC = np.asarray(ImageOps.invert(photo).convert("YCbCr"))
    inverse_HWC = np.dstack([255 - ycc_HWC, np.zeros(ycc_HWC.shape[:2], dtype=np.uint8)])
    content = bytearray(encoded(Image.fromarray(inverse_HWC, "CMYK"), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2  # the transform: 0 is CMYK, 2 is YCCK
    return bytes(content)


def exif(orientation, order="<"):
    """EXIF data with an orientation and nothing else, without the six bytes that a JPEG puts before them."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def with_alpha(image, mode):
    alpha_HW = np.linspace(0, 255, image.width).astype(np.uint8)[None].repeat(image.height, 0)
    return Image.fromarray(np.dstack([np.asarray(image.convert(mode[:-1])), alpha_HW]), mode)


def palette(image, colors=256):
    return image.quantize(colors, dither=Image.Dither.NONE)


def sixteen_bits(image):
    """uint16 pixels whose lower bytes differ from the upper ones."""
    pixels = np.asarray(image).astype(np.uint16)
    return (pixels << 8) + (255 - pixels)


def first_of_two(image, format, **options):
    other = ImageOps.invert(image)
    return encoded(image, format, save_all=True, append_images=[other], duration=100, **options)


KINDS = {
    "jpeg": lambda photo: encoded(photo, "JPEG"),
    "jpeg-444": lambda photo: encoded(photo, "JPEG", subsampling=0),
    "jpeg-422": lambda photo: encoded(photo, "JPEG", subsampling=1),
    "jpeg-grey": lambda photo: encoded(photo.convert("L"), "JPEG"),
    "jpeg-cmyk": lambda photo: encoded(photo.convert("CMYK"), "JPEG"),
    "jpeg-ycck": ycck,
    "jpeg-keeps-rgb": lambda photo: encoded(photo, "JPEG", keep_rgb=True),
    "jpeg-progressive": lambda photo: encoded(photo, "JPEG", progressive=True),
    "jpeg-restarts": lambda photo: encoded(photo, "JPEG", restart_marker_rows=1),
    "png-rgb": lambda photo: encoded(photo, "PNG"),
    "png-rgba": lambda photo: encoded(with_alpha(photo, "RGBA"), "PNG"),
    "png-palette": lambda photo: encoded(palette(photo), "PNG"),
    "png-palette-16": lambda photo: encoded(palette(photo, 16), "PNG", bits=4),
    "png-palette-alpha": lambda photo: encoded(palette(photo), "PNG", transparency=bytes(range(256))),
    "png-palette-one-clear": lambda photo: encoded(palette(photo), "PNG", transparency=3),
    "png-grey": lambda photo: encoded(photo.convert("L"), "PNG"),
    "png-grey-alpha": lambda photo: encoded(with_alpha(photo, "LA"), "PNG"),
    "png-1-bit": lambda photo: encoded(photo.convert("1"), "PNG"),
    "png-interlaced": lambda photo: png(np.asarray(photo), 2, interlaced=True),
    "png-clear-colour": lambda photo: png(np.asarray(photo), 2, chunk(b"tRNS", struct.pack(">3H", *photo.getpixel((3, 3))))),
    "png-gamma": lambda photo: png(np.asarray(photo), 2, chunk(b"gAMA", struct.pack(">I", 100_000))),
    "webp-lossy": lambda photo: encoded(photo, "WEBP"),
    "webp-lossless": lambda photo: encoded(photo, "WEBP", lossless=True),
    "webp-alpha": lambda photo: encoded(with_alpha(photo, "RGBA"), "WEBP"),
    "webp-alpha-lossless": lambda photo: encoded(with_alpha(photo, "RGBA"), "WEBP", lossless=True),
    "webp-exif": lambda photo: encoded(photo, "WEBP", exif=exif(6)),
    "webp-animated": lambda photo: first_of_two(photo, "WEBP"),
    "gif": lambda photo: encoded(palette(photo), "GIF"),
    "gif-transparent": lambda photo: encoded(palette(photo), "GIF", transparency=5),
    "gif-animated": lambda photo: first_of_two(photo, "GIF"),
    "bmp": lambda photo: encoded(photo, "BMP"),
    "bmp-palette": lambda photo: encoded(palette(photo), "BMP"),
    "bmp-1-bit": lambda photo: encoded(photo.convert("1"), "BMP"),
    "bmp-alpha": lambda photo: encoded(with_alpha(photo, "RGBA"), "BMP"),
    "tiff": lambda photo: encoded(photo, "TIFF"),
    "tiff-alpha": lambda photo: encoded(with_alpha(photo, "RGBA"), "TIFF"),
    "tiff-cmyk": lambda photo: encoded(photo.convert("CMYK"), "TIFF"),
    "tiff-lzw": lambda photo: encoded(photo, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda photo: encoded(photo, "TIFF", compression="jpeg"),
    "tiff-1-bit": lambda photo: encoded(photo.convert("1"), "TIFF", compression="group4"),
}
SIXTEEN = {
    "png-grey": (lambda pixels_HW: png(pixels_HW, 0), "L"),
    "png-rgb": (lambda pixels_HWC: png(pixels_HWC, 2), "RGB"),
    "png-grey-alpha": (lambda pixels_HW: png(np.dstack([pixels_HW, pixels_HW[:, ::-1]]), 4), "L"),
    "png-rgba": (lambda pixels_HWC: png(np.dstack([pixels_HWC, pixels_HWC[:, ::-1, :1]]), 6), "RGB"),
    "png-interlaced": (lambda pixels_HW: png(pixels_HW, 0, interlaced=True), "L"),
    "tiff-grey": (lambda pixels_HW: encoded(Image.fromarray(pixels_HW), "TIFF"), "L"),
}


# --- F15: values


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photos_are_decoded_as_scikit_learn_does(photos, name):
    path, pixels_HWC = photos[name]
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), pixels_HWC)
    grey_HW = pixels_HWC @ LUMA
    assert np.abs(as_array(decode(path, "L"))[:, :, 0] - grey_HW).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_f15_every_kind_of_file_is_decoded_as_pillow_does(tmp_path, photo, kind):
    content = KINDS[kind](photo)
    path = tmp_path / "image.bin"
    path.write_bytes(content)
    assert_close(as_array(decode(path)), by_pillow(content))


@pytest.mark.parametrize("kind", KINDS)
def test_f15_every_kind_of_file_looks_like_the_photo_it_was_made_of(photo, kind):
    expected_HWC = np.asarray(photo)
    actual_HWC = decoded(KINDS[kind](photo))
    if kind == "webp-exif":
        expected_HWC = UPRIGHT[6](expected_HWC)
    if "grey" in kind or "1-bit" in kind:
        expected_HWC = (expected_HWC @ LUMA)[:, :, None]
    if "alpha" in kind or "rgba" in kind:
        with Image.open(io.BytesIO(KINDS[kind](photo))) as file:
            expected_HWC = on_white(expected_HWC, np.asarray(file.convert("RGBA"))[:, :, 3])
    # Compression, 256 colours and black dots change a pixel far more than the mean of a block.
    limit = 24 if "1-bit" in kind else 6
    blocks = [array[:104, :104].reshape(13, 8, 13, 8, -1).mean((1, 3)) for array in (actual_HWC, expected_HWC)]
    assert np.abs(blocks[0] - blocks[1]).mean() < limit


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("kind", KINDS)
def test_f15_other_channels_are_what_pillow_makes_of_the_file(photo, kind, mode):
    content = KINDS[kind](photo)
    assert_close(decoded(content, mode), by_pillow(content, mode))


@pytest.mark.parametrize("kind", SIXTEEN)
def test_f15_sixteen_bits_are_scaled_not_clipped(photo, kind):
    make, mode = SIXTEEN[kind]
    pixels = sixteen_bits(photo.convert(mode))
    actual_HWC = decoded(make(pixels))
    expected_HWC = (pixels >> 8).reshape(*pixels.shape[:2], -1)
    if kind in ("png-rgba", "png-grey-alpha"):
        expected_HWC = on_white(expected_HWC, expected_HWC[:, ::-1, 0])
        assert_close(actual_HWC, np.broadcast_to(expected_HWC, actual_HWC.shape))
        return
    np.testing.assert_array_equal(actual_HWC, np.broadcast_to(expected_HWC, actual_HWC.shape))
    assert_close(decoded(make(pixels), mode), expected_HWC)


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_f15_sixteen_bits_at_the_edges(tmp_path, name):
    pixels_HW = np.array([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(pixels_HW), name)
    with Image.open(path) as file:
        assert file.mode.startswith("I")
    np.testing.assert_array_equal(decode(path, "L")[0].numpy(), pixels_HW // 256)
    np.testing.assert_array_equal(decode(path, "RGB")[2].numpy(), pixels_HW // 256)


def test_rgb_stays_exact_and_gets_an_opaque_fourth_channel(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), rgb_HWC)
    rgba_HWC = as_array(decode(path, "RGBA"))
    np.testing.assert_array_equal(rgba_HWC[:, :, :3], rgb_HWC)
    assert (rgba_HWC[:, :, 3] == 255).all()


def test_grey_is_repeated_in_every_colour(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC[:, :, 0]))
    grey_1HW = decode(path, "L")
    assert grey_1HW.shape == (1, 5, 7)
    np.testing.assert_array_equal(grey_1HW[0].numpy(), rgb_HWC[:, :, 0])
    assert torch.equal(decode(path, "RGB"), grey_1HW.expand(3, -1, -1))


def test_f52_transparent_pixels_lie_on_white_but_for_four_channels(tmp_path, rgb_HWC):
    alpha_HW = np.array([0, 1, 128, 200, 254, 255, 255], dtype=np.uint8)[None].repeat(5, 0)
    rgba_HWC = np.dstack([rgb_HWC, alpha_HW])
    path = saved(tmp_path, Image.fromarray(rgba_HWC))
    assert_close(as_array(decode(path, "RGB")), on_white(rgb_HWC, alpha_HW), atol=1)
    assert (as_array(decode(path, "RGB"))[:, 0] == 255).all()
    np.testing.assert_array_equal(as_array(decode(path, "RGB"))[:, 5:], rgb_HWC[:, 5:])
    np.testing.assert_array_equal(as_array(decode(path, "RGBA")), rgba_HWC)


def test_f15_palette_indices_become_their_colours(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([2, 0, 1])
    path = saved(tmp_path, image)
    assert as_array(decode(path, "RGB")).tolist() == [[[10, 20, 30], [255, 0, 0], [0, 255, 0]]]


def test_f15_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    path = saved(tmp_path, image, "image.jpg", quality=100)
    assert_close(as_array(decode(path, "RGB")), np.broadcast_to([255, 0, 0], (16, 16, 3)))


def test_f15_one_bit_is_black_and_white(tmp_path):
    image = Image.new("1", (3, 1))
    image.putdata([0, 255, 0])
    path = saved(tmp_path, image)
    assert decode(path, "L").tolist() == [[[0, 255, 0]]]
    assert as_array(decode(path, "RGB")).tolist() == [[[0] * 3, [255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["gif-animated", "webp-animated"])
def test_f15_of_an_animation_the_first_frame_is_taken(photo, kind):
    content = KINDS[kind](photo)
    with Image.open(io.BytesIO(content)) as file:
        assert file.n_frames == 2
        file.seek(1)
        second_HWC = np.asarray(file.convert("RGB")).astype(int)
    actual_HWC = decoded(content)
    assert np.abs(actual_HWC - np.asarray(photo).astype(int)).mean() < 12  # of 256 colours, or lossy
    assert np.abs(actual_HWC - second_HWC).mean() > 50


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "png-rgb", "webp-lossy", "webp-lossless", "gif", "bmp", "tiff"])
def test_f15_images_of_one_pixel_or_one_line(photo, kind, size):
    content = KINDS[kind](photo.resize(size))
    assert decoded(content).shape == (size[1], size[0], 3)
    assert_close(decoded(content), by_pillow(content))


@pytest.mark.parametrize(
    ("format", "name"), [("PNG", "a.jpg"), ("JPEG", "a.png"), ("WEBP", "a.gif"), ("GIF", "a"), ("BMP", "a.txt")]
)
def test_f15_the_content_tells_the_format_not_the_name(tmp_path, photo, format, name):
    path = tmp_path / name
    path.write_bytes(encoded(photo, format))
    assert_close(as_array(decode(path)), by_pillow(path.read_bytes()))


@pytest.mark.parametrize("name", [b"\xff\xfe odd.png", "фото 照片 🖼.png".encode()])
def test_names_of_any_bytes_can_be_read(tmp_path, rgb_HWC, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    try:
        path.write_bytes(encoded(Image.fromarray(rgb_HWC), "PNG"))
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    np.testing.assert_array_equal(as_array(decode(path)), rgb_HWC)


# --- F15: orientation


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_f15_photos_are_turned_upright(photos, format, orientation):
    options = {"PNG": {"compress_level": 1}, "WEBP": {"lossless": True, "quality": 0, "method": 0}}.get(format, {})
    tag = Image.Exif()
    tag[0x0112] = orientation
    stored = Image.fromarray(photos["flower.jpg"][1]).reduce(2)
    content = encoded(stored, format, exif=tag, **options)
    actual_HWC = decoded(content)
    assert_close(actual_HWC, by_pillow(content))
    assert_close(actual_HWC, UPRIGHT[orientation](decoded(encoded(stored, format, **options))))
    assert_close(decoded(content, "L"), by_pillow(content, "L"))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("order", ["<", ">"])
def test_f15_a_camera_file_is_turned_upright_in_either_byte_order(photos, orientation, order):
    path, pixels_HWC = photos["china.jpg"]
    content = into_jpeg(path.read_bytes(), (0xE1, b"Exif\0\0" + exif(orientation, order)))
    np.testing.assert_array_equal(decoded(content), UPRIGHT[orientation](pixels_HWC))


XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
HEX_EXIF = b"\nexif\n%8d\n%s\n" % (len(exif(6)) + 6, (b"Exif\0\0" + exif(6)).hex().encode())
# Where orientation 6 may be found beside the usual place.
ODD_PLACES = {
    "jpeg, after other XMP": lambda jpeg, _: into_jpeg(jpeg, (0xE1, XMP_HEAD + b"<x/>"), (0xE1, b"Exif\0\0" + exif(6))),
    "jpeg, in XMP": lambda jpeg, _: into_jpeg(jpeg, (0xE1, XMP_HEAD + xmp(6))),
    "jpeg, in XMP after empty EXIF": lambda jpeg, _: into_jpeg(
        jpeg, (0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), (0xE1, XMP_HEAD + xmp(6))
    ),
    "jpeg, EXIF before XMP": lambda jpeg, _: into_jpeg(jpeg, (0xE1, b"Exif\0\0" + exif(6)), (0xE1, XMP_HEAD + xmp(1))),
    "jpeg, after padding": lambda jpeg, _: jpeg[:2] + b"\xff\xff" + into_jpeg(jpeg, (0xE1, b"Exif\0\0" + exif(6)))[2:],
    "png, before the pixels": lambda _, png: into_png(png, chunk(b"eXIf", exif(6, ">"))),
    "png, after the pixels": lambda _, png: into_png(png, chunk(b"eXIf", exif(6)), late=True),
    "png, as text": lambda _, png: into_png(png, chunk(b"tEXt", b"Raw profile type exif\0" + HEX_EXIF)),
    "png, as compressed text": lambda _, png: into_png(
        png, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX_EXIF)), late=True
    ),
    "png, in XMP": lambda _, png: into_png(png, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
}


@pytest.mark.parametrize("place", ODD_PLACES)
def test_f15_the_orientation_is_found_wherever_pillow_finds_it(photo, place):
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    content = ODD_PLACES[place](jpeg, png)
    expected_HWC = UPRIGHT[6](decoded(png if place.startswith("png") else jpeg))
    assert_close(by_pillow(content), expected_HWC)
    assert_close(decoded(content), expected_HWC)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_f15_an_orientation_that_does_not_exist_changes_nothing(photo, orientation):
    jpeg = encoded(photo, "JPEG")
    content = into_jpeg(jpeg, (0xE1, b"Exif\0\0" + exif(orientation)))
    np.testing.assert_array_equal(decoded(content), decoded(jpeg))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("data", [b"", b"garbage, and more garbage", exif(6)[:18], exif(6)[:8] + b"\xff" * 40])
def test_exif_data_that_cannot_be_read_do_not_cost_the_image(photo, data, mode):
    jpeg, png, webp = (encoded(photo, format) for format in ("JPEG", "PNG", "WEBP"))
    for clean, content in (
        (jpeg, into_jpeg(jpeg, (0xE1, b"Exif\0\0" + data))),
        (png, into_png(png, chunk(b"eXIf", data))),
        (webp, encoded(photo, "WEBP", exif=data)),
    ):
        assert_close(decoded(content, mode), decoded(clean, mode))


def test_turned_sixteen_bit_greys_keep_their_values(photo):
    pixels_HW = sixteen_bits(photo.convert("L"))
    content = png(pixels_HW, 0, chunk(b"eXIf", exif(8)))
    np.testing.assert_array_equal(decoded(content, "L")[:, :, 0], UPRIGHT[8](pixels_HW >> 8))
    np.testing.assert_array_equal(decoded(content)[:, :, 1], UPRIGHT[8](pixels_HW >> 8))


# --- Headers


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_modes_in_headers_are_pillows(photo, kind):
    content = KINDS[kind](photo)
    with Image.open(io.BytesIO(content)) as file:
        size, mode, bands = file.size, file.mode, len(file.getbands())
    data = as_bytes(content)
    assert jpeg_header(data) == ((*size, bands) if kind.startswith("jpeg") else (0, 0, 0))
    assert webp_size(content[:32]) == (size if kind in ("webp-lossy", "webp-lossless") else (0, 0))
    assert image_mode(data) == mode


@pytest.mark.parametrize("kind", SIXTEEN)
def test_the_mode_of_sixteen_bits_is_pillows(photo, kind):
    make, mode = SIXTEEN[kind]
    content = make(sixteen_bits(photo.convert(mode)))
    with Image.open(io.BytesIO(content)) as file:
        assert image_mode(as_bytes(content)) == file.mode


def test_the_mode_of_a_jpeg_with_an_odd_header_is_pillows(photo):
    jpeg = encoded(photo.convert("L"), "JPEG")
    content = jpeg[:20] + b"\xff\xd0" + jpeg[20:]
    assert jpeg_header(as_bytes(content)) == (0, 0, 0)
    assert image_mode(as_bytes(content)) == "L"


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (16383, 1), (1, 16383)])
def test_sizes_beyond_a_byte_are_read_right(photo, size):
    image = photo.resize(size)
    assert jpeg_header(as_bytes(encoded(image, "JPEG"))) == (*size, 3)
    assert webp_size(encoded(image, "WEBP", method=0)) == size
    assert webp_size(encoded(image, "WEBP", lossless=True, quality=0, method=0)) == size


def test_a_frame_is_found_behind_padding_and_other_segments(photo):
    jpeg = encoded(photo, "JPEG")
    huffman_table = (0xC4, bytes(17))  # its marker is among those of frames
    assert jpeg_header(as_bytes(into_jpeg(jpeg, huffman_table, (0xFE, b"a comment")))) == (*photo.size, 3)
    assert jpeg_header(as_bytes(jpeg[:2] + b"\xff\xff\xff" + jpeg[2:])) == (*photo.size, 3)
    assert jpeg_header(as_bytes(jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :])) == (0, 0, 0)


def test_a_header_cut_anywhere_gives_zeros_or_the_size(photo):
    jpeg = encoded(photo, "JPEG", exif=exif(1))
    frame_end = jpeg.index(b"\xff\xc0") + 10
    for length in range(3, frame_end + 20):
        assert jpeg_header(as_bytes(jpeg[:length])) == ((0, 0, 0) if length < frame_end else (*photo.size, 3))


# --- F13: files that are broken or no images


BROKEN = ["jpeg", "jpeg-grey", "jpeg-cmyk", "jpeg-progressive", "jpeg-restarts", "png-rgb", "png-palette", "png-grey-alpha"]
BROKEN += ["png-interlaced", "webp-lossy", "webp-lossless", "webp-alpha", "gif", "bmp", "tiff", "tiff-lzw"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", BROKEN)
def test_f13_a_truncated_file_is_an_error(photo, kind, mode):
    content = KINDS[kind](photo)
    for share in (0.002, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
        reason = refusal(content[: max(1, int(share * len(content)))], mode)
        assert reason == "not an image" or reason.startswith(("broken: ", "broken, or"))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_f13_a_photo_that_lacks_its_end_is_no_half_grey_image(photos, name):
    content = photos[name][0].read_bytes()
    for missing in (1, 2, 3, 10, 100, 1000, 10_000, len(content) // 2):
        assert "truncated" in refusal(content[:-missing])
    for missing in (10, 100, 1000, 10_000, len(content) // 2):
        assert "truncated" in refusal(content[:-missing] + bytes(missing))  # as an interrupted download leaves it


@pytest.mark.parametrize("kind", BROKEN)
def test_f13_a_file_cut_anywhere_is_an_error_or_has_all_its_pixels(photo, kind):
    content = KINDS[kind](photo.resize((15, 11)))
    whole_HWC = decoded(content)
    complete = 0
    for length in range(1, len(content)):
        try:
            actual_HWC = decoded(content[:length])
        except UnreadableImageError:
            continue
        complete += 1
        np.testing.assert_array_equal(actual_HWC, whole_HWC)
    assert complete <= 24  # a PNG's end mark and the checksums before it, a GIF's last two bytes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image, but text\n" * 50, "not an image, but text"),
        (
            b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
            "a web page in place of the image: get the file again",
        ),
        (b"\0" * 5000, "not an image"),
        (b"\xff\xd8\xff", "broken, or of a kind not read here, such as 12 bits: save it anew"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "PDF, a document: save its pages as PNG"),
        (b"PK\x03\x04" + bytes(100), "an archive, or a document of Office: unpack it"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "not an image"),
        (b"G", "not an image"),
    ],
)
def test_f13_what_is_no_image_is_called_so(tmp_path, content, reason):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    for mode in ("RGB", "L", "RGBA"):
        with pytest.raises(UnreadableImageError, match=f"^{reason}$"):
            decode(path, mode)


def test_f13_empty_missing_folder_and_forbidden_are_told_apart(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (
        ("empty.jpg", "empty file"),
        ("folder.jpg", "is a directory"),
        ("gone.jpg", "no such file or directory"),
        ("empty.jpg/inside.jpg", "not a directory"),
    ):
        with pytest.raises(UnreadableImageError, match=f"^{reason}$"):
            read_bytes(tmp_path / name)
        with pytest.raises(UnreadableImageError, match=f"^{reason}$"):
            decode(tmp_path / name)


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
        SIGNATURE,
        b"RIFF\xff\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"BM",
        b"II*\0\x08\0\0\0",
    ],
)
def test_f13_random_bytes_after_a_true_start_are_an_error(start, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 10**6)
    for seed in range(20):
        refusal(start + np.random.default_rng(seed).bytes(2000))


# The decoders of these say on stderr what they make of damage, so that a crash in one is not lost in it.
@pytest.mark.parametrize("kind", [*BROKEN, "jpeg-ycck", "webp-animated", "gif-animated", "png-1-bit"])
def test_f13_damage_anywhere_gives_an_image_or_an_error_and_nothing_else(photo, kind, monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 10**6)
    whole = KINDS[kind](photo)
    errors = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        at = int(rng.integers(0, len(content)))
        if seed % 3 == 0:
            content[at : at + 200] = rng.bytes(200)
        elif seed % 3 == 1:
            content[at : at + 8] = rng.bytes(8)
        else:
            del content[at : at + int(rng.integers(1, 50))]
        try:
            actual_HWC = decoded(content)
        except UnreadableImageError:
            errors += 1
        else:
            assert actual_HWC.shape[2] == 3
    assert errors


def test_f13_garbage_in_the_middle_of_a_photo_does_not_crash(photos):
    path, pixels_HWC = photos["china.jpg"]
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 4000] = np.random.default_rng(0).bytes(4000).replace(b"\xff", b"\xfe")
    actual_HWC = decoded(content)  # libjpeg goes on after it, and so does Pillow
    assert_close(actual_HWC, by_pillow(bytes(content)))
    np.testing.assert_array_equal(actual_HWC[:150], pixels_HWC[:150])


def test_postscript_is_not_run(photo, monkeypatch):
    def run_ghostscript(*_args, **_kwargs):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run_ghostscript)
    assert refusal(encoded(photo, "EPS")) == "PostScript, a program that is not run: save it as PNG"


# --- F14: bombs


def patched(content, at, format, *values):
    content = bytearray(content)
    struct.pack_into(format, content, at, *values)
    return bytes(content)


def jpeg_claiming(width, height, **options):
    content = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", **options)
    frame = content.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0")
    return patched(content, frame + 5, ">HH", height, width)


def tiff_claiming(width, height):
    content = encoded(Image.new("RGB", (8, 8), "red"), "TIFF", compression="tiff_deflate")
    (directory,) = struct.unpack_from("<I", content, 4)
    for entry in range(directory + 2, len(content) - 12, 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257):
            content = patched(content, entry + 2, "<HII", 4, 1, width if tag == 256 else height)
    return content


def bombs():
    """name -> (content, pixels it claims): a few hundred bytes each."""
    red = Image.new("RGB", (8, 8), "red")
    gif, vp8 = encoded(red, "GIF"), encoded(red, "WEBP")
    n = 50_000
    made = {
        "png": png(np.zeros((1, 1, 3), dtype=np.uint8), 2).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", n, n, 8, 2, 0, 0, 0)),
        ),
        "jpeg": jpeg_claiming(n, n),
        "jpeg, progressive": jpeg_claiming(n, n, progressive=True),
        "gif, screen": patched(gif, 6, "<HH", n, n),
        "gif, frame": patched(gif, gif.index(b"\x2c\0\0\0\0") + 5, "<HH", n, n),
        "bmp": patched(encoded(red, "BMP"), 18, "<ii", n, n),
        "tiff": tiff_claiming(n, n),
        "webp, animated": patched(first_of_two(red, "WEBP"), 24, "<HBHB", (n - 1) & 0xFFFF, 0, (n - 1) & 0xFFFF, 0),
    }
    claims = {name: (content, n * n) for name, content in made.items()}
    claims["webp, lossy"] = patched(vp8, vp8.index(b"\x9d\x01\x2a") + 3, "<HH", 16383, 16383), 16383**2
    # A whole image of one colour: 38 bytes become 805 MB.
    solid = "524946461e000000574542505650384c11000000" + "2fffffff0f07d0842634a1ff8188e87f0000"
    claims["webp, lossless"] = bytes.fromhex(solid), 16384 * 16384
    return claims


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", bombs())
def test_f14_a_bomb_is_refused_with_its_number_of_pixels(name, mode):
    content, pixels = bombs()[name]
    assert len(content) < 1000
    reason = refusal(content, mode)
    assert f"{pixels:,}" in reason or str(pixels) in reason
    assert not reason.startswith("broken")


@pytest.mark.parametrize("kind", [*KINDS, "jpeg-odd"])
def test_f14_the_limit_holds_for_every_kind_of_file(photo, kind, monkeypatch):
    jpeg = encoded(photo, "JPEG")
    content = jpeg[:20] + b"\xff\xd0" + jpeg[20:] if kind == "jpeg-odd" else KINDS[kind](photo)
    count = photo.width * photo.height
    monkeypatch.setattr(decode_module, "MAX_PIXELS", count)
    assert decoded(content).size == 3 * count
    monkeypatch.setattr(decode_module, "MAX_PIXELS", count - 1)
    for mode in ("RGB", "L"):
        assert refusal(content, mode) == f"160 x 107 is {count:,} pixels, more than the {count - 1:,} taken as safe"


def test_f14_the_limit_is_pillows():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS == 89_478_485


HIDDEN = {
    # libjpeg reads on after each of these; the size after it is the true one.
    "a mark without length": lambda bomb: bomb[:20] + b"\xff\x01" + bomb[20:],
    "a restart mark": lambda bomb: bomb[:20] + b"\xff\xd0" + bomb[20:],
    "junk between segments": lambda bomb: bomb[:20] + b"junk" + bomb[20:],
    "a false frame behind a restart mark": lambda bomb: (
        bomb[:20] + b"\xff\xd0" + bomb[20:-2].ljust(0xFFDB, b"\0") + jpeg_claiming(8, 8)[2:] + bomb[-2:]
    ),
}


@pytest.mark.parametrize("trick", HIDDEN)
def test_f14_a_jpeg_cannot_hide_its_size(trick, monkeypatch):
    torchvision_got = []
    monkeypatch.setattr(decode_module, "decode_jpeg", lambda data, *args, **kwargs: torchvision_got.append(data))
    refusal(HIDDEN[trick](jpeg_claiming(50_000, 50_000)))
    assert not torchvision_got


def test_f14_a_png_cannot_hide_its_size():
    bomb, _ = bombs()["png"]
    decoy = chunk(b"prVt", bytes([0, 0, 0, 1, 0, 0, 0, 1]))
    refusal(SIGNATURE + decoy + bomb[8:])


MEASURE = """
import resource, sys, warnings
from pathlib import Path
from lit_guide.engine.photos.decode import UnreadableImageError, decode
warnings.simplefilter("ignore")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for path in sorted(Path("good").iterdir()):
    decode(path), decode(path, "L")
before = peak()
for path in sorted(Path("bombs").iterdir()):
    for mode in ("RGB", "L"):
        try:
            decode(path, mode)
        except UnreadableImageError:
            continue
        sys.exit(f"{path} was decoded")
print((peak() - before) >> 20)
"""


@pytest.mark.slow
def test_f14_bombs_take_no_memory(tmp_path, photo):
    for folder in ("good", "bombs"):
        (tmp_path / folder).mkdir()
    for number, kind in enumerate(KINDS):
        (tmp_path / "good" / f"{number}.bin").write_bytes(KINDS[kind](photo))
    hidden = [trick(jpeg_claiming(50_000, 50_000)) for trick in HIDDEN.values()]
    for number, content in enumerate([*(content for content, _ in bombs().values()), *hidden]):
        (tmp_path / "bombs" / f"{number}.bin").write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 150


# --- find_images


@pytest.fixture
def album(tmp_path, rgb_HWC):
    image = Image.fromarray(rgb_HWC)
    folder = tmp_path / "album"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "none").mkdir()
    for name in ("z.png", "a.JPG", "b/deep/c.webp"):
        image.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "none" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    (folder / "folder.png").mkdir()
    return folder


def test_f47_a_folder_stands_for_its_files_at_any_depth_in_order(album):
    expected = ["a.JPG", "notes.txt", "z.png", "b/deep/c.webp", "none/notes.txt"]
    assert find_images([str(album)]) == ([album / name for name in expected], {})


def test_files_keep_the_order_they_are_given_in(album):
    given = [str(album / "z.png"), str(album / "b"), str(album / "a.JPG")]
    assert find_images(given)[0] == [album / "z.png", album / "b/deep/c.webp", album / "a.JPG"]


def test_a_file_given_by_name_is_taken_whatever_it_is_called(album):
    assert find_images([str(album / "notes.txt")]) == ([album / "notes.txt"], {})


def test_missing_paths_and_folders_without_files_are_told_with_the_reason(album):
    files_, missing = find_images([str(album / "gone.png"), str(album / "empty"), str(album / "z.png")])
    assert files_ == [album / "z.png"]
    assert missing == {
        str(album / "gone.png"): "no such file or folder",
        str(album / "empty"): "no image files in this folder",
    }


# --- brightness alone


def test_a_colour_jpeg_may_come_as_its_brightness(photos, tmp_path):
    path = saved(tmp_path, Image.fromarray(photos["flower.jpg"][1]), "again.jpg", quality=90)
    colour_3HW, grey_1HW = decode_bytes(read_bytes(path)), decode_bytes(read_bytes(path), brightness=True)
    assert (colour_3HW.shape, grey_1HW.shape) == ((3, 427, 640), (1, 427, 640))
    # Colours that RGB can't hold differ by more.
    assert np.abs(grey_1HW[0].numpy() - colour_3HW.permute(1, 2, 0).numpy() @ LUMA).mean() < 0.5


def test_f13_a_jpeg_is_refused_for_the_same_reason_without_its_colours(photos):
    whole = np.fromfile(photos["china.jpg"][0], dtype=np.uint8)
    for end in (30, 700, len(whole) // 2, len(whole) - 200):
        reasons = set()
        for brightness in (False, True):
            with pytest.raises(UnreadableImageError) as caught:
                decode_bytes(whole[:end], brightness=brightness)
            reasons.add(str(caught.value))
        assert len(reasons) == 1


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("RGB", "a.png"), ("RGB", "a.webp")])
def test_other_files_come_in_colour_all_the_same(photos, tmp_path, mode, name):
    Image.fromarray(photos["flower.jpg"][1][:50, :60]).convert(mode).save(tmp_path / name)
    data = read_bytes(tmp_path / name)
    assert torch.equal(decode_bytes(data, brightness=True), decode_bytes(data))


# --- what is not read


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_f13_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match="not a file"):
        decode(tmp_path / "pipe.jpg")


def test_f14_a_film_between_the_images_is_not_read(tmp_path):
    with (tmp_path / "film.mov").open("wb") as file:
        file.truncate(decode_module.MAX_BYTES + 1)  # a hole: it takes no room
    with pytest.raises(UnreadableImageError, match=r"^357,913,941 bytes, more than the 357,913,940 taken for an image"):
        decode(tmp_path / "film.mov")


def test_f15_floating_point_pixels_are_refused_not_made_black(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)), "image.tif")
    with pytest.raises(UnreadableImageError, match="floating point pixels"):
        decode(path)


def test_a_name_that_no_file_can_have_is_a_bad_file():
    with pytest.raises(UnreadableImageError, match="no file can have this name"):
        decode("a\0b.jpg")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_photo_of_an_iphone_is_refused_by_its_name(tmp_path, brand):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 200)
    with pytest.raises(UnreadableImageError, match="HEIC, which needs pi-heif, or broken: pip install pi-heif"):
        decode(tmp_path / "a.heic")
