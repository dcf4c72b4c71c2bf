"""A folder of class folders, `root/cat/1.jpg`, or of such folders for each split, `root/train/cat/1.jpg`.

The Dataset over it, and the DataModule.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_guide.engine.data.source import SPLIT_NAMES
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import expanded
from lit_guide.engine.photos.dataset import ImageDataset, Listing, Paths, shown
from lit_guide.engine.photos.listing import files_below, hidden, visible_folders
from lit_guide.engine.photos.module import PhotoData


class ImageFolderDataset(ImageDataset):
    """The images in `root/<class>/**` with the class as label: sample i is (image_CHW uint8 RGB, label).

    Classes are numbered in the order of their names. Hidden files are left out.

    Args:
        root: the folder with one folder a class.
        transform: an image (C, H, W) uint8 -> what the sample shall hold in its place.

    Raises:
        UserError: there are no class folders in it, or no files in them.
    """

    def __init__(self, root: Path | str, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        listing = list_folder(Path(root))
        self.class_names = listing.class_names
        super().__init__(root, listing.paths, torch.from_numpy(listing.labels_N), transform)


class FolderData(PhotoData):
    """Photos in class folders: `root/<class>/*`, or `root/{train,val,test}/<class>/*`.

    Without folders for the splits the files are divided here, stratified and seeded; a split that is missing is cut from train.

    Args:
        root: the folder.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.folder = Path(expanded(root))

    def scan(self) -> Listing:
        """List the files of every class.

        Raises:
            ConfigError: there is no such folder.
            UserError: it holds no class folders, or only one with images, or no folder train beside val or test.
        """
        root = Path(expanded(self.root))
        if not root.is_dir():
            what = f"{root} is a file, no folder" if root.exists() else f"There is no folder {root}"
            raise ConfigError(f"{what}. Give the folder of your class folders with --data.root DIR.")
        splits = split_folders(root)
        if splits and "train" not in splits:
            raise UserError(f"{root} has {' and '.join(splits.values())}, but no train.")
        listing = list_folder(root, splits)
        if len(listing.class_names) == 1:
            only = root / splits.get("train", "") / listing.class_names[0]
            inside = (
                f" If the folders in it are the classes, give --data.root {only}." if not splits and visible_folders(only) else ""
            )
            raise UserError(f"The only class folder with images is {only}: a classifier needs at least two.{inside}")
        return listing


def split_folders(root: Path) -> dict[str, str]:
    """Split name -> name of its folder; empty where the folders in `root` are classes.

    Raises:
        UserError: a split has two folders.
    """
    there = visible_folders(root)
    found = {split: [name for name in there if name.lower() in names] for split, names in SPLIT_NAMES.items()}
    splits = {split: folders[0] for split, folders in found.items() if folders}
    others = [name for name in there if name not in splits.values()]
    # One of these names may be a class: bus, car, train. Several of them, or train with class folders in it, mean splits.
    if len(splits) < 2 and ("train" not in splits or (others and not visible_folders(root / splits["train"]))):
        return {}
    for folders in found.values():
        if len(folders) > 1:
            raise UserError(f"{root} has both {' and '.join(folders)}: keep one of them.")
    return splits


def list_folder(root: Path, splits: Mapping[str, str] | None = None) -> Listing:
    """List the files in class folders.

    Args:
        root: the folder.
        splits: split name -> the folder in `root` that its class folders are in; they are in `root` itself if there are none.

    Raises:
        UserError: there are no class folders, or no files in them.
    """
    notes: list[str] = []
    if splits and (others := [name for name in visible_folders(root) if name not in splits.values()]):
        listed = shown([str(root / name) for name in others])
        notes.append(f"folders beside {' and '.join(splits.values())} are not used:\n{listed}")
    where: list[tuple[str, str, str]] = []  # split, class, and their folder
    for split, folder in (splits or {"": ""}).items():
        classes = visible_folders(root / folder)
        if not classes:
            example = root / folder / "cat" / "1.jpg"
            raise UserError(f"{root / folder} holds no class folders: put the images of each class into one, such as {example}.")
        if loose := [entry.name for entry in (root / folder).iterdir() if entry.is_file() and not hidden(entry.name)]:
            notes.append(f"files in {root / folder} outside the class folders are not used:\n{shown(sorted(loose))}")
        where += [(split, name, f"{folder}/{name}" if folder else name) for name in classes]
    class_names = sorted({name for _, name, _ in where})
    counts: list[int] = []

    def names() -> Iterator[str]:
        for _, _, folder in where:
            inside = [f"{folder}/{path}" for path in files_below(root / folder)]
            counts.append(len(inside))
            yield from inside

    paths = Paths(names())
    if not len(paths):
        raise UserError(f"There are no images in the folders of {root}.")
    number = {name: index for index, name in enumerate(class_names)}
    labels_N = np.repeat([number[name] for _, name, _ in where], counts)
    if empty := [str(root / folder) for (_, _, folder), count in zip(where, counts, strict=True) if not count]:
        notes.append(f"folders without an image are left out:\n{shown(empty)}")
        used, labels_N = np.unique(labels_N, return_inverse=True)
        class_names = [class_names[k] for k in used]
    rows = None
    if splits:
        split_N = np.repeat([split for split, _, _ in where], counts)
        # A split without images is as good as not there.
        rows = {split: at for split in splits if len(at := np.flatnonzero(split_N == split)) or split == "train"}
    return Listing(root, paths, labels_N, class_names, rows, notes)
