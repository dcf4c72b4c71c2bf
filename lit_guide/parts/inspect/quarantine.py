"""Bad files are moved to a folder beside the set, never deleted, and can be moved back."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from lit_guide.engine.errors import ConfigError, UserError

UNDO = "undo.jsonl"  # a line for each file: where it is now and where it was


def folder_of(root: Path) -> Path:
    """Where the bad files of a set go: `photos-quarantine` beside `photos`."""
    root = root.expanduser().absolute()
    return root.with_name(f"{root.name}-quarantine")


def quarantine(root: Path, files: Iterable[str | Path]) -> list[Path]:
    """Move those of the files that are there out of a set; returns where they are now. `put_back` undoes it.

    Raises:
        UserError: a file can't be moved.
    """
    root = root.expanduser().absolute()
    folder = folder_of(root)
    moved: list[Path] = []
    try:
        folder.mkdir(exist_ok=True)
        with (folder / UNDO).open("a", encoding="utf-8") as undo:
            for file in map(Path, files):
                source = file.expanduser().absolute()
                if not source.is_file():
                    continue
                # A table may list files outside the folder: those go by their name alone.
                inside = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
                target, number = folder / inside, 2
                while target.exists():
                    target, number = target.with_name(f"{inside.stem}-{number}{inside.suffix}"), number + 1
                target.parent.mkdir(parents=True, exist_ok=True)
                undo.write(json.dumps({"now": str(target.relative_to(folder)), "was": str(source)}) + "\n")
                undo.flush()  # before the move is made: so an interruption loses none
                shutil.move(source, target)
                moved.append(target)
    except OSError as error:
        raise UserError(f"{len(moved)} files were moved to {folder}, then: {error.strerror}: {error.filename}.") from None
    return moved


def put_back(root: Path) -> list[Path]:
    """Move all that is still in quarantine to where it was, the last one first; returns where that is.

    Raises:
        ConfigError: nothing is in quarantine.
        UserError: another file has taken a place, or a file can't be moved; it stays on the list.
    """
    folder = folder_of(root)
    undo = folder / UNDO
    if not undo.is_file():
        raise ConfigError(f"There is nothing to put back: no {undo}.")
    text = undo.read_text(encoding="utf-8", errors="surrogateescape")
    moves = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # half a line is of a move that was not made
    back: list[Path] = []
    for move in reversed(moves):
        now, was = folder / move["now"], Path(move["was"])
        if not now.is_file():  # written down, but never moved; or taken out by hand
            continue
        done = f"{len(back)} files were put back, then"
        if was.exists():
            raise UserError(f"{done}: {was} is there again. Move it or {now} away, and undo once more.")
        try:
            was.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(now, was)
        except OSError as error:
            raise UserError(f"{done}: {error.strerror}: {error.filename}.") from None
        back.append(was)
    undo.unlink()
    for inside in (*sorted(folder.rglob("*"), reverse=True), folder):
        if inside.is_dir() and not any(inside.iterdir()):
            inside.rmdir()
    return back
