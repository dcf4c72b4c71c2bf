"""The DataModule of images in memory, and of one's own sources: their batches are shifted, turned and mirrored on the device.

Shapes: B images a batch, C channels, H x W pixels.
"""

from typing import Any

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from lit_guide.engine.data.augment import random_affine, random_crop_flip, to_float
from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.source import Source

__all__ = ["DataModule", "Source"]


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
