"""Image files for `predict`: any size and mode, brought to the model's size and channels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.decode import UnreadableImageError, decode, find_images
from lit_guide.engine.photos.module import most_workers

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of the model -> Pillow's name of the mode
WORTH_WORKERS = 500  # files from which on loader processes pay
UNKNOWN, UNREADABLE = -1, -2  # labels of a file to predict, and of one that could not be decoded


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files as (image_CHW uint8, UNKNOWN); a file that can't be decoded is (zeros, UNREADABLE).

    Args:
        paths: the files.
        shape: (C, H, W) of the model.
        crop: the share of the shorter side that is kept, as the model's data module cuts photos; None: images are squeezed.

    Raises:
        ConfigError: the model has a number of channels that no image file has.
    """

    def __init__(self, paths: Sequence[Path], shape: Sequence[int], crop: float | None = None) -> None:
        if shape[0] not in MODES:
            raise ConfigError(f"The model takes {shape[0]} channels; image files can give 1, 3 or 4.")
        self.paths = paths
        self.shape = tuple(shape)
        self.crop = crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        C, H, W = self.shape
        try:
            image_CHW = decode(self.paths[index], MODES[C])
        except UnreadableImageError:
            return torch.zeros(C, H, W, dtype=torch.uint8), torch.tensor(UNREADABLE)
        if self.crop is not None:
            return EvalTransform(H, self.crop)(image_CHW), torch.tensor(UNKNOWN)
        return TF.resize(image_CHW, [H, W], antialias=True), torch.tensor(UNKNOWN)


class ImagesToPredict(ImageDataModule):
    """The files given to `predict --images`, with what a checkpoint says of its model in the place of statistics.

    Args:
        paths: files and folders.
        class_names, input_shape, mean, std, crop: the checkpoint's hyperparameters.
    """

    def __init__(
        self,
        paths: list[str],
        class_names: list[str],
        input_shape: list[int],
        mean: list[float],
        std: list[float],
        crop: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.files, self.missing = find_images(paths)
        if not self.files:
            raise ConfigError("--images: " + "; ".join(f"{path}: {reason}" for path, reason in self.missing.items()))
        self._class_names, self._shape, self._given = class_names, input_shape, (mean, std)
        self.crop = crop

    def load(self) -> Source:
        """The files as a test split; their labels are not known."""
        count = len(self.files)
        none = np.empty(0, dtype=np.int64)
        rows = {"train": none, "val": none, "test": np.arange(count)}
        return Source(ImageFiles(self.files, self._shape, self.crop), np.full(count, UNKNOWN), self._class_names, rows)

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the model."""
        C, H, W = self._shape
        return C, H, W

    @property
    def mean(self) -> list[float]:
        """The model's mean."""
        return self._given[0]

    @property
    def std(self) -> list[float]:
        """The model's standard deviation."""
        return self._given[1]

    def auto_workers(self) -> int:
        """A few files are decoded sooner than processes start."""
        return most_workers() if len(self.files) > WORTH_WORKERS else 0

    def sample_names(self, split: str) -> list[str]:
        """The paths."""
        return [str(path) for path in self.files]
