"""Image files as tensors: any format and mode, upright, 8 bits a channel.

torchvision decodes JPEG and WebP, faster than Pillow and to the same values; Pillow decodes the rest, JPEGs to be made smaller,
and PNG, because torchvision's decoder (seen in 0.29.2) ends the whole process with a segmentation fault when a file is damaged.
"""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

from lit_guide.engine.photos import headers
from lit_guide.engine.photos.headers import Bytes, format_of, image_mode, jpeg_header, webp_size  # noqa: F401  # image_mode's place
from lit_guide.engine.photos.listing import find_images as find_images

# Larger images are taken for decompression bombs: Pillow's limit, 89 million pixels (268 MB once decoded).
MAX_PIXELS = int(Image.MAX_IMAGE_PIXELS or 89_478_485)
MAX_BYTES = 4 * MAX_PIXELS  # a film or an archive between the images is not read
SCAN = b"\xff\xda"  # how each scan of a JPEG begins, and nothing within one
DEEP_COLOUR = "16 bits a colour, of which only the upper 8 are read: save it with 8 bits a channel"
WHITE, DARK = 65_535, 16_383  # of 16 bits, and the highest value that may as well be white: 14 bits of signal, or few photons
STATED = {"'ppm": WHITE, "'I;12'": 4095}  # Pillow's words for pixels whose white the format tells, and what that is then
# libjpeg's warnings (JWRN_* in its jerror.h).
LIBJPEG = (
    rb"(?m)^(Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS|Unknown Adobe|Warning: unknown JF).*\n"
)
Counter = Callable[[], int]
_quiet = Lock()

with suppress(ImportError):  # an optional dependency: libheif, for the photos of an iPhone
    import_module("pi_heif").register_heif_opener()


class Reading(NamedTuple):
    """How the photos of a set are read: see `decode`."""

    white_level: int | None = None
    least_side: int | None = None


class UnreadableImageError(ValueError):
    """A file that is no image, or a broken one; the message is the reason, without the path."""


def decode(path: Path | str, mode: str = "RGB", reading: Reading = Reading()) -> Tensor:
    """Read a JPEG, PNG, WebP, GIF, BMP or TIFF file, or another one that Pillow reads, as (C, H, W) uint8.

    The orientation in its EXIF data is applied; transparent pixels lie on white; of an animation the first frame is taken.
    `mode` is what the channels shall be: L, RGB or RGBA. Of more than 8 bits 0 to `white_level` become 0 to 255, clipped; None:
    16 bits are cut to the upper 8. With `least_side` a JPEG may come out smaller, as `scale_of` says.

    Raises:
        UnreadableImageError: the file is missing, empty, broken, no image, or has too many pixels, or an unknown white.
    """
    data = read_bytes(path)
    with quiet_libjpeg():
        return decode_bytes(data, mode, reading)


@contextmanager
def quiet_libjpeg() -> Iterator[Counter]:
    """Keep libjpeg's warnings off the error stream, where they name no file; all else on it arrives at the end.

    Yields what tells how many bytes came so far. Of several threads the first one's stays in force until it ends.
    """
    with ExitStack() as stack:
        counted: Counter = int  # 0
        with suppress(OSError):  # no error stream, or no place for a file
            if _quiet.acquire(blocking=False):
                stack.callback(_quiet.release)
                stack.callback(_restore, os.dup(2))
                os.dup2(sink := _sink(os.getpid()), 2)
                counted = lambda: os.fstat(sink).st_size  # noqa: E731
        yield counted


@lru_cache(maxsize=1)  # opening one for each photo would take a twelfth of the time of decoding it
def _sink(process: int) -> int:
    with TemporaryFile() as file:  # of this process alone: a forked one would go on at its place
        return os.dup(file.fileno())


def _restore(kept: int) -> None:
    os.dup2(kept, 2)
    with suppress(OSError), open(kept, "wb") as stream:  # nobody reads it any more, or its disk is full
        if size := os.fstat(sink := _sink(os.getpid())).st_size:
            os.lseek(sink, 0, os.SEEK_SET)
            stream.write(re.sub(LIBJPEG, b"", os.read(sink, size)))
            os.lseek(sink, 0, os.SEEK_SET)
            os.ftruncate(sink, 0)


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


def scale_of(width: int, height: int, least_side: int | None) -> int:
    """By how much a JPEG of this size is made smaller as it is decoded: 1, 2, 4 or 8.

    Its shorter side keeps `least_side` pixels or more; None: all. Whatever decodes photos asks this, to see the same pixels.
    """
    return next((scale for scale in (8, 4, 2) if least_side and min(width, height) >= scale * least_side), 1)


