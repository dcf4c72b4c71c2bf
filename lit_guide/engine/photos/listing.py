"""Which files a folder holds: those of the user, in order, and not those of the system."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_guide.engine.errors import UserError

# What Windows, macOS, network drives and repairs leave between images, in lower case.
SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def visible_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, in order, those left out that hold no images of the user."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not hidden(entry.name))


def hidden(name: str) -> bool:
    """Whether a file or folder is the system's, not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM


def files_below(folder: Path) -> Iterator[str]:
    """Files in a class folder and the folders in it, relative to it, in order; links are followed, each folder read once.

    Raises:
        UserError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be read: {error.strerror}.")

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder above it would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        inside = "" if Path(parent) == folder else f"{Path(parent).relative_to(folder).as_posix()}/"
        yield from [inside + name for name in sorted(names) if not hidden(name)]


def find_images(paths: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Expand folders into the files below them that `fit` would take; and path -> reason for what is not there, or empty."""
    files: list[Path] = []
    missing: dict[str, str] = {}
    for path in map(Path, paths):
        inside = [path / name for name in files_below(path)] if path.is_dir() else [path] if path.exists() else []
        files += inside
        if not inside:
            missing[str(path)] = "no image files in this folder" if path.is_dir() else "no such file or folder"
    return files, missing
