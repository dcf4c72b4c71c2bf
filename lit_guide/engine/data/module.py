"""Images in memory, and sources of one's own: a Dataset over arrays, and the DataModule that changes whole batches on the device.

`torchvision.transforms.v2` draws one decision for a batch (https://github.com/pytorch/vision/issues/8256), and image by
image it is the slowest part of training on small pictures: here every image has its own random draw.

Shapes: B images a batch, C channels, H x W pixels, N samples.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source as Source
from lit_guide.engine.data.source import to_float

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


def random_crop_flip(image_BCHW: Tensor, shift: float, flip: bool) -> Tensor:
    """Shift every image by up to `shift` of its side (zeros move in) and mirror every second one, by one gather.

    The same as torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip(0.5)` drawn for each image; 4 pixels of 32
    are a shift of 0.125. Any dtype, any device; the result is a new tensor of the same shape and dtype.
    """
    B, C, H, W = image_BCHW.shape
    device = image_BCHW.device
    pad_h, pad_w = round(shift * H), round(shift * W)
    padded_BCHW = F.pad(image_BCHW, (pad_w, pad_w, pad_h, pad_h))
    padded_W = W + 2 * pad_w
    row_BH = torch.randint(0, 2 * pad_h + 1, (B, 1), device=device) + torch.arange(H, device=device)
    column_BW = torch.arange(W, device=device).expand(B, W)
    if flip:
        mirrored_B1 = torch.rand(B, 1, device=device) < 0.5
        column_BW = torch.where(mirrored_B1, W - 1 - column_BW, column_BW)
    column_BW = column_BW + torch.randint(0, 2 * pad_w + 1, (B, 1), device=device)
    # One flat index for each pixel of each plane: the channels of an image share it.
    index_B1N = (row_BH[:, :, None] * padded_W + column_BW[:, None, :]).view(B, 1, H * W)
    return padded_BCHW.flatten(2).gather(2, index_B1N.expand(B, C, H * W)).view(B, C, H, W)


def random_affine(image_BCHW: Tensor, shift: float, rotate: float, flip: bool) -> Tensor:
    """Turn, shift and (if asked) mirror every image by its own amount, with bilinear sampling and zeros outside.

    Args:
        image_BCHW: floating point, any device; the result is a new tensor like it.
        shift: largest move as a fraction of the side.
        rotate: largest turn in degrees, either way.
        flip: whether to mirror left and right with probability one half.
    """
    B, _, H, W = image_BCHW.shape
    draw_4B = torch.rand(4, B, device=image_BCHW.device, dtype=image_BCHW.dtype) * 2 - 1
    angle_B = draw_4B[0] * math.radians(rotate)
    # affine_grid's coordinates run from -1 to 1 over the side: a fraction f of the side is 2f.
    shift_B2 = draw_4B[1:3].T * 2 * shift
    sign_B = torch.where(draw_4B[3] < 0, -1.0, 1.0).to(angle_B) if flip else torch.ones_like(angle_B)
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    # Pixels are square, the coordinates are not when H != W: the off-diagonal terms carry the aspect ratio.
    theta_B23 = torch.stack(
        [
            torch.stack([cos_B * sign_B, -sin_B * H / W, shift_B2[:, 0]], dim=1),
            torch.stack([sin_B * sign_B * W / H, cos_B, shift_B2[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid_BHW2 = F.affine_grid(theta_B23, list(image_BCHW.shape), align_corners=False)
    return F.grid_sample(image_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
