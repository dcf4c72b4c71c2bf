"""Image files for `predict`: any size and mode, brought to the model's size and channels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lit_guide.data.base import DataModule, Source
from lit_guide.errors import ConfigError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of the model -> Pillow's name of the mode
UNKNOWN, UNREADABLE = -1, -2  # labels of a file to predict, and of one that could not be decoded


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files as (image_CHW uint8, UNKNOWN); a file that can't be decoded is (zeros, UNREADABLE).

    Args:
        paths: the files.
        shape: (C, H, W) of the model; images are squeezed to it, not cut.

    Raises:
        ConfigError: the model has a number of channels that no image file has.
    """

    def __init__(self, paths: Sequence[Path], shape: Sequence[int]) -> None:
        if shape[0] not in MODES:
            raise ConfigError(f"The model takes {shape[0]} channels; image files can give 1, 3 or 4.")
        self.paths = paths
        self.shape = tuple(shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        C, H, W = self.shape
        try:
            image_CHW = decode(self.paths[index], MODES[C])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return torch.zeros(C, H, W, dtype=torch.uint8), torch.tensor(UNREADABLE)
        return TF.resize(image_CHW, [H, W], antialias=True), torch.tensor(UNKNOWN)


def decode(path: Path, mode: str) -> Tensor:
    """An image file, upright, as (C, H, W) uint8 of a Pillow mode.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: what Pillow raises for files it can't decode.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        pixels_HWC = np.array(image.convert(mode))
    return torch.from_numpy(pixels_HWC.reshape(*pixels_HWC.shape[:2], -1)).permute(2, 0, 1)


def find_images(paths: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Expand folders into the image files below them.

    Returns:
        The files in order, and path -> reason for those that are not there or hold no image.
    """
    Image.init()
    files: list[Path] = []
    missing: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in Image.EXTENSION and p.is_file())
            files += inside
            if not inside:
                missing[str(path)] = "no image files in this folder"
        elif path.is_file():
            files.append(path)
        else:
            missing[str(path)] = "no such file or folder"
    return files, missing


class ImagesToPredict(DataModule):
    """The files given to `predict --images`, with what a checkpoint says of its model in the place of statistics.

    Args:
        paths: files and folders.
        class_names, input_shape, mean, std: the checkpoint's hyperparameters.
    """

    def __init__(
        self,
        paths: list[str],
        class_names: list[str],
        input_shape: list[int],
        mean: list[float],
        std: list[float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.files, self.missing = find_images(paths)
        if not self.files:
            raise ConfigError("--images: " + "; ".join(f"{path}: {reason}" for path, reason in self.missing.items()))
        self._class_names, self._shape, self._given = class_names, input_shape, (mean, std)

    def load(self) -> Source:
        """The files as a test split; their labels are not known."""
        count = len(self.files)
        none = np.empty(0, dtype=np.int64)
        rows = {"train": none, "val": none, "test": np.arange(count)}
        return Source(ImageFiles(self.files, self._shape), np.full(count, UNKNOWN), self._class_names, rows)

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

    def sample_names(self, split: str) -> list[str]:
        """The paths."""
        return [str(path) for path in self.files]
