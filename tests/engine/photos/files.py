"""Image files that Pillow does not write."""

import struct
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A HEIC of 80 x 60 pixels (red 3 x, green 4 y, blue 3 ((x + y) // 2)), stored on its side, with the orientation that turns it.
HEIC = b64decode(
    """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAA
AAAB7AABAAAAAAAABCgAAgAAAAAGFAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5w
aXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEB
A3AAAAMAkAAAAwAAAwAeoCCBRZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAFAAAAAo
Y2xhcAAAADwAAAABAAAAUAAAAAH////8AAAAAgAAAAAAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJl
ZgAAAAAAAAAOY2RzYwACAAEAAQAABFRtZGF0AAAEJCgBrwa46vO8u52nJ8cpEBmdFZv00ORfUWGzoU5GyaBKB8ntwlguCy4QfSd4Kk2d6zO7pmBOb4yDb41rIS1V
jx4A7wvH/+8vF3XIACHMHvI/W4oyOHniEaIzfayU/CcVxK5jB1f+Djxeiku1ZLrbM5tlqemxSrTGtA36qY5AX9pcd97YWQQR7xLgoS0CzYzHvZzn8dT3Pv4TsU8h
wEs5dALCH8tuk7T81EpXfusOaEAzKKGx+s82s/EmnGiGNqZbh5k0Rth+eDY3NvQw8pDHBunjVPvp5R13dN8MvF/g65SyF6x936vRGVxIhXgLOim/lsbX9xIarlR9
FzIPYlG2hxabaPcwTgeR3q1uS8yc/xpPaL/cEV1tmisWF3LMwLSIfXnVoDMya2j7c/1f5P+HRD3t7ATvAn9Yv2GC+0lTI2iNtxWzzf0teYFt+B5yZYLZ608TJiC9
vx3f7gKUzkdbj4ptMcHFxSgwV38Z4l6g7YqgfhyEVy4E1o+i1RJoN7/6JsyUFL8MrMR9tJoNWaECBu0UYIo1Kfuz7CNMMLZdqOFgd1BX/5a89+lv2LZGihyPqfwC
teiywx+ACHPd7qGxIfwIJX5Fuf5SlDOg99qvhj5EJelrcygfzg7ArVMMQ/eneqaZ1Mi8wxkD0IbZKWwwn1u24LTTIicM3jmFrfNUUBUPeTRx6CyfXY3jbDCH4L7y
RTQnPRxpquaux21hq3EvNeBPiLhObyJnseKDXtOfuj3PAA+Fqoe8q63tAOfqC+9QXXZ0ptbAw1VZQWfq9ipgX8+WlAOT4786RSarkmigjghHew+seTvwsh9tWu6g
pxppFhyMzwXbxKYsaLDP/4ReF+LPDMOYoH1IFo2BIfnRZPtFwHsW1gzn+IMWpCcHG31dGgX+YDF9dSf/vCha9zccxXiieLhr8C8IT6HOQyj1ou34clob9mkTYd7A
869bePOcaBXogzqS8mcZ51e12ZJkacLtnoHmdkLA5Xh+e4db/ycatVFEtMcp9DTlCLvp7j0h4ZlsoTYmLVrgjA+laxzA3nZTPqboE4aJHKri7AFYsGJd+Dqjegrb
vPzyezwvkf963Tasgeq0ACn3L2f94IWE2oh2L8c7eHDWgxzSt8E/TnY89Q5T2DglfgfBSozbt4IXNaA6X6meT3bv7rvUVLDm7Mzi0iJM2ap2smUduqSZyY5h22zx
oo5MAclYPPXhEgeFpF2n83nAU7qmpP/n7hSvrCOOuNt5POZqabKjYVLGLzan0NRP6PWk4WP+gDJH8QWIzlmonHfbZ7YY05SLAcgoQ+aag06G/QvP8v7m27wkYIrf
k9JfW5DKflwJwbtPu42zNKUEhIRVjxXAdSP3P3iL6h9ClfsBRiO0UFMvfIzszRPC10qhZ8hopUHajwuBHhtn+C/wX/AAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMA
AAABAAYAAAAAAAA=
"""
)
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
