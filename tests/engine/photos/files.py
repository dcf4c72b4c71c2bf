"""Image files that Pillow does not write."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKED = {1: "B", 2: "s", 3: "H", 4: "I"}  # TIFF's types of values
KINDS = {"u": 1, "i": 2, "f": 3}


def tiff(
    pixels: NDArray[Any], order: str = "<", bits: int | None = None, tags: Mapping[int, tuple[int, list[Any]]] | None = None
) -> bytes:
    """An uncompressed TIFF of pixels (H, W) or (H, W, C) of any type; `bits` packs (H, W) uint16; `tags` come on top."""
    H, W, C = (*pixels.shape, 1)[:3]
    if bits is None:
        bits, data = pixels.itemsize * 8, pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    else:
        bits_HW16 = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(H, W, 2), axis=2)
        data = np.packbits(bits_HW16[:, :, 16 - bits :].reshape(H, -1), axis=1).tobytes()
    entries: dict[int, tuple[int, list[Any]]] = {256: (4, [W]), 257: (4, [H]), 258: (3, [bits] * C), 259: (3, [1])}
    entries |= {262: (3, [2 if C >= 3 else 1]), 273: (4, [0]), 277: (3, [C]), 278: (4, [H]), 279: (4, [len(data)])}
    entries |= {339: (3, [KINDS[pixels.dtype.kind]] * C), **({338: (3, [0] * (C - 3))} if C > 3 else {}), **(tags or {})}
    values = {tag: b"".join(struct.pack(order + PACKED[kind], one) for one in some) for tag, (kind, some) in entries.items()}
    at = 8 + 2 + 12 * len(entries) + 4
    values[273] = struct.pack(order + "I", at + sum(len(value) for value in values.values() if len(value) > 4))
    head, extra = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries)), b""
    for tag, (kind, some) in sorted(entries.items()):
        value = values[tag]
        head += struct.pack(order + "HHI", tag, kind, len(some))
        head += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", at + len(extra))
        extra += value if len(value) > 4 else b""
    return head + bytes(4) + extra + data
