"""One photo of any size, cut and scaled as uint8: at random for training, the centre for evaluation.

Shapes: C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TrainTransform:
    """A random part of an image, scaled to a square, mirrored by chance, and what torchvision adds to that."""

    size: int  # pixels of the square
    min_area: float  # smallest part of the area that is cut out
    flip: bool  # with probability one half
    extra: Sequence[Callable[[Tensor], Tensor]] = ()  # further transforms of uint8 images

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """(C, H, W) uint8 -> (C, size, size) uint8."""
        _, H, W = image_CHW.shape
        top, left, height, width = random_box(H, W, self.min_area)
        image_CHW = resize(image_CHW[:, top : top + height, left : left + width], self.size, self.size)
        if self.flip and torch.rand(()) < 0.5:
            image_CHW = image_CHW.flip(2)
        for transform in self.extra:
            image_CHW = transform(image_CHW)
        return image_CHW


@dataclass(frozen=True)
class EvalTransform:
    """The centre of an image: scaled so that its shorter side is `size / crop`, then cut to a square.

    As torchvision's `Resize` and `CenterCrop` do it, with which published weights were evaluated.
    """

    size: int  # pixels of the square
    crop: float

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """(C, H, W) uint8 -> (C, size, size) uint8."""
        _, H, W = image_CHW.shape
        # Of a very long image only the middle is scaled: all of 1 x 20,000 pixels would become 4 GB.
        top, left = (max(0, side - 16 * min(H, W)) // 2 for side in (H, W))
        image_CHW = resize_shorter(image_CHW[:, top : H - top, left : W - left], round(self.size / self.crop))
        top, left = (round((side - self.size) / 2) for side in image_CHW.shape[1:])
        return image_CHW[:, top : top + self.size, left : left + self.size]


def least_side(size: int, crop: float, min_area: float) -> int:
    """Pixels of a photo's shorter side from which neither evaluation nor the smallest square part of training is enlarged."""
    return max(2 * size, math.ceil(size / math.sqrt(min_area)), round(size / crop))


def random_box(height: int, width: int, min_area: float) -> tuple[int, int, int, int]:
    """Draw the part that is cut out of a training image: (top, left, height, width) in pixels.

    Area from `min_area` to all of the image, sides from 3:4 to 4:3, as torchvision's `RandomResizedCrop.get_params` draws them,
    which takes six times as long: here it would be a fifth of the time that an image from a cache costs.
    """
    bound = math.log(4 / 3)
    for area, ratio, down, right in torch.rand(10, 4).tolist():
        pixels = height * width * (min_area + (1 - min_area) * area)
        stretch = math.exp(bound * (2 * ratio - 1))
        w, h = round(math.sqrt(pixels * stretch)), round(math.sqrt(pixels / stretch))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    # Ten misses: a very long image. The largest part of the middle with allowed sides.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_shorter(image_CHW: Tensor, side: int, enlarge: bool = True) -> Tensor:
    """Scale an image, uint8, so that its shorter side has `side` pixels; the longer one is rounded down, as torchvision's."""
    _, H, W = image_CHW.shape
    shorter = min(H, W)
    if shorter == side or (shorter < side and not enlarge):
        return image_CHW
    return resize(image_CHW, side * H // shorter, side * W // shorter)


def resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Scale an image (C, H, W) uint8 to (C, height, width), bilinear and antialiased, within 1/255 of Pillow."""
    # With the channels of a pixel side by side, torch has a path for uint8 that is three times faster.
    image_1CHW = image_CHW[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(image_1CHW, size=(height, width), mode="bilinear", antialias=True)[0]