def decode_bytes(data: Bytes, mode: str = "RGB", reading: Reading = Reading(), brightness: bool = False) -> Tensor:
    """`decode` for a file that has been read.

    With `brightness`, that of RGB alone will do, (1, H, W), where it is faster: all data of a JPEG are read, and judged, just the
    same, but its colours take a quarter of the time. So are those of a JPEG that comes out smaller.
    """
    start = data[:32].tobytes()
    jpeg = start.startswith(headers.JPEG)
    width, height, components = jpeg_header(data) if jpeg else (*webp_size(start), 0)
    _refuse_bomb(width, height)
    if jpeg and data.tobytes().count(SCAN) > headers.MAX_SCANS < headers.jpeg_scans(data)[0]:  # the first is soon counted
        raise UnreadableImageError(f"more than {headers.MAX_SCANS} scans, which no program writes: get the file again")
    if jpeg and scale_of(width, height, reading.least_side) > 1:
        return _with_pillow(data, "L" if brightness and components == 3 else mode, reading)
    # Without a size from here, Pillow looks for it: torchvision would take memory for whatever the file claims.
    if mode == "RGB" and width and not (jpeg and headers.orientation_is_odd(data)):
        channels = ImageReadMode.GRAY if brightness and components == 3 else ImageReadMode.RGB
        try:
            file = torch.from_numpy(data)
            image_CHW: Tensor = decode_jpeg(file, channels, apply_exif_orientation=True) if jpeg else decode_webp(file, channels)
            return image_CHW
        except RuntimeError:
            pass  # Pillow reads some files that torchvision refuses, and says better what is wrong with the others
    return _with_pillow(data, mode, reading)


def opened(data: Bytes, mode: str | None = None, least_side: int | None = None) -> tuple[Image.Image, str]:
    """An image as Pillow reads it, upright, and its words for how the pixels are stored; a JPEG as small as `scale_of` says."""
    with Image.open(io.BytesIO(data.data)) as file:
        _refuse_bomb(*file.size)
        if (scale := scale_of(*file.size, least_side)) > 1:
            file.draft(mode, (file.width // scale, file.height // scale))  # does nothing to other formats
        tags = getattr(file, "tag_v2", {})
        if 50706 in tags or (330 in tags and tags.get(254) == 1):  # DNGVersion; SubIFDs beside a thumbnail: as NEF and ARW are
            raise UnreadableImageError(headers.RAW)
        if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:  # colour by colour, of which Pillow reads the lower 8 bits
            raise UnreadableImageError(DEEP_COLOUR)
        if file.format in ("EPS", "FITS"):  # a program, which Pillow would hand to Ghostscript; signed, which it misses
            raise UnreadableImageError(format_of(data))
        stored = str(file.tile)  # empty once they are loaded
        file.load()
        with suppress(Exception):  # EXIF data that can't be read: the pixels are there all the same
            ImageOps.exif_transpose(file, in_place=True)
    if file.mode == "F":
        raise UnreadableImageError("floating point pixels, whose range is not known: save it with 8 bits a channel")
    return file, stored


def deep(image: Image.Image, stored: str) -> tuple[NDArray[Any], int | None]:
    """The values (H, W) of an image of more than 8 bits, and the one that its format says is white, if it does."""
    value_HW = np.asarray(image)
    stated = next((white for word, white in STATED.items() if word in stored), None)
    return (value_HW.view(np.uint32) if "'I;32N'" in stored else value_HW), stated  # Pillow has no mode for unsigned ones


def _with_pillow(data: Bytes, mode: str, reading: Reading) -> Tensor:
    white_level, least_side = reading
    try:
        image, stored = opened(data, mode, least_side)
        if image.mode.startswith("I"):
            image = Image.fromarray(_as_8_bits(image, stored, white_level))
        elif image.has_transparency_data and mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        pixels_HWC = np.array(image.convert(mode))
        pixels_HWC = pixels_HWC.reshape(*pixels_HWC.shape[:2], -1)
        cut = re.search("(L|LA|RGB|RGB.|CMYK);16", stored)  # the signal may be in the bits that Pillow drops
        if cut and white_level != WHITE and (white_level is not None or pixels_HWC[:, :, :3].max() <= DARK >> 8):
            raise UnreadableImageError(DEEP_COLOUR)
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
