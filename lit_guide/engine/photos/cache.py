"""What is remembered of a set of image files between runs: that they can be decoded, and small copies of them.

Everything lies in a folder that is named by the set's root and a fingerprint of its files: their names, sizes and times. When
a file changes, another folder is used, and the old one is removed after a while. A lock lets one process build as others wait.
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lit_guide.engine.errors import UserError
from lit_guide.engine.photos.crops import resize_shorter
from lit_guide.engine.photos.decode import UnreadableImageError, decode
from lit_guide.engine.photos.examine import Examined, examine

VERSION = 1  # of what is stored: a change here makes every older cache stale
DAYS_KEPT = 30  # for what is remembered of a set that has changed since
HINT = "Set data.cache_dir to another disk, or data.cache to none."
Kind = Literal["none", "ram", "disk"]


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/lit-guide`, or `~/.cache/lit-guide`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-guide"


def fingerprint(root: Path, paths: Sequence[str]) -> str:
    """A name for the state of these files below `root`: another one once a file is added, removed, changed or renamed."""
    digest = hashlib.sha256(str(VERSION).encode())
    folder = str(root)
    for path in paths:
        try:
            about = os.stat(os.path.join(folder, path))  # noqa: PTH116, PTH118  # Path would take three times as long
            state = f"{about.st_size} {about.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"\n{path}\0{state}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


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


def open_files(
    root: Path, paths: Sequence[str], kind: Kind, side: int, folder: Path | None
) -> tuple[Examined, CachedImages | None]:
    """Make sure that every file was decoded once, as it is now, and have small copies ready if a cache is wanted.

    Args:
        root: the folder that the paths are relative to.
        paths: the files.
        kind: none, ram: copies in memory, or disk: copies in a file that later runs find again.
        side: pixels of the shorter side of a copy; smaller images are kept as they are.
        folder: where things are remembered; `default_folder()` if None.

    Returns:
        What is bad and what is there twice, and the copies. The rest of `Examined` is not remembered.

    Raises:
        UserError: there is no place, or no permission, for a cache on disk.
    """
    if kind == "ram":
        pixels = bytearray()
        examined, sizes_N2 = _decode_all(root, paths, side, "Decoding images into memory", pixels.extend)
        return examined, CachedImages(sizes_N2, torch.frombuffer(pixels or bytearray(1), dtype=torch.uint8))
    try:
        home = _home(root, paths, folder)
        known = _find(home, root, paths, kind, side)  # what is there is complete: it needs no lock, nor a disk to write to
        if known is None:
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / "lock").acquire()
    except (OSError, RuntimeError) as error:  # no permission, no place, no home directory, or a network disk without locks
        if kind == "disk":
            raise UserError(
                f"{folder or 'The home directory'}: no cache can be written there ({_reason(error)}). {HINT}"
            ) from None
        return examine(root, paths), None
    if known is None:
        with lock:
            known = _find(home, root, paths, kind, side)  # another process may have built it while this one waited
            if known is None:
                known = _build_disk(root, paths, side, home) if kind == "disk" else (examine(root, paths), None)
                with suppress(OSError):
                    _remember(home / "examined.json", known[0])
                    _remove_old(home.parent)
    with suppress(OSError):
        os.utime(home)  # it was used today
    return known


def remember(root: Path, paths: Sequence[str], folder: Path | None, examined: Examined) -> None:
    """Keep what `examine` found, so that `open_files` need not look again; nothing where there is no place for it."""
    with suppress(OSError, RuntimeError):
        home = _home(root, paths, folder)
        home.mkdir(parents=True, exist_ok=True)
        _remember(home / "examined.json", examined)


def _home(root: Path, paths: Sequence[str], folder: Path | None) -> Path:
    states = (folder or default_folder()).expanduser() / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return states / fingerprint(root, paths)


def _any_good(root: Path, paths: Sequence[str], bad: Iterable[int]) -> bool:
    """Whether a file that was bad can be used now: a permission, or a decoder, changes no size and no time."""
    for index in bad:
        with suppress(UnreadableImageError):
            decode(root / paths[index])
            return True
    return False


def _find(home: Path, root: Path, paths: Sequence[str], kind: Kind, side: int) -> tuple[Examined, CachedImages | None] | None:
    """What an earlier call built, if it is whole and still true."""
    done = home / f"shorter-side-{side}"
    try:
        if kind == "none":
            known = _recall(home / "examined.json")
            return None if _any_good(root, paths, known.bad) else (known, None)
        images = CachedImages(torch.from_numpy(np.load(done / "sizes.npy")), done / "images.bin")
        whole = (done / "images.bin").stat().st_size == images.start_N[-1]
        known = _recall(done / "manifest.json")
        return (known, images) if whole and not _any_good(root, paths, known.bad) else None
    except Exception:  # not there, or damaged in one of many ways: it is built again
        return None


def _build_disk(root: Path, paths: Sequence[str], side: int, home: Path) -> tuple[Examined, CachedImages | None]:
    done, part = home / f"shorter-side-{side}", home / f"shorter-side-{side}.part"
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

            examined, sizes_N2 = _decode_all(root, paths, side, "Decoding images into the cache", write)
        np.save(part / "sizes.npy", sizes_N2.numpy())
        _remember(part / "manifest.json", examined)
        part.rename(done)  # complete, or not there at all
    except OSError as error:
        raise UserError(f"{part}: the cache can't be written ({_reason(error)}). {HINT}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return examined, CachedImages(sizes_N2, done / "images.bin")


def _decode_all(
    root: Path, paths: Sequence[str], side: int, what: str, write: Callable[[memoryview], object]
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

    return examine(root, paths, what, partial(resize_shorter, side=side, enlarge=False), keep), sizes_N2


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        gib = f"{needed / 2**30:.1f} GiB more, {free / 2**30:.1f} GiB are free"
        raise UserError(f"{folder}: the cache needs about {gib}. {HINT}")


def _remove_old(folder: Path) -> None:
    """Remove what is remembered of earlier states of a set, once it has not been used for a while."""
    for home in folder.iterdir():
        if time.time() - home.stat().st_mtime > DAYS_KEPT * 86400:
            shutil.rmtree(home, ignore_errors=True)


def _remember(path: Path, examined: Examined) -> None:
    bad = {str(index): reason for index, reason in examined.bad.items()}
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"bad": bad, "duplicates": examined.duplicates}), encoding="utf-8")
    part.replace(path)


def _recall(path: Path) -> Examined:
    known = json.loads(path.read_text(encoding="utf-8"))
    return Examined({int(index): reason for index, reason in known["bad"].items()}, known["duplicates"])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
