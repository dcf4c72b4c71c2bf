"""The image files of a set: their names, how they are listed, and the Dataset over them.

Shapes: B images a batch, C channels, H x W pixels, K classes, N files.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_guide.engine.errors import printable
from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode

SHOWN = 20  # paths that a message lists


class Paths(Sequence[str]):
    """Names of files, packed into two tensors: their bytes, and where each ends.

    A list of a million strings takes some 120 MB, and every loader process comes to own a copy of it, because counting
    references writes to each string. These tensors take the bytes and 8 more for each name, and the workers share them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        packed, ends = bytearray(), array("q", [0])
        for name in names:
            packed += name.encode("utf-8", "surrogatepass")  # as Python has it: a name on disk need not be valid UTF-8
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
        return [str(content[start:end], "utf-8", "surrogatepass") for start, end in places]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):  # one at a time would take ten times as long
            yield from self[start : start + 4096]


@dataclass(frozen=True)
class Listing:
    """The files of a set, before any was opened."""

    root: Path  # the folder that the paths are relative to
    paths: Sequence[str]  # the N files
    labels_N: NDArray[np.int64]  # class index of each
    class_names: list[str]  # the K names
    # Split name -> indices, where the set comes split; a split that is missing is cut from train.
    rows: Mapping[str, NDArray[np.int64]] | None = None
    notes: Sequence[str] = ()  # what was left out, in words


@dataclass(eq=False, repr=False)
class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels. Sample i is (image_CHW uint8 RGB, label), after `transform` if there is one.

    For whole batches `transform` must give the same size for every image.
    """

    root: Path | str  # the folder that the paths are relative to
    paths: Sequence[str]  # the N files
    label_N: Tensor  # class index of each, int64
    transform: Callable[[Tensor], Tensor] | None = None  # image (C, H, W) uint8 -> what the sample shall hold in its place
    read: Callable[[int], Tensor] | None = None  # index -> image (C, H, W) uint8, in the place of decoding the file: a cache
    reading: Reading = Reading()

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
                image_CHW = decode(path, reading=self.reading)
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


def joined(names: Sequence[str], sign: str, most: int = 5) -> str:
    """The first names with a sign between them, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return sign.join([*map(printable, names[:most]), *more])


def shown(lines: Sequence[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"  {printable(line)}" for line in lines[:SHOWN]] + more)
