"""Image files as tensors: any format and mode, upright, 8 bits a channel.

torchvision decodes JPEG and WebP, faster than Pillow and to the same values; Pillow decodes the rest. PNG is among the rest
because torchvision's decoder (seen in 0.29.2) ends the whole process with a segmentation fault when a file is damaged.
"""

import io
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

from lit_guide.engine.photos.listing import files_below

# Larger images are taken for decompression bombs: Pillow's limit, 89 million pixels (268 MB once decoded).
MAX_PIXELS = int(Image.MAX_IMAGE_PIXELS or 89_478_485)
MAX_BYTES = 4 * MAX_PIXELS  # a film or an archive between the images is not read
Bytes = NDArray[np.uint8]
JPEG = b"\xff\xd8\xff"
# SOF markers of JPEG: height, width and components follow (ITU-T T.81, B.2.2). C4, C8 and CC mean something else.
SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SOS, APP1 = 0xDA, 0xE1  # pixels follow; EXIF or XMP data follow
ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # no length follows
WHITE, DARK = 65_535, 16_383  # of 16 bits, and the highest value that may as well be white: 14 bits of signal, or few photons
STATED = {"'ppm": WHITE, "'I;12'": 4095}  # Pillow's words for pixels whose white the format tells, and what that is then
RAW = "camera raw, which is not read here: develop it to JPEG"
OTHERS = {  # how a file begins that Pillow does not read, the first that fits -> what it is, and what to do with it
    rb".{128}DICM": "DICOM, which is not read here: export it as PNG",
    rb"\xff\n|\0{3}\x0cJXL ": "JPEG XL, which is not read here: save it as JPEG",
    rb".{4}ftyp.{0,40}avi[fs]": "AVIF, which is not read here: save it as JPEG",
    rb".{4}ftyp(hei|hev|mif1|msf1)": "HEIC, which is not read here: save it as JPEG",
    rb".{4}ftypcrx|II\*\0....CR|IIU\0|IIR[OS]|MMOR|FUJIFILM|FOVb": RAW,
    rb"II[*+]\0|MM\0[*+]": "TIFF that is cut off or of a kind not read here, or camera raw: save it with 8 bits a channel",
    rb"v/1\x01|#\?R|SIMPLE  =": "OpenEXR, HDR or FITS, whose range is not known: save it with 8 bits a channel",
    rb"%PDF": "PDF, a document: save its pages as PNG",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript, a program that is not run: save it as PNG",
    rb"version https://git-lfs": "a Git LFS pointer in place of the image: run git lfs pull",
    rb"\W*<(!doctype html|html|head|body|script)": "a web page in place of the image: get the file again",
    rb"\W*<(.*<)?svg\b": "SVG, a drawing without pixels: save it as PNG",
    rb"PK\x03\x04|Rar!|7z\xbc|\x1f\x8b|BZh|\xfd7zXZ": "an archive, or a document of Office: unpack it",
    rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]": "a film: save its frames as JPEG",
    rb"(?![\xfe\xff])[\t\n\r -~\x80-\xff]{12,}\Z": "not an image, but text",
}


class UnreadableImageError(ValueError):
    """A file that is no image, or a broken one; the message is the reason, without the path."""


def decode(path: Path | str, mode: str = "RGB", white_level: int | None = None) -> Tensor:
    """Read a JPEG, PNG, WebP, GIF, BMP or TIFF file, or another one that Pillow reads, as (C, H, W) uint8.

    The orientation in its EXIF data is applied; transparency is dropped; of an animation the first frame is taken.
    `mode` is what the channels shall be: L, RGB or RGBA. Of more than 8 bits 0 to `white_level` become 0 to 255, clipped; None:
    16 bits are cut to the upper 8.

    Raises:
        UnreadableImageError: the file is missing, empty, broken, no image, or has too many pixels, or an unknown white.
    """
    return decode_bytes(read_bytes(path), mode, white_level=white_level)


