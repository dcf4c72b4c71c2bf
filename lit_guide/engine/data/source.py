"""What a source of images gives, and what is computed of them.

Shapes: B images a batch, C channels, H x W pixels, K classes, N samples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.data.augment import to_float
from lit_guide.engine.errors import UserError

# Mean and standard deviation that torchvision's pretrained networks were trained with:
# https://docs.pytorch.org/vision/stable/models.html
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Source:
    """What `load` of a source finds: all samples of all splits.

    Attributes:
        dataset: sample i is (image_CHW, label). With a method `batch(rows)` it gives whole batches (image_BCHW, label_B) at once.
        labels_N: class index of every sample, int64.
        class_names: the K names, in the order of the indices.
        rows: split name -> sample indices, where the data come with their own split; None to be split here.
    """

    dataset: Dataset[tuple[Tensor, Tensor]]
    labels_N: NDArray[np.int64]
    class_names: list[str]
    rows: Mapping[str, NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        check_classes(self.class_names)


def check_classes(names: Sequence[str]) -> None:
    """Refuse a set with fewer than two classes by a UserError."""
    if len(names) < 2:
        raise UserError(f"The data have {len(names)} class: a classifier needs at least two.")


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
