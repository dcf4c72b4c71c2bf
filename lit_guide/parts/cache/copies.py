"""Small copies of the photos of a set, in memory or in a file that later runs find again."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_guide.engine.errors import UserError
from lit_guide.engine.photos.crops import resize_shorter
from lit_guide.engine.photos.decode import Reading
from lit_guide.engine.photos.examine import Examined, examine
from lit_guide.parts.cache.known import HINT, once, reason_of, recall, record


class CachedImages:
    """Decoded images of different sizes, one after the other in one buffer: `images[i]` is (3, H, W) uint8.

    The buffer is a memory-mapped file, which loader processes share, or a tensor.

    Args:
        sizes_N2: (height, width) of each image; zeros for a file that is none.
        buffer: all pixels, (bytes,) uint8; or the file that holds them.
    """

    def __init__(self, sizes_N2: Tensor, buffer: Tensor | Path) -> None:
        self.sizes_N2 = sizes_N2
        self.start_N = torch.cat([torch.zeros(1, dtype=torch.int64), (sizes_N2.prod(dim=1) * 3).cumsum(0)])
        self._file = buffer if isinstance(buffer, Path) else None
        self._buffer = buffer if isinstance(buffer, Tensor) else None

    def __getitem__(self, index: int) -> Tensor:
        if self._buffer is None:
            assert self._file is not None
            with warnings.catch_warnings():
                # A mapping that could be written to counts as memory: it may not be larger than that.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                self._buffer = torch.from_numpy(np.memmap(self._file, np.uint8, mode="r"))
        start, end = self.start_N[index : index + 2].tolist()
        image_HWC = self._buffer[start:end].clone()  # a transform may write to it
        return image_HWC.view(*self.sizes_N2[index].tolist(), 3).permute(2, 0, 1)

    def __call__(self, index: int) -> Tensor:
        """`images[index]`: what `ImageDataset` reads from."""
        return self[index]

    def __getstate__(self) -> dict[str, Any]:
        # A process that is sent this maps the file itself: a mapping would be sent as a copy of its content.
        return self.__dict__ | ({"_buffer": None} if self._file is not None else {})


def in_memory(
    root: Path,
    paths: Sequence[str],
    side: int,
    folder: Path | None,
    reading: Reading = Reading(),
) -> tuple[Examined, CachedImages]:
    """`data.cache: ram`: decode every file, now and in each process.

    Args:
        root: the folder that the paths are relative to.
        paths: the N files.
        side: pixels of the shorter side of a copy; smaller images are kept as they are.
        folder: not used.
        reading: how they are read.

    Returns:
        What the files are, and the copies.
    """
    pixels = bytearray()
    examined, sizes_N2 = _decode_all(root, paths, side, "Decoding images into memory", pixels.extend, reading)
    return examined, CachedImages(sizes_N2, torch.frombuffer(pixels or bytearray(1), dtype=torch.uint8))


def on_disk(
    root: Path,
    paths: Sequence[str],
    side: int,
    folder: Path | None,
    reading: Reading = Reading(),
) -> tuple[Examined, CachedImages]:
    """`data.cache: disk`: as `in_memory`, but decode once, and find the copies again as long as no file changes.

    Args:
        root: the folder that the paths are relative to.
        paths: the N files.
        side: pixels of the shorter side of a copy.
        folder: where the copies are kept; the user's cache folder if None.
        reading: how they are read.

    Raises:
        UserError: there is no place, or no permission, for them.
    """
    # What is decoded smaller gives other copies.
    name = f"shorter-side-{side}" + (f"-of-{reading.least_side}" if reading.least_side else "")

    def find(home: Path) -> tuple[Examined, CachedImages]:
        done = home / name
        images = CachedImages(torch.from_numpy(np.load(done / "sizes.npy")), done / "images.bin")
        if (done / "images.bin").stat().st_size != images.start_N[-1]:
            raise EOFError
        return recall(done / "manifest.json"), images

    def build(home: Path) -> tuple[Examined, CachedImages]:
        return _build(root, paths, side, home / name, reading)

    return once(root, paths, folder, find, build, reading.white_level)


def _build(root: Path, paths: Sequence[str], side: int, done: Path, reading: Reading) -> tuple[Examined, CachedImages]:
    part = done.with_name(f"{done.name}.part")
    for old in (done, part):  # damaged, or its building was interrupted: under the lock nobody else builds
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.mkdir()
        with (part / "images.bin").open("wb") as file:
            written = count(1)

            def write(pixels: memoryview) -> None:
                file.write(pixels)
                files = next(written)
                if files % 1000 == 100:
                    _check_space(part, file.tell() // files * (len(paths) - files))

            examined, sizes_N2 = _decode_all(root, paths, side, "Decoding images into the cache", write, reading)
        np.save(part / "sizes.npy", sizes_N2.numpy())
        record(part / "manifest.json", examined)
        part.rename(done)  # complete, or not there at all
    except OSError as error:
        raise UserError(f"{part}: the cache can't be written ({reason_of(error)}). {HINT}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return examined, CachedImages(sizes_N2, done / "images.bin")


def _decode_all(
    root: Path,
    paths: Sequence[str],
    side: int,
    what: str,
    write: Callable[[memoryview], object],
    reading: Reading,
) -> tuple[Examined, Tensor]:
    """Examine all files and write their small copies, one after the other.

    Returns:
        What was found, and (height, width) of each copy, (N, 2) int64: what `CachedImages` finds it by.
    """
    sizes_N2 = torch.zeros(len(paths), 2, dtype=torch.int64)
    index = count()

    def keep(image_CHW: Tensor | None) -> None:
        at = next(index)
        if image_CHW is not None:
            sizes_N2[at] = torch.tensor(image_CHW.shape[1:])
            write(image_CHW.permute(1, 2, 0).contiguous().numpy().data.cast("B"))

    shrink = partial(resize_shorter, side=side, enlarge=False)
    return examine(root, paths, what, shrink, keep, reading), sizes_N2


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        gib = f"{needed / 2**30:.1f} GiB more, {free / 2**30:.1f} GiB are free"
        raise UserError(f"{folder}: the cache needs about {gib}. {HINT}")
