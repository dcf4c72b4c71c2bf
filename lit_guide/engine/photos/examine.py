"""Decode every file of a set once, in threads: what is broken, what is there twice, and copies for a cache.

torchvision and Pillow release Python's lock while they decode, so threads use all cores and share one memory.
"""

import hashlib
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from lit_guide.engine.machine import usable_cores
from lit_guide.engine.photos.decode import UnreadableImageError, decode_bytes, image_mode, read_bytes

CHUNK = 8  # files a task: enough that handing tasks out costs nothing
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # brightness of RGB, as JPEG has it (ITU-R BT.601)
QUIET_BELOW = 500  # files that need no progress bar


@dataclass
class Examined:
    """What a full decode of N files found.

    Attributes:
        bad: index of a file -> why it can't be used.
        duplicates: groups of indices whose files are equal, byte for byte; a group is in ascending order.
        width_N, height_N: pixels, upright, int32; 0 for a bad file.
        mode_N: the mode that Pillow gives the file before it becomes RGB, such as L, P, RGBA, CMYK or I;16; ? if it gives none.
        dhash_N: 64-bit difference hashes, uint64: near duplicates differ in few bits.
    """

    bad: dict[int, str] = field(default_factory=dict)
    duplicates: list[list[int]] = field(default_factory=list)
    width_N: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    height_N: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    mode_N: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="U8"))
    dhash_N: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    @classmethod
    def of(cls, N: int) -> "Examined":
        """N files of which nothing is known yet."""
        return cls({}, [], np.zeros(N, np.int32), np.zeros(N, np.int32), np.zeros(N, "U8"), np.zeros(N, np.uint64))


class _One(NamedTuple):
    """One file: what `Examined` holds of it, its length in bytes, and a copy if one was asked for."""

    width: int
    height: int
    mode: str
    dhash: int
    length: int
    copy_CHW: Tensor | None


def examine(
    root: Path,
    paths: Sequence[str],
    what: str = "Checking images",
    copy: Callable[[Tensor], Tensor] | None = None,
    keep: Callable[[Tensor | None], None] | None = None,
) -> Examined:
    """Decode all files.

    Args:
        root: the folder that the paths are relative to.
        paths: the N files.
        what: the words before the progress bar.
        copy: makes of an image (C, H, W) uint8 what `keep` shall get; runs in the threads.
        keep: called with every copy in the order of the files, None for a bad file; runs in the calling thread.
    """
    N = len(paths)
    found = Examined.of(N)
    length_N = np.zeros(N, np.uint64)
    columns = (SpinnerColumn(), TextColumn(what), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = N < QUIET_BELOW or not console.is_terminal
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=hidden)
    if hidden and N >= QUIET_BELOW:
        print(f"{what}: {N:,} files", file=sys.stderr)
    with bar, closing(_in_order(root, paths, copy)) as results:
        for index, one in enumerate(bar.track(results, total=N)):
            if isinstance(one, str):
                found.bad[index] = one
            else:
                found.width_N[index], found.height_N[index] = one.width, one.height
                found.mode_N[index], found.dhash_N[index] = one.mode, one.dhash
                length_N[index] = one.length
            if keep is not None:
                keep(None if isinstance(one, str) else one.copy_CHW)
    # Equal files have the same length and picture: only those are read again.
    good = np.flatnonzero(length_N)
    candidates = np.fromiter(chain.from_iterable(alike(good, (found.dhash_N + length_N)[good])), dtype=np.int64)
    digests = [hashlib.sha256((root / paths[index]).read_bytes()).hexdigest() for index in candidates.tolist()]
    found.duplicates = sorted(alike(candidates, np.array(digests)))
    return found


def difference_hash(image_CHW: Tensor) -> int:
    """64 bits that hardly change when an image is scaled or saved again: which of 8 x 8 areas are darker than the next one.

    After http://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html, on the brightness.

    Args:
        image_CHW: (C, H, W) uint8; of three channels and more the first are taken as RGB, of fewer the first alone.
    """
    C, H, W = image_CHW.shape
    # Some 64 to 128 rows and 96 to 192 columns are enough, and far cheaper than all pixels.
    some_CHW = image_CHW.numpy()[: 3 if C >= 3 else 1, :: max(1, H // 64), :: max(1, W // 96)].astype(np.float32)
    grey_HW = some_CHW[0] if C < 3 else np.tensordot(LUMA, some_CHW, axes=1)
    rows, columns = grey_HW.shape
    area_89 = _scaling(rows, 8) @ grey_HW @ _scaling(columns, 9).T
    brighter_88 = area_89[:, 1:] > area_89[:, :-1] + 0.01  # more than rounding does to areas that are equal
    return int.from_bytes(np.packbits(brighter_88).tobytes(), "big")


def alike(rows: NDArray[np.int64], label: NDArray[Any]) -> list[list[int]]:
    """The rows that share their label with others, label by label."""
    _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = defaultdict(list)
    for at in np.flatnonzero(counts[inverse] > 1).tolist():
        groups[int(inverse[at])].append(int(rows[at]))
    return list(groups.values())


def _in_order(root: Path, paths: Sequence[str], copy: Callable[[Tensor], Tensor] | None) -> Generator[_One | str]:
    """What is found of each file; few of them are in memory at once, however long the list."""

    def some(start: int) -> list[_One | str]:
        # With Paths, a hundredth of the time would be spent on joining them.
        return [_examine_one(os.path.join(root, name), copy) for name in paths[start : start + CHUNK]]  # noqa: PTH118

    before = torch.get_num_threads()
    # Files are what runs in parallel: with threads of torch's inside each thread, scaling takes ten times as long.
    torch.set_num_threads(1)  # threads that start from here on take it over
    pool = ThreadPoolExecutor(usable_cores())
    tasks = (pool.submit(some, start) for start in range(0, len(paths), CHUNK))
    waiting = deque(islice(tasks, 2 * usable_cores()))
    try:
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for what has not begun
        torch.set_num_threads(before)


def _examine_one(path: str, copy: Callable[[Tensor], Tensor] | None) -> _One | str:
    try:
        data = read_bytes(path)
        image_CHW = decode_bytes(data, brightness=copy is None)
    except UnreadableImageError as error:
        return str(error)
    try:
        mode = image_mode(data)
    except Exception:  # torchvision reads some files that Pillow refuses, such as a WebP with a broken chunk at its end
        mode = "?"
    _, H, W = image_CHW.shape
    return _One(W, H, mode, difference_hash(image_CHW), len(data), copy(image_CHW) if copy else None)


@lru_cache(maxsize=512)
def _scaling(pixels: int, areas: int) -> NDArray[np.float32]:
    """(areas, pixels) float32: what scales so many pixels in a row to so many areas, antialiased."""
    eye_11PP = torch.eye(pixels)[None, None]
    scaled: NDArray[np.float32] = F.interpolate(eye_11PP, size=(areas, pixels), mode="bilinear", antialias=True)[0, 0].numpy()
    return scaled
