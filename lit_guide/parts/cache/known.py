"""What is remembered of a set of image files between runs: that they can be decoded, and what a cache keeps beside that.

Everything lies in a folder that is named by the set's root and a fingerprint of its files: their names, sizes and times. When
a file changes, another folder is used, and the old one is removed after a while. A lock lets one process build as others wait.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from lit_guide.engine.errors import UserError
from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode
from lit_guide.engine.photos.examine import AS_HASHED, Examined, Look, examine

VERSION = 2  # of what is stored: a change here makes every older record, and cache, stale
DAYS_KEPT = 30  # for what is remembered of a set that has changed since
RECORD = "examined.json"
HINT = "Set data.cache_dir to another disk, or data.cache to none."
T = TypeVar("T")


def examine_once(
    root: Path,
    paths: Sequence[str],
    folder: Path | None,
    white_level: int | None = None,
    anew: bool = False,
    look: Look | None = None,
) -> Examined:
    """What `examine` finds, or found before as these files are now; remembered are the bad ones and those that are equal.

    Args:
        root, paths: the files, and the folder that the paths are relative to.
        folder: where things are remembered; `default_folder()` if None.
        white_level: as `decode` takes it.
        anew: look at every file, and remember that.
        look: as `examine` takes it; what it says is not remembered.
    """
    decode_all = partial(examine, root, paths, reading=AS_HASHED._replace(white_level=white_level), look=look)
    if anew:
        examined = decode_all()
        remember(root, paths, folder, examined, white_level)
        return examined
    try:
        return once(root, paths, folder, lambda home: (recall(home / RECORD), None), lambda _: (decode_all(), None), white_level)[
            0
        ]
    except UserError:  # nothing can be remembered
        return decode_all()


def once(
    root: Path,
    paths: Sequence[str],
    folder: Path | None,
    find: Callable[[Path], tuple[Examined, T]],
    build: Callable[[Path], tuple[Examined, T]],
    white_level: int | None = None,
) -> tuple[Examined, T]:
    """What `find` gives, or `build` where that fails; of several processes one builds. The examination is remembered as well.

    Args:
        root, paths: the files, and the folder that the paths are relative to.
        folder: where things are remembered; `default_folder()` if None.
        find: reads what `build` made in the folder of these files; any exception means that it is not there, or damaged.
        build: makes it.
        white_level: as `decode` takes it: with another one the files are other images.

    Raises:
        UserError: it is to be built, and nothing can be written.
    """

    def known() -> tuple[Examined, T] | None:
        with suppress(Exception):
            found = find(home)
            for index in found[0].bad:
                with suppress(UnreadableImageError):
                    decode(root / paths[index], reading=Reading(white_level))
                    return None  # it can be read now: a permission, or a decoder, changes no size and no time
            return found
        return None

    try:
        home = _home(root, paths, folder, white_level)
        found = known()  # what is complete needs no lock, nor a disk to write to
        if found is None:
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / "lock").acquire()
    except (OSError, RuntimeError) as error:  # no permission, no place, no home directory, or a network disk without locks
        where = folder or "The home directory"
        raise UserError(f"{where}: no cache can be written there ({reason_of(error)}). {HINT}") from None
    if found is None:
        with lock:
            found = known()  # another process may have built it while this one waited
            if found is None:
                found = build(home)
                with suppress(OSError):
                    record(home / RECORD, found[0])
                    for state in home.parent.iterdir():
                        if time.time() - state.stat().st_mtime > DAYS_KEPT * 86400:
                            shutil.rmtree(state, ignore_errors=True)
    with suppress(OSError):
        os.utime(home)  # it was used today
    return found


def remember(root: Path, paths: Sequence[str], folder: Path | None, examined: Examined, white_level: int | None = None) -> None:
    """Keep what `examine` found, so that nobody need look again; nothing where there is no place for it."""
    with suppress(OSError, RuntimeError):
        home = _home(root, paths, folder, white_level)
        home.mkdir(parents=True, exist_ok=True)
        record(home / RECORD, examined)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/lit-guide`, or `~/.cache/lit-guide`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-guide"


def fingerprint(root: Path, paths: Sequence[str], white_level: int | None = None) -> str:
    """A name for the state of these files below `root`: another one once a file is added, removed, changed or renamed."""
    digest = hashlib.sha256((f"{VERSION}" if white_level is None else f"{VERSION} white {white_level}").encode())
    folder = str(root)
    for path in paths:
        try:
            about = os.stat(os.path.join(folder, path))  # noqa: PTH116, PTH118  # Path would take three times as long
            state = f"{about.st_size} {about.st_mtime_ns}"
        except (OSError, ValueError):  # the second for a name that no file can have
            state = "missing"
        digest.update(f"\n{path}\0{state}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def record(path: Path, examined: Examined) -> None:
    """Write what was found, in one step."""
    bad = {str(index): reason for index, reason in examined.bad.items()}
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"bad": bad, "duplicates": examined.duplicates}), encoding="utf-8")
    part.replace(path)


def recall(path: Path) -> Examined:
    """What `record` wrote; raises whatever a damaged file makes."""
    known = json.loads(path.read_text(encoding="utf-8"))
    return Examined({int(index): reason for index, reason in known["bad"].items()}, known["duplicates"])


def reason_of(error: Exception) -> str:
    """Why a file can't be written, in the system's words."""
    return getattr(error, "strerror", None) or str(error)


def _home(root: Path, paths: Sequence[str], folder: Path | None, white_level: int | None) -> Path:
    states = (folder or default_folder()).expanduser() / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return states / fingerprint(root, paths, white_level)
