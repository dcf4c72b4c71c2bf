"""Images in memory, and sources of one's own: a Dataset over arrays, and the DataModule that changes whole batches on the device.

Shapes: B images a batch, C channels, H x W pixels, N samples.
"""

from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.data.augment import random_affine, random_crop_flip, to_float
from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source as Source

Array = NDArray[Any] | Tensor


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels that are already in memory, NumPy or torch; nothing is copied.

    The DataModules fetch a whole batch through `batch`, by one index operation on each array.

    Args:
        images: (N, C, H, W), uint8 or floating point from 0 to 1.
        labels: (N,), integers.

    Raises:
        ValueError: the arrays differ in length, or the images have no four axes.
    """

    def __init__(self, images: Array, labels: Array) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
        self.images = images
        self.labels = labels

    def __getstate__(self) -> dict[str, Any]:
        # A process that is sent this maps the file itself: a mapping would be sent as a copy of its content.
        images = self.images
        if not (isinstance(images, np.memmap) and images.filename and images.mode == "r"):
            return self.__dict__
        whole: Any = images
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        offset = whole.offset + images.ctypes.data - whole.ctypes.data
        return self.__dict__ | {"images": None, "mapped": (images.filename, images.shape, images.dtype, offset, images.strides)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if "mapped" in state:
            path, shape, dtype, offset, strides = self.__dict__.pop("mapped")
            self.images = np.ndarray(shape, dtype, np.memmap(path, np.uint8, "r"), offset, strides)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index`: (image_CHW, label)."""
        image_1CHW, label_1 = self.batch([index])
        return image_1CHW[0], label_1[0]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples: (image_BCHW, label_B)."""
        return torch.as_tensor(self.images[indices]), torch.as_tensor(self.labels[indices], dtype=torch.int64)


class DataModule(ImageDataModule):
    """A source of images of one size: splits, loaders, and a random change of each training image by its own draw.

    Args:
        shift: largest random shift, as a fraction of the side.
        rotate: largest random turn, in degrees.
        flip: whether images are mirrored at random; never for data where left and right differ.
    """

    def __init__(
        self, shift: NonNegativeFloat = 0.125, rotate: NonNegativeFloat = 0.0, flip: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.shift, self.rotate, self.flip = shift, rotate, flip

    def augment_batch(self, image_BCHW: Tensor) -> Tensor:
        """Shift, turn and mirror: whole pixels of any dtype, or float32 where images are turned."""
        if self.rotate:
            return random_affine(to_float(image_BCHW), self.shift, self.rotate, self.flip)
        if self.shift or self.flip:  # cheapest on the uint8 that came in
            return random_crop_flip(image_BCHW, self.shift, self.flip)
        return image_BCHW
