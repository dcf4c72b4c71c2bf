"""Augmentation of a whole batch on the device, every image with its own random draw.

`torchvision.transforms.v2` draws one decision for a batch (https://github.com/pytorch/vision/issues/8256), and image by
image it is the slowest part of training on small pictures.

Shapes: B images, C channels, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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


def to_float(image_BCHW: Tensor) -> Tensor:
    """Bring pixels to float32 from 0 to 1: uint8 is divided by 255, floating point images are in that range already."""
    return image_BCHW.float().div_(255) if image_BCHW.dtype == torch.uint8 else image_BCHW.float()
