"""What a source of images gives, its pixels as numbers, and how it is divided: stratified, seeded, disjoint splits.

Shapes: B images a batch, C channels, H x W pixels, K classes, N samples.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.errors import UserError

# What people call the splits.
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
SPLITS = tuple(SPLIT_NAMES)
# Mean and standard deviation that torchvision's pretrained networks were trained with:
# https://docs.pytorch.org/vision/stable/models.html
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Source:
    """What `load` of a source finds: all samples of all splits.

    Sample i is (image_CHW, label). If the dataset has a method `batch(rows)`, that gives whole batches (image_BCHW, label_B).
    """

    dataset: Dataset[tuple[Tensor, Tensor]]
    labels_N: NDArray[np.int64]  # class index of every sample
    class_names: list[str]  # the K names, in the order of the indices
    # Split name -> sample indices, where the data come with their own split; None to be split here.
    rows: Mapping[str, NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        check_classes(self.class_names)


def check_classes(names: Sequence[str]) -> None:
    """Refuse a set with fewer than two classes by a UserError."""
    if len(names) < 2:
        raise UserError(f"The data have {len(names)} class: a classifier needs at least two.")


def to_float(image_BCHW: Tensor) -> Tensor:
    """Bring pixels to float32 from 0 to 1: uint8 is divided by 255, floating point images are in that range already."""
    return image_BCHW.float().div_(255) if image_BCHW.dtype == torch.uint8 else image_BCHW.float()


def mean_and_std(batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, from 0 to 1, of batches (B, C, H, W)."""
    total_C, square_C, count = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0
    for image_BCHW in batches:
        pixels_BCHW = to_float(image_BCHW).double()
        total_C = total_C + pixels_BCHW.sum(dim=(0, 2, 3))
        square_C = square_C + pixels_BCHW.square().sum(dim=(0, 2, 3))
        count += pixels_BCHW.numel() // len(total_C)
    mean_C = total_C / count
    std_C = (square_C / count - mean_C.square()).clamp(min=0).sqrt()
    # A constant channel carries nothing; dividing it by one keeps it finite.
    std_C[std_C < 1e-6] = 1.0
    return mean_C.float().tolist(), std_C.float().tolist()


def stratified_split(
    labels: NDArray[np.int64],
    fractions: Mapping[str, float],
    seed: int,
    copies: Sequence[NDArray[np.int64]] = (),
    names: Iterable[str] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Deal the rows of every class out to the named splits in the given proportions.

    Each class is shuffled with `seed` and cut at the cumulated fractions, rounded to whole rows, so every split's share of a
    class is within one row of the exact one. The rows of a split come back in ascending order.

    Args:
        labels: class index of each of N rows, int64, shape (N,).
        fractions: name -> share of the rows.
        seed: the same seed, labels and fractions always give the same split.
        copies: groups of rows that stay together; the first of a group is dealt out, the others follow it.
        names: a name for each row, by whose hash a class is shuffled: a row that is added later moves hardly any other.

    Returns:
        name -> row indices, int64; together they hold every row exactly once.
    """
    shares = _checked_shares(fractions)
    generator = np.random.default_rng(seed)
    lead_N = np.arange(len(labels))
    for group in copies:
        lead_N[group] = group[:1]
    leads = np.flatnonzero(lead_N == np.arange(len(labels)))
    hash_N = None if names is None else hashes(names, seed)
    split_N = np.full(len(labels), -1)
    for at in _alike(labels[leads]):
        rows = leads[at]
        rows = generator.permutation(rows) if hash_N is None else rows[np.argsort(hash_N[rows], kind="stable")]
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for number, part in enumerate(np.split(rows, cuts)):
            split_N[part] = number
    return {name: np.flatnonzero(split_N[lead_N] == number) for number, name in enumerate(fractions)}


def named_split(split: Sequence[str] | NDArray[np.str_], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Turn a column that names the split of every row into row indices per split; ValueError for a name not in `names`."""
    column = np.asarray(split).astype(str)
    unknown = np.flatnonzero(~np.isin(column, list(names)))
    if len(unknown):
        row = int(unknown[0])
        raise ValueError(f"row {row} names the split {str(column[row])!r}; use {', '.join(names)}")
    return {name: np.flatnonzero(column == name) for name in names}


def grouped_split(
    labels: NDArray[np.int64], groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Like `stratified_split`, but rows of one group stay together: the same subject is never on both sides.

    The groups are ordered by the hash of their name; then, the largest first, each goes to the split that lacks most of it: for
    each of its classes, the images that the split still lacks as a part of all images of the class. Splits are as near to their
    fractions as whole groups allow.
    """
    names, shares = list(fractions), _checked_shares(fractions)
    group_names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    by_group = _alike(group_N)
    order = np.argsort(hashes(group_names.tolist(), seed), kind="stable")
    total_K = np.bincount(labels)
    lacking_SK = shares[:, None] * total_K
    chosen: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for group in sorted(order, key=lambda g: -len(by_group[g])):
        classes, counts = np.unique(labels[by_group[group]], return_counts=True)
        need_S = (counts * lacking_SK[:, classes] / total_K[classes]).sum(axis=1)
        split = int(need_S.argmax())
        lacking_SK[split, classes] -= counts
        chosen[names[split]].append(by_group[group])
    empty = np.empty(0, dtype=np.int64)
    return {name: np.sort(np.concatenate([empty, *rows])) for name, rows in chosen.items()}


def hashes(names: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """A number for each name: in their order names are as good as shuffled, and each keeps its place among the others."""
    start = hashlib.blake2b(f"{seed}\0".encode(), digest_size=8)

    def digest(name: str) -> bytes:
        whole = start.copy()
        whole.update(name.encode("utf-8", "surrogateescape"))
        return whole.digest()

    return np.frombuffer(b"".join(map(digest, names)), dtype=">u8").astype(np.uint64)


def _alike(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each value, in the order of the values."""
    starts = np.unique(np.sort(values), return_index=True)[1]
    return np.split(np.argsort(values, kind="stable"), starts)[1:]


def _checked_shares(fractions: Mapping[str, float]) -> NDArray[np.float64]:
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"split fractions must be >= 0 and sum to 1, got {dict(fractions)}")
    return shares
