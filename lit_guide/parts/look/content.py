"""Files that decode, but to nothing of use: one colour, half of a photo, one page of many. Each is a bit of "signs"."""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_guide.engine.photos.examine import DAMAGED
from lit_guide.engine.photos.headers import JPEG, Bytes, jpeg_header, jpeg_scans

FEW = 16  # levels of brightness, or of a colour, that a photo has at least
BLOCK = 16  # pixels: what libjpeg fills up where a file has none left repeats itself after as many
MANY = 4  # blocks, the shorter side of an image in which a part can be called flat
FLAT = 2  # levels between which a part without anything in it stays
PAGED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # formats of several images that belong together; a JPEG's others are views of it
SMALLER, MASK = 1, 4  # bits of a TIFF's NewSubfileType: the same image smaller, or what is transparent in another one
KINDS = (  # kind, whether it is wrong, and what it says
    ("one_colour", False, "one colour, or hardly more: there is nothing to be seen"),
    ("few_levels", False, f"fewer than {FEW} levels: fine for drawings, odd for photos"),
    ("half_missing", True, "the end of the file is missing or overwritten, and with it a part of the photo: get it again"),
    ("no_end", False, "a JPEG without its end marker: it may have been cut off, and show less than it did"),
    ("half_flat", False, "nothing in the last part of the photo: it may have been lost"),
    ("pages", False, "several pages or frames: the first one is read"),
    ("transparent", False, "transparent pixels: they lie on white"),
    (
        "damaged",
        False,
        "odd data inside a JPEG: see whether a part of the photo is grey or shifted, and get it again then",
    ),  # `examine` sees it
)
BIT = {kind: 1 << number for number, (kind, _, _) in enumerate(KINDS[:-1])} | {KINDS[-1][0]: DAMAGED}


def signs(data: Bytes, image_CHW: Tensor) -> int:
    """Which of KINDS a file is, as bits; what `examine` calls in its threads.

    Args:
        data: the file's content.
        image_CHW: what was decoded of it, upright, uint8; of a JPEG the brightness alone (C = 1), maybe smaller.
    """
    pixels_CHW = image_CHW.numpy()
    levels = levels_of(pixels_CHW)
    plain = levels <= FLAT + 1 and np.ptp(pixels_CHW, axis=(1, 2)).max() <= FLAT
    found = ["one_colour"] if plain else ["few_levels"] if levels < FEW else []
    if data[:3].tobytes() == JPEG:
        lost = data[-2:].tobytes() != b"\xff\xd9" and not jpeg_scans(data)[1]
        flat = not plain and _ends_flat(data, pixels_CHW)
        found += ["half_missing"] if lost and flat else ["no_end"] if lost else ["half_flat"] if flat else []
    else:
        with suppress(Exception), Image.open(io.BytesIO(data.data)) as file:  # of what decoded, the rest may be broken
            found += ["pages"] if file.format in PAGED and _has_pages(file) else []
            # What is transparent has become white: without that colour there is no need to decode it again.
            if file.has_transparency_data and (pixels_CHW == 255).all(axis=0).any():
                found += ["transparent"] if file.convert("RGBA").getchannel("A").getextrema()[0] != 255 else []
    return sum(BIT[kind] for kind in found)


def told(names: Sequence[str], signs_N: NDArray[Any]) -> Iterator[tuple[str, bool, str, list[str]]]:
    """(kind, whether it is wrong, what it says, the files) of each kind that is there: what a finding is made of."""
    early_N = signs_N & (BIT["half_missing"] | BIT["no_end"]) > 0  # of which libjpeg warns as well
    signs_N = np.where(early_N, signs_N & (255 - BIT["damaged"]), signs_N)
    for kind, wrong, what in KINDS:
        if rows := np.flatnonzero(signs_N & BIT[kind]).tolist():
            yield kind, wrong, what, [names[row] for row in rows]


def levels_of(pixels_CHW: NDArray[np.uint8]) -> int:
    """How many values the channel with most of them has; once FEW are found on a part of the pixels, that will do."""
    step = max(1, min(pixels_CHW.shape[1:]) // 24)
    for some_CHW in (pixels_CHW[:, ::step, ::step], pixels_CHW):
        levels = max(np.count_nonzero(np.bincount(channel_HW.ravel(), minlength=256)) for channel_HW in some_CHW)
        if levels >= FEW or step == 1:
            break
    return int(levels)


def _ends_flat(data: Bytes, pixels_CHW: NDArray[np.uint8]) -> bool:
    """Whether there is nothing in the last quarter of a JPEG, as it is stored: below, or at a side if it was turned."""
    edges = (pixels_CHW[:, -1, ::BLOCK], pixels_CHW[:, ::BLOCK, 0], pixels_CHW[:, ::BLOCK, -1])
    if all(int(edge.max()) - int(edge.min()) > FLAT for edge in edges):  # nearly always, and soon known
        return False
    H, W = pixels_CHW.shape[1:]
    width, height, _ = jpeg_header(data)
    step = max(1, BLOCK * min(H, W) // max(1, min(width, height)))
    if min(H, W) < MANY * step:
        return False
    last = [pixels_CHW[:, H * 3 // 4 :]]
    if (width > height) != (W > H):
        last = [pixels_CHW[:, :, : W // 4], pixels_CHW[:, :, W * 3 // 4 :]]
    # Within a block there may be a pattern: pixels at one place of all blocks are compared, for a few places.
    places = [(0, 0), (step // 2, step // 3), (step // 3, step - 1)]
    return any(all(np.ptp(part[:, y::step, x::step], axis=(1, 2)).max() <= FLAT for y, x in places) for part in last)


def _has_pages(file: Image.Image) -> bool:
    if not getattr(file, "is_animated", file.format == "TIFF"):
        return False
    try:
        file.seek(1)
        return not getattr(file, "tag_v2", {}).get(254, 0) & (SMALLER | MASK)
    except EOFError:  # a TIFF of one
        return False
    finally:
        with suppress(Exception):
            file.seek(0)
