"""Decode every file of a set once, in threads: what is broken, what is there twice, and copies for a cache.

torchvision and Pillow release Python's lock while they decode, so threads use all cores and share one memory.
"""

import hashlib
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations, count
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
    with bar, _one_thread_an_operation(), closing(_in_order(root, paths, copy)) as chunks:
        task = bar.add_task(what, total=N)
        for start, results in chunks:
            for index, one in enumerate(results, start):
                if isinstance(one, str):
                    found.bad[index] = one
                else:
                    found.width_N[index], found.height_N[index] = one.width, one.height
                    found.mode_N[index], found.dhash_N[index] = one.mode, one.dhash
                    length_N[index] = one.length
                if keep is not None:
                    keep(None if isinstance(one, str) else one.copy_CHW)
            bar.update(task, completed=start + len(results))
    found.duplicates = _equal_files(root, paths, found.dhash_N, length_N)
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


def near_duplicates(dhash_N: NDArray[np.uint64], bits: int = 5) -> list[list[int]]:
    """Groups of indices whose hashes are alike; images without any contrast (hash 0) are left out.

    Hashes that differ in at most `bits` bits agree in at least two of `bits + 2` blocks. So for every two blocks the hashes are
    sorted by these, and only neighbours that agree there are compared: a million random hashes take seconds, not days.

    Args:
        dhash_N: 64-bit hashes, uint64.
        bits: how many of the 64 may differ, from 0 (only equal hashes) to about 10.

    Returns:
        Groups in ascending order. Two images of a group may be joined by others in between.
    """
    rows = np.flatnonzero(dhash_N)
    values, inverse = np.unique(dhash_N[rows], return_inverse=True)
    leader = np.arange(len(values))
    blocks = bits + 2
    for two in combinations(range(blocks), 2):
        masked = values & np.uint64(sum(1 << bit for bit in range(64) if bit % blocks in two))
        order = np.argsort(masked)
        value, key = values[order], masked[order]
        at = np.arange(len(order))
        for distance in count(1):
            at = at[: np.searchsorted(at, len(order) - distance)]
            at = at[key[at] == key[at + distance]]
            if not len(at):
                break
            near = at[np.bitwise_count(value[at] ^ value[at + distance]) <= bits]
            _unite(leader, order[near], order[near + distance])
    return _groups(rows, leader[inverse])


def _in_order(
    root: Path, paths: Sequence[str], copy: Callable[[Tensor], Tensor] | None
) -> Generator[tuple[int, list[_One | str]]]:
    """(first index, results) chunk by chunk; few chunks are in memory at once, however long the list."""
    waiting: deque[tuple[int, Future[list[_One | str]]]] = deque()
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for start in range(0, len(paths), CHUNK):
            # With Paths, a hundredth of the time would be spent on joining them.
            files = [os.path.join(root, name) for name in paths[start : start + CHUNK]]  # noqa: PTH118
            waiting.append((start, pool.submit(_examine_some, files, copy)))
            if len(waiting) > 2 * usable_cores():
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for what has not begun


def _examine_some(paths: list[str], copy: Callable[[Tensor], Tensor] | None) -> list[_One | str]:
    return [_examine_one(path, copy) for path in paths]


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


def _equal_files(root: Path, paths: Sequence[str], dhash_N: NDArray[np.uint64], length_N: NDArray[np.uint64]) -> list[list[int]]:
    """Groups of equal files; only files of the same length and picture are read again for that."""
    good = np.flatnonzero(length_N)
    alike = np.fromiter(chain.from_iterable(_groups(good, (dhash_N + length_N)[good])), dtype=np.int64)
    digests = [hashlib.sha256((root / paths[index]).read_bytes()).hexdigest() for index in alike.tolist()]
    return sorted(_groups(alike, np.array(digests)))


def _groups(rows: NDArray[np.int64], label: NDArray[Any]) -> list[list[int]]:
    """The rows that share their label with others, label by label."""
    _, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = defaultdict(list)
    for at in np.flatnonzero(counts[inverse] > 1).tolist():
        groups[int(inverse[at])].append(int(rows[at]))
    return list(groups.values())


def _unite(leader: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Give all that these pairs connect one leader, the lowest; before and after, a leader leads itself."""
    while (apart := leader[one] != leader[other]).any():
        one, other = one[apart], other[apart]
        ends = leader[one], leader[other]
        leader[np.maximum(*ends)] = np.minimum(*ends)
        while (leader != leader[leader]).any():
            leader[:] = leader[leader]


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    """Files are what runs in parallel: with threads of torch's inside each thread, scaling takes ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from here on take it over
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=512)
def _scaling(pixels: int, areas: int) -> NDArray[np.float32]:
    """(areas, pixels) float32: what scales so many pixels in a row to so many areas, antialiased."""
    scaled: NDArray[np.float32] = F.interpolate(
        torch.eye(pixels)[None, None], size=(areas, pixels), mode="bilinear", antialias=True
    )[0, 0].numpy()
    return scaled
