"""An image file as a trained model takes it, wherever it runs: decoded, cut and scaled as its data were, float32 from 0 to 1.

Shapes: C channels, H x W pixels, N files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.data.source import to_float
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.decode import Reading, UnreadableImageError, decode

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of the model -> Pillow's name of the mode
UNKNOWN, UNREADABLE = -1, -2  # labels of a file to predict, and of one that could not be decoded


def mode_of(shape: Sequence[int]) -> str:
    """Pillow's name for the channels of (C, H, W).

    Raises:
        ConfigError: no image file has so many.
    """
    if shape[0] not in MODES:
        raise ConfigError(f"The model takes {shape[0]} channels; image files can give 1, 3 or 4.")
    return MODES[shape[0]]


def read_image(
    path: str | Path,
    shape: Sequence[int],
    crop: float | None = None,
    white_level: int | None = None,
    least_side: int | None = None,
) -> Tensor:
    """An image file as a model takes it, (C, H, W) float32 from 0 to 1; the centre of it where the data were cut.

    Args:
        path: the file.
        shape: (C, H, W) of the model.
        crop: the share of the shorter side that is kept; None: the image is squeezed.
        white_level, least_side: as `decode` takes them.

    Raises:
        UnreadableImageError: it can't be decoded; the message is the reason.
    """
    _, H, W = shape
    image_CHW = decode(path, mode_of(shape), Reading(white_level, least_side))
    cut = TF.resize(image_CHW, [H, W], antialias=True) if crop is None else EvalTransform(H, crop)(image_CHW)
    return to_float(cut)


def why_unreadable(path: str | Path, shape: Sequence[int], **reading: Any) -> str:
    """What `read_image` says of a file that could not be read a moment ago."""
    try:
        read_image(path, shape, **reading)
    except UnreadableImageError as error:
        return str(error)
    return "it was being written: try again"


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files as a model takes them: (image_CHW float32 from 0 to 1, UNKNOWN); (zeros, UNREADABLE) for what is no image.

    Args:
        paths: the N files.
        shape: (C, H, W) of the model.
        crop: the share of the shorter side that is kept, as the model's data were cut; None: images are squeezed.
        white_level, least_side: as `decode` takes them, and as the model's data took them.

    Raises:
        ConfigError: the model has a number of channels that no image file has.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shape: Sequence[int],
        crop: float | None = None,
        white_level: int | None = None,
        least_side: int | None = None,
    ) -> None:
        mode_of(shape)
        self.paths, self.shape, self.reading = paths, tuple(shape), (crop, white_level, least_side)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index`."""
        try:
            return read_image(self.paths[index], self.shape, *self.reading), torch.tensor(UNKNOWN)
        except UnreadableImageError:
            return torch.zeros(self.shape), torch.tensor(UNREADABLE)
