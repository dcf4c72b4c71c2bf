"""What an image file says of itself, before its pixels are decoded: format, size, mode, how a JPEG is laid out."""

import io
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
JPEG = b"\xff\xd8\xff"
# SOF markers of JPEG: height, width and components follow (ITU-T T.81, B.2.2). C4, C8 and CC mean something else.
SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SOS, APP1, EOI = 0xDA, 0xE1, 0xD9  # pixels follow; EXIF or XMP data follow; the end
MAX_SCANS = 100  # libtiff's limit; programs write about 10, and each costs a pass over all pixels though it may hold none
ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # no length follows
RAW = "camera raw, which is not read here: develop it to JPEG"
OTHERS = {  # how a file begins that Pillow does not read, the first that fits -> what it is, and what to do with it
    rb".{128}DICM": "DICOM, which is not read here: export it as PNG",
    rb"\xff\n|\0{3}\x0cJXL ": "JPEG XL, which is not read here: save it as JPEG",
    rb".{4}ftyp.{0,40}avi[fs]": "AVIF that is broken, or of a kind not read here: save it as JPEG",
    rb".{4}ftyp(hei|hev|mif1|msf1)": "HEIC, which needs pi-heif, or broken: pip install pi-heif, or save it as JPEG",
    rb".{4}ftypcrx|II\*\0....CR|IIU\0|IIR[OS]|MMOR|FUJIFILM|FOVb": RAW,
    rb"II[*+]\0|MM\0[*+]": "TIFF that is cut off or of a kind not read here, or camera raw: save it with 8 bits a channel",
    rb"v/1\x01|#\?R|SIMPLE  =": "OpenEXR, HDR or FITS, whose range is not known: save it with 8 bits a channel",
    rb"\xff\xd8\xff|\x89PNG|GIF8|8BPS": "broken, or of a kind not read here, such as 12 bits: save it anew",
    rb"%PDF": "PDF, a document: save its pages as PNG",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript, a program that is not run: save it as PNG",
    rb"version https://git-lfs": "a Git LFS pointer in place of the image: run git lfs pull",
    rb"\W*<(!doctype html|html|head|body|script)": "a web page in place of the image: get the file again",
    rb"\W*<(.*<)?svg\b": "SVG, a drawing without pixels: save it as PNG",
    rb"PK\x03\x04|Rar!|7z\xbc|\x1f\x8b|BZh|\xfd7zXZ": "an archive, or a document of Office: unpack it",
    rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]": "a film: save its frames as JPEG",
    rb"(?![\xfe\xff])[\t\n\r -~\x80-\xff]{12,}\Z": "not an image, but text",
}


def jpeg_header(data: Bytes) -> tuple[int, int, int]:
    """(width, height, components) from a JPEG's frame header, far faster than opening it with Pillow; zeros if it isn't found."""
    for marker, content in _jpeg_segments(data):
        if marker in SOF and len(content) >= 6:
            return int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big"), content[5]
    return 0, 0, 0


def jpeg_scans(data: Bytes) -> tuple[int, bool]:
    """How many scans a JPEG has, counted to MAX_SCANS + 1, and whether an end marker comes after them; nothing is decoded."""
    at = np.flatnonzero(data[:-1] == 0xFF)
    after = data[at + 1]
    at = at[(after != 0) & (after != 0xFF) & ((after & 0xF8) != 0xD0)]  # the others are part of a scan
    place, scans = 2, 0
    while (index := int(at.searchsorted(place))) < len(at) and scans <= MAX_SCANS:
        place = int(at[index])
        marker = int(data[place + 1])
        if marker == EOI:
            return scans, True
        scans += marker == SOS
        place += 2 if marker in ALONE else 2 + int.from_bytes(data[place + 2 : place + 4].tobytes(), "big")
    return scans, False


def webp_size(start: bytes) -> tuple[int, int]:
    """(width, height) from the first 30 bytes of a WebP file that is nothing but pixels; else zeros (RFC 9649, 2.5 and 2.6)."""
    kind, number = start[:4] + start[8:16], int.from_bytes(start[20:30], "little")
    if kind == b"RIFFWEBPVP8 ":
        return number >> 48 & 0x3FFF, number >> 64 & 0x3FFF
    if kind == b"RIFFWEBPVP8L" and not number >> 36 & 1:  # nor transparent ones
        return (number >> 8 & 0x3FFF) + 1, (number >> 22 & 0x3FFF) + 1
    return 0, 0


def image_mode(data: Bytes) -> str:
    """The mode that Pillow gives a file which `decode_bytes` has read: L, P, RGB, RGBA, CMYK, I;16, ..."""
    components = jpeg_header(data)[2] if data[:3].tobytes() == JPEG else 0
    if components:
        return {1: "L", 4: "CMYK"}.get(components, "RGB")
    with Image.open(io.BytesIO(data.data)) as file:
        return file.mode


def format_of(data: Bytes) -> str:
    """What a file is that Pillow does not read, and what to do with it."""
    start = data[:4000].tobytes()
    return next((words for mark, words in OTHERS.items() if re.match(mark, start, re.DOTALL | re.IGNORECASE)), "not an image")


def _jpeg_segments(data: Bytes) -> Iterator[tuple[int, memoryview]]:
    """(marker, content) of the segments before a JPEG's pixels; ends early where a file is odd, lest that hide another size."""
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


def orientation_is_odd(data: Bytes) -> bool:
    """Whether torchvision may miss a JPEG's orientation: it reads the first APP1 segment only, and not XMP, as Pillow does."""
    app1 = [bytes(content) for marker, content in _jpeg_segments(data) if marker == APP1]
    return bool(app1) and (not app1[0].startswith(b"Exif\0\0") or any(b"tiff:Orientation" in xmp for xmp in app1[1:]))