def read_bytes(path: Path | str) -> Bytes:
    """A file's content, (bytes,) uint8; UnreadableImageError if it is missing, empty, or far too large."""
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            raise UnreadableImageError("is a directory" if stat.S_ISDIR(about.st_mode) else "not a file")
        if about.st_size > MAX_BYTES:
            raise UnreadableImageError(f"{about.st_size:,} bytes, more than the {MAX_BYTES:,} taken for an image")
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UnreadableImageError((error.strerror or str(error)).lower()) from None
    except UnreadableImageError:
        raise
    except ValueError:
        raise UnreadableImageError("no file can have this name") from None
    if not len(data):
        raise UnreadableImageError("empty file")
    return data


def decode_bytes(data: Bytes, mode: str = "RGB", brightness: bool = False, white_level: int | None = None) -> Tensor:
    """`decode` for a file that has been read.

    With `brightness`, that of RGB alone will do, (1, H, W), where it is faster: all data of a JPEG are read, and judged, just the
    same, but its colours take a quarter of the time.
    """
    start = data[:32].tobytes()
    jpeg = start.startswith(JPEG)
    width, height, components = jpeg_header(data) if jpeg else (*webp_size(start), 0)
    _refuse_bomb(width, height)
    # Without a size from here, Pillow looks for it: torchvision would take memory for whatever the file claims.
    if mode == "RGB" and width and not (jpeg and _orientation_is_odd(data)):
        channels = ImageReadMode.GRAY if brightness and components == 3 else ImageReadMode.RGB
        try:
            return _with_torchvision(torch.from_numpy(data), jpeg, channels)
        except RuntimeError:
            pass  # Pillow reads some files that torchvision refuses, and says better what is wrong with the others
    return _with_pillow(data, mode, white_level)


def jpeg_header(data: Bytes) -> tuple[int, int, int]:
    """(width, height, components) from a JPEG's frame header, far faster than opening it with Pillow; zeros if it isn't found."""
    for marker, content in _jpeg_segments(data):
        if marker in SOF and len(content) >= 6:
            return int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big"), content[5]
    return 0, 0, 0


def webp_size(start: bytes) -> tuple[int, int]:
    """(width, height) from the first 30 bytes of a WebP file that is nothing but pixels; else zeros (RFC 9649, 2.5 and 2.6)."""
    kind, number = start[:4] + start[8:16], int.from_bytes(start[20:30], "little")
    if kind == b"RIFFWEBPVP8 ":
        return number >> 48 & 0x3FFF, number >> 64 & 0x3FFF
    if kind == b"RIFFWEBPVP8L":
        return (number >> 8 & 0x3FFF) + 1, (number >> 22 & 0x3FFF) + 1
    return 0, 0


def image_mode(data: Bytes) -> str:
    """The mode that Pillow gives a file which `decode_bytes` has read: L, P, RGB, RGBA, CMYK, I;16, ..."""
    components = jpeg_header(data)[2] if data[:3].tobytes() == JPEG else 0
    if components:
        return {1: "L", 4: "CMYK"}.get(components, "RGB")
    with Image.open(io.BytesIO(data.data)) as file:
        return file.mode


def opened(data: Bytes) -> tuple[Image.Image, str]:
    """An image as Pillow reads it, upright, and its words for how the pixels are stored."""
    with Image.open(io.BytesIO(data.data)) as file:
        _refuse_bomb(*file.size)
        tags = getattr(file, "tag_v2", {})
        if 50706 in tags or (330 in tags and tags.get(254) == 1):  # DNGVersion; SubIFDs beside a thumbnail: as NEF and ARW are
            raise UnreadableImageError(RAW)
        if file.format in ("EPS", "FITS"):  # a program, which Pillow would hand to Ghostscript; signed, which it misses
            raise UnreadableImageError(format_of(data))
        stored = str(file.tile)  # empty once they are loaded
        file.load()
        with suppress(Exception):  # EXIF data that can't be read: the pixels are there all the same
            ImageOps.exif_transpose(file, in_place=True)
    if file.mode == "F":
        raise UnreadableImageError("floating point pixels, whose range is not known: save it with 8 bits a channel")
    return file, stored


