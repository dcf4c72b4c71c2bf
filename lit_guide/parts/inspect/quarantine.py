"""Bad files are moved to a folder beside the set, never deleted, and can be moved back."""

from collections.abc import Iterable
from pathlib import Path

from lit_guide.engine.errors import UserError
from lit_guide.engine.photos.moves import move, undo


def folder_of(root: Path) -> Path:
    """Where the bad files of a set go: `photos-quarantine` beside `photos`.

    Raises:
        UserError: that is a link, so they would go elsewhere.
    """
    root = root.absolute()
    folder = root.with_name(f"{root.name}-quarantine")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: move it away. Files go to a folder of that name.")
    return folder


def quarantine(root: Path, files: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Move those of the files that are there out of a set: where they are now, and those that were left. `put_back` undoes it.

    Links, and files that lie elsewhere by way of a link, are left.

    Raises:
        UserError: a file can't be moved.
    """
    root, folder = root.absolute(), folder_of(root)
    sources = [Path(file).absolute() for file in files]
    moves = [(source, folder / (source.relative_to(root) if source.is_relative_to(root) else source.name)) for source in sources]
    return move(moves, folder, (root, folder))


def put_back(root: Path) -> list[Path]:
    """Move all that is still in quarantine to where it was, the last one first; returns where that is.

    Raises:
        ConfigError: nothing is in quarantine.
        UserError: the list was changed, another file has taken a place, or a file can't be moved.
    """
    folder = folder_of(root)
    back = undo(folder, (root.absolute(), folder))
    for inside in (*sorted(folder.rglob("*"), reverse=True), folder):
        if inside.is_dir() and not inside.is_symlink() and not any(inside.iterdir()):
            inside.rmdir()
    return back
