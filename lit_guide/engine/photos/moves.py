"""Moving files of a set, and back: each move is written down before it is made, and none leads into or out of other folders."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_guide.engine.errors import ConfigError, UserError

UNDO = "undo.jsonl"  # a line for each move: where the file is now, seen from the list's folder, and where it was


def move(moves: Iterable[tuple[Path, Path]], folder: Path, inside: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Move files, and write the list that `undo` reads to a folder. Nothing is replaced: a name that is taken gets a number.

    Args:
        moves: (where a file is, where it shall be), absolute.
        folder: made where it is not there.
        inside: the folders that files may come from and go to.

    Returns:
        Where those that were moved are now; those that were left: links, and what lies, by way of a link, in no such folder.
        A UserError where a file can't be moved.
    """
    done: list[Path] = []
    left: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listed = os.open(folder / UNDO, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with os.fdopen(listed, "a", encoding="utf-8", errors="surrogateescape") as file:
            for source, wanted in moves:
                target, number = wanted, 2
                while os.path.lexists(target):
                    target, number = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}"), number + 1
                if source.is_symlink() or not (lies_in(source, inside) and lies_in(target, inside)):
                    left.append(source)
                elif source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.write(json.dumps({"now": os.path.relpath(target, folder), "was": str(source)}) + "\n")
                    file.flush()  # before the move is made: so an interruption loses none
                    shutil.move(source, target)
                    done.append(target)
    except OSError as error:
        raise UserError(f"{len(done)} files were moved to {folder}, then: {error.strerror}: {error.filename}.") from None
    return done, left


def undo(folder: Path, inside: Sequence[Path]) -> list[Path]:
    """Move all that is still where `move` put it to where it was, the last one first; returns where that is.

    Raises:
        ConfigError: there is no list in `folder`.
        UserError: the list leads out of `inside`, and nothing is moved; another file has taken a place; or a file can't be moved.
    """
    listed = folder / UNDO
    if not listed.is_file():
        raise ConfigError(f"There is nothing to put back: no {listed}.")
    moves = []
    for number, line in enumerate(listed.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        if not line.endswith("}"):  # half a line is of a move that was not made
            continue
        try:
            one = json.loads(line)
            now, was = folder / one["now"], Path(one["was"])
            fits = was.is_absolute() and lies_in(now, inside) and lies_in(was, inside)
        except (ValueError, TypeError, KeyError, OSError):
            fits = False
        if not fits:
            raise UserError(f"{listed}, line {number}: it leads out of the set, so it was changed. Nothing was moved.")
        moves.append((now, was))
    back: list[Path] = []
    for now, was in reversed(moves):
        if now.is_symlink() or not now.is_file():  # written down, but never moved; or taken out by hand
            continue
        done = f"{len(back)} files were put back, then"
        if os.path.lexists(was):
            raise UserError(f"{done}: {was} is there again. Move it or {now} away, and undo once more.")
        try:
            was.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(now, was)
        except OSError as error:
            raise UserError(f"{done}: {error.strerror}: {error.filename}.") from None
        back.append(was)
    listed.unlink()
    return back


def lies_in(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path, all links in it followed, lies in one of these folders, theirs followed too."""
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)