def format_of(data: Bytes) -> str:
    """What a file is that Pillow does not read, and what to do with it."""
    start = data[:4000].tobytes()
    return next((words for mark, words in OTHERS.items() if re.match(mark, start, re.DOTALL | re.IGNORECASE)), "not an image")


def deep(image: Image.Image, stored: str) -> tuple[NDArray[Any], int | None]:
    """The values (H, W) of an image of more than 8 bits, and the one that its format says is white, if it does."""
    value_HW = np.asarray(image)
    stated = next((white for word, white in STATED.items() if word in stored), None)
    return (value_HW.view(np.uint32) if "'I;32N'" in stored else value_HW), stated  # Pillow has no mode for unsigned ones


def find_images(paths: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Expand folders into the files below them that `fit` would take; and path -> reason for what is not there, or empty."""
    files: list[Path] = []
    missing: dict[str, str] = {}
    for path in map(Path, paths):
        inside = [path / name for name in files_below(path)] if path.is_dir() else [path] if path.exists() else []
        files += inside
        if not inside:
            missing[str(path)] = "no image files in this folder" if path.is_dir() else "no such file or folder"
    return files, missing


def _jpeg_segments(data: Bytes) -> Iterator[tuple[int, memoryview]]:
    """(marker, content) of the segments before a JPEG's pixels; ends early where a file is odd.

    What libjpeg skips and this does not, such as bytes between segments, could hide another size from `jpeg_header`.
    """
    view, at = data.data, 2
    while at + 4 <= len(view) and view[at] == 0xFF:
        marker = view[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if marker == SOS or marker in ALONE:
            return
        end = at + 2 + int.from_bytes(view[at + 2 : at + 4], "big")
        yield marker, view[at + 4 : end]
        at = end


def _orientation_is_odd(data: Bytes) -> bool:
    """Whether torchvision may miss a JPEG's orientation: it reads the first APP1 segment only, and not XMP, as Pillow does."""
    app1 = [bytes(content) for marker, content in _jpeg_segments(data) if marker == APP1]
    return bool(app1) and (not app1[0].startswith(b"Exif\0\0") or any(b"tiff:Orientation" in xmp for xmp in app1[1:]))


def _with_torchvision(data: Tensor, jpeg: bool, channels: ImageReadMode) -> Tensor:
    image_CHW: Tensor = decode_jpeg(data, channels, apply_exif_orientation=True) if jpeg else decode_webp(data, channels)
    return image_CHW


def _with_pillow(data: Bytes, mode: str, white_level: int | None) -> Tensor:
    try:
        image, stored = opened(data)
        if image.mode.startswith("I"):
            image = Image.fromarray(_as_8_bits(image, stored, white_level))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of a straight way to grey
        pixels_HWC = np.array(image.convert(mode))
        pixels_HWC = pixels_HWC.reshape(*pixels_HWC.shape[:2], -1)
        known = white_level == WHITE or (white_level is None and pixels_HWC[:, :, :3].max() > DARK >> 8)
        if not known and re.search("(L|LA|RGB|RGB.|CMYK);16", stored):  # the signal may be in the bits that Pillow drops
            raise UnreadableImageError("16 bits a colour, of which only the upper 8 are read: save it with 8 bits a channel")
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(format_of(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the second where warnings are errors
        raise UnreadableImageError(str(error).partition(",")[0]) from None
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"broken: {error}") from None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def _as_8_bits(image: Image.Image, stored: str, white_level: int | None) -> Bytes:
    value_HW, stated = deep(image, stored)
    low, high = int(value_HW.min()), int(value_HW.max())
    if white := stated or white_level:
        return (value_HW.astype(np.float64).clip(0, white) * 255 / white + 0.5).astype(np.uint8)
    if 0 < high <= DARK or not (image.mode.startswith("I;16") or "'I;16B'" in stored):
        how = "give data.white_level for all images: 4095 for 12 bits, 65535 for 16"
        raise UnreadableImageError(f"values from {low:,} to {high:,}, and nothing says which one is white; {how}")
    return (value_HW >> 8).astype(np.uint8)


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width} x {height} is {width * height:,} pixels, more than the {MAX_PIXELS:,} taken as safe")
