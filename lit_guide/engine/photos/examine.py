"""Decode every file of a set once, in threads: what is broken, what is there twice, and copies for a cache.

torchvision and Pillow release Python's lock while they decode, so threads use all cores and share one memory.
"""

import hashlib
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from lit_guide.engine.machine import usable_cores
from lit_guide.engine.photos.decode import Counter, Reading, UnreadableImageError, decode_bytes, quiet_libjpeg, read_bytes
from lit_guide.engine.photos.headers import JPEG, Bytes, image_mode, jpeg_header

CHUNK = 8  # files a task: enough that handing tasks out costs nothing
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # brightness of RGB, as JPEG has it (ITU-R BT.601)
AS_HASHED = Reading(least_side=192)  # pixels of the shorter side that are enough for `difference_hash`
DAMAGED = 128  # of "signs": libjpeg warned of the file
QUIET_BELOW = 500  # files that need no progress bar
Look = Callable[[Bytes, Tensor], int]
_One = str | tuple[tuple[int, int, str, int, int, int], Tensor | None]  # why a file is bad; or what is seen of it, and a copy


# What is seen of a file: pixels, upright, 0 for a bad file; the mode that Pillow gives it before it becomes RGB, such as L, P,
# RGBA, CMYK or I;16, ? if it gives none; 64 bits that are near for near duplicates; bytes; what `look` says, and DAMAGED.
SEEN = np.dtype([("width", "i4"), ("height", "i4"), ("mode", "U8"), ("dhash", "u8"), ("length", "u8"), ("signs", "u1")])


@dataclass
class Examined:
    """What a full decode of N files found."""

    bad: dict[int, str]  # index of a file -> why it can't be used
    duplicates: list[list[int]]  # groups of indices whose files are equal, byte for byte; a group is in ascending order
    # The fields of SEEN for each file; none where only the other two are remembered.
    seen_N: NDArray[Any] = field(default_factory=lambda: np.zeros(0, SEEN))


def examine(
    root: Path,
    paths: Sequence[str],
    what: str = "Checking images",
    copy: Callable[[Tensor], Tensor] | None = None,
    keep: Callable[[Tensor | None], None] | None = None,
    reading: Reading = AS_HASHED,
    look: Look | None = None,
) -> Examined:
    """Decode all files.

    Args:
        root, paths: the N files, and the folder that the paths are relative to.
        what: the words before the progress bar.
        copy: makes of an image (C, H, W) uint8 what `keep` shall get; runs in the threads.
        keep: called with every copy in the order of the files, None for a bad file; runs in the calling thread.
        reading: how they are read; of a JPEG that comes out smaller all data are read too, but libjpeg's warnings stay unseen.
        look: makes of a file's content and its image, or brightness, seven bits for "signs"; runs in the threads.
    """
    N = len(paths)
    found = Examined({}, [], np.zeros(N, SEEN))
    columns = (SpinnerColumn(), TextColumn(what), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = N < QUIET_BELOW or not console.is_terminal
    if hidden and N >= QUIET_BELOW:
        print(f"{what}: {N:,} files", file=sys.stderr)
    read = partial(decode_bytes, reading=reading, brightness=copy is None)
    with ExitStack() as stack:
        if not hidden:  # to the terminal itself: what the error stream gets below comes at the end
            console = Console(file=stack.enter_context(open(os.dup(2), "w", encoding=console.encoding, errors="replace")))
        printed = stack.enter_context(quiet_libjpeg())
        bar = stack.enter_context(Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=hidden))
        one_file = partial(_examine_one, read=read, copy=copy, look=look, printed=printed)
        results = stack.enter_context(closing(_in_order(root, paths, one_file)))
        for index, one in enumerate(bar.track(results, total=N)):
            if isinstance(one, str):
                found.bad[index] = one
            else:
                found.seen_N[index] = one[0]
            if keep is not None:
                keep(None if isinstance(one, str) else one[1])
        for index in np.flatnonzero(found.seen_N["signs"] & DAMAGED).tolist():  # or one that was decoded at the same time
            before = printed()
            with suppress(UnreadableImageError):
                read(read_bytes(root / paths[index]))
            if printed() == before:
                found.seen_N["signs"][index] ^= DAMAGED
    # Equal files have the same length and picture: only those are read again.
    length_N = found.seen_N["length"]
    good = np.flatnonzero(length_N)
    candidates = np.fromiter(chain.from_iterable(alike(good, (found.seen_N["dhash"] + length_N)[good])), dtype=np.int64)
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


def _in_order(root: Path, paths: Sequence[str], look: Callable[[str], _One]) -> Generator[_One]:
    """What is found of each file; few of them are in memory at once, however long the list."""

    def some(start: int) -> list[_One]:
        # With Paths, a hundredth of the time would be spent on joining them.
        return [look(os.path.join(root, name)) for name in paths[start : start + CHUNK]]  # noqa: PTH118

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


def _examine_one(
    path: str, read: Callable[[Bytes], Tensor], copy: Callable[[Tensor], Tensor] | None, look: Look | None, printed: Counter
) -> _One:
    before = printed()
    try:
        data = read_bytes(path)
        image_CHW = read(data)
    except UnreadableImageError as error:
        return str(error)
    try:
        mode = image_mode(data)
    except Exception:  # torchvision reads some files that Pillow refuses, such as a WebP with a broken chunk at its end
        mode = "?"
    (_, H, W), full = image_CHW.shape, jpeg_header(data)[:2]
    if data[:3].tobytes() == JPEG and min(full) > min(H, W):  # it came out smaller
        H, W = sorted(full, reverse=H > W)
    warned = data[:3].tobytes() == JPEG and printed() != before
    signs = look(data, image_CHW) | (DAMAGED if warned else 0) if look else 0
    seen = (W, H, mode, difference_hash(image_CHW), len(data), signs)
    return seen, copy(image_CHW) if copy else None


@lru_cache(maxsize=512)
def _scaling(pixels: int, areas: int) -> NDArray[np.float32]:
    """(areas, pixels) float32: what scales so many pixels in a row to so many areas, antialiased."""
    eye_11PP = torch.eye(pixels)[None, None]
    scaled: NDArray[np.float32] = F.interpolate(eye_11PP, size=(areas, pixels), mode="bilinear", antialias=True)[0, 0].numpy()
    return scaled
