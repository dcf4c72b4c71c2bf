"""The image files of a set: their names, the Dataset over them, and what can be wrong with how they are divided into splits.

Shapes: B images a batch, C channels, H x W pixels, K classes, N files.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_guide.engine.errors import ConfigError, UserError, warn
from lit_guide.engine.photos.decode import UnreadableImageError, decode

SHOWN = 20  # paths that a message lists


class Paths(Sequence[str]):
    """Names of files, packed into two tensors: their bytes, and where each ends.

    A list of a million strings takes some 120 MB, and every loader process comes to own a copy of it, because counting
    references writes to each string. These tensors take the bytes and 8 more for each name, and the workers share them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        packed, ends = bytearray(), array("q", [0])
        for name in names:
            packed += name.encode("utf-8", "surrogateescape")  # a name on disk need not be valid UTF-8
            ends.append(len(packed))
        self._bytes = torch.frombuffer(packed, dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(index)
            return self[index % len(self) : index % len(self) + 1][0]
        end_N, content = self._ends.numpy(), self._bytes.numpy().data
        places = zip(end_N[:-1][index].tolist(), end_N[1:][index].tolist(), strict=True)
        return [str(content[start:end], "utf-8", "surrogateescape") for start, end in places]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):  # one at a time would take ten times as long
            yield from self[start : start + 4096]


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


@dataclass(eq=False, repr=False)
class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels. Sample i is (image_CHW uint8 RGB, label), after `transform` if there is one.

    Args:
        root: the folder that the paths are relative to.
        paths: the N files.
        label_N: their class indices, int64.
        transform: an image (C, H, W) uint8 -> what the sample shall hold in its place. For whole batches it must give the same
            size for every image.
        read: index -> image (C, H, W) uint8, in the place of decoding the file: a cache.
    """

    root: Path | str
    paths: Sequence[str]
    label_N: Tensor
    transform: Callable[[Tensor], Tensor] | None = None
    read: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index`.

        Raises:
            UnreadableImageError: the file can't be decoded; the message names it.
        """
        if self.read is not None:
            image_CHW = self.read(index)
        else:
            path = Path(self.root, self.paths[index])
            try:
                image_CHW = decode(path)
            except UnreadableImageError as error:
                raise UnreadableImageError(f"{path}: {error}") from None
        if self.transform is not None:
            image_CHW = self.transform(image_CHW)
        return image_CHW, self.label_N[index]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples: (image_BCHW, label_B), the pixels of an image side by side (channels_last)."""
        first_CHW, _ = self[indices[0]]
        C, H, W = first_CHW.shape
        image_BHWC = torch.empty(len(indices), H, W, C, dtype=first_CHW.dtype)
        if get_worker_info() is not None:  # now, while it is empty: else the finished batch is copied once more to be sent
            image_BHWC.share_memory_()  # type: ignore[no-untyped-call]
        image_BHWC[0] = first_CHW.permute(1, 2, 0)
        for at, index in enumerate(indices[1:], start=1):
            image_BHWC[at] = self[index][0].permute(1, 2, 0)
        return image_BHWC.permute(0, 3, 1, 2), self.label_N[indices]


def groups_of(paths: Sequence[str], rows: NDArray[np.int64], pattern: re.Pattern[str]) -> list[str]:
    """What `pattern` finds in the path of each of these rows; a ConfigError where it finds nothing."""
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
