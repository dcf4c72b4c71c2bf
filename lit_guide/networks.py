"""The networks: `CNN`, the table of names, and every classification network of torchvision by its own name.

To add your own, write a module that maps (B, channels, H, W) to (B, classes), with `channels` and `classes` as its first
arguments: `--model.network my_project.mlp.MLP` finds it, or a short name that you give it in `NETWORKS`.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_guide.engine import zoo
from lit_guide.engine.zoo import Normalized as Normalized


class CNN(nn.Module):
    """A plain convolutional network for any channel count and any image of 8 pixels a side or more.

    Each width adds a stage of two 3x3 convolutions (with BatchNorm and ReLU) and a halving of the sides. Average pooling
    then makes one vector of any size of map, so no layer knows the image size: a Linear(16 * 14 * 14, K) after a flatten
    fits one image size only.

    Args:
        channels: channels of the images.
        classes: number of classes K.
        widths: feature maps of each stage.
        dropout: share of the features that training drops before the last layer.
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = (32, 64, 128), dropout: float = 0.2) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = channels
        for width in widths:
            stages += [
                nn.Conv2d(before, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                # ceil_mode keeps a map of one pixel at one pixel: any number of stages fits any image.
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            before = width
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(before, classes))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) floating point -> logits (B, K)."""
        logits_BK: Tensor = self.head(self.pool(self.features(image_BCHW)))
        return logits_BK


NETWORKS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN}


def build_network(
    name: str,
    channels: int,
    classes: int,
    input_size: tuple[int, int],
    weights: str | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network of the table, of torchvision, or a class of yours; arguments and errors are those of `engine.zoo.build`."""
    return zoo.build(name, NETWORKS, channels, classes, input_size, weights, args)
