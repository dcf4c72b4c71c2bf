"""The files of a set of photos, as they are listed, and what can be wrong with how they are divided into splits."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_guide.engine.errors import ConfigError, UserError, warn

# What Windows, macOS, network drives and repairs leave between images, in lower case.
SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
SHOWN = 20  # paths that a message lists


@dataclass(frozen=True)
class Listing:
    """The files of a set, before any was opened.

    Attributes:
        root: the folder that the paths are relative to.
        paths: the N files.
        labels_N: class index of each, int64.
        class_names: the K names.
        rows: split name -> indices, where the set comes split; a split that is missing is cut from train.
        notes: what was left out, in words.
    """

    root: Path
    paths: Sequence[str]
    labels_N: NDArray[np.int64]
    class_names: list[str]
    rows: Mapping[str, NDArray[np.int64]] | None = None
    notes: Sequence[str] = ()


def groups_of(paths: Sequence[str], rows: NDArray[np.int64], pattern: re.Pattern[str]) -> list[str]:
    """What `pattern` finds in the path of each of these rows.

    Raises:
        ConfigError: it finds nothing in one of them.
    """
    names, groups = list(paths), []
    for row in rows.tolist():
        match = pattern.search(names[row])
        if match is None or not match[1]:
            raise ConfigError(f"data.group_pattern {pattern.pattern} finds nothing in {names[row]}.")
        groups.append(match[1])
    return groups


def check_rows(
    listing: Listing,
    rows: Mapping[str, NDArray[np.int64]],
    fractions: Mapping[str, float],
    duplicates: Sequence[Sequence[int]],
    pattern: re.Pattern[str] | None,
) -> None:
    """Refuse splits without images; warn of what is in two splits or two classes, and of classes that a split lacks.

    Args:
        listing: the files.
        rows: split name -> their rows.
        fractions: split name -> its share: one of 0 may be empty.
        duplicates: groups of equal files.
        pattern: gives the group of a file, by its path.

    Raises:
        UserError: a split other than val got no images.
    """

    def equal(groups: Sequence[Sequence[int]]) -> str:
        return shown([joined([listing.paths[index] for index in group], " = ") for group in groups])

    for name, share in fractions.items():
        if not len(rows[name]) and share > 0:
            message = f"the {name} split got none of the {sum(map(len, rows.values()))} images"
            if name != "val":
                raise UserError(f"{message.capitalize()}: add images, or change data.val_fraction and data.test_fraction.")
            warn(f"{message}: there is no validation. Add images, or raise data.val_fraction.")
    split_N = np.full(len(listing.paths), -1)
    for number, name in enumerate(rows):
        split_N[rows[name]] = number
    if leaks := [group for group in duplicates if len(set(split_N[group]) - {-1}) > 1]:
        warn(f"{len(leaks)} images are in more than one split, so scores on them mean nothing:\n{equal(leaks)}")
    if torn := [group for group in duplicates if len(set(listing.labels_N[group])) > 1]:
        warn(f"{len(torn)} images are in more than one class:\n{equal(torn)}")
    if pattern is not None:
        of_split = [dict.fromkeys(groups_of(listing.paths, indices, pattern)) for indices in rows.values()]
        counted = Counter(group for groups in of_split for group in groups)
        if split_up := [group for group, count in counted.items() if count > 1]:
            warn(f"{len(split_up)} groups of data.group_pattern are in more than one split:\n{shown(split_up)}")
    for name, indices in rows.items():
        lacking = np.setdiff1d(np.arange(len(listing.class_names)), listing.labels_N[indices])
        if len(indices) and len(lacking):
            classes = shown([listing.class_names[k] for k in lacking])
            warn(f"the {name} split has no image of {len(lacking)} classes:\n{classes}")


def joined(names: Sequence[str], sign: str, most: int = 5) -> str:
    """The first names with a sign between them, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return sign.join([*names[:most], *more])


def shown(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"  {line}" for line in lines[:SHOWN]] + more)


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
