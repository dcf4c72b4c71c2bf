"""Stem, blocks and head of networks of every kind: each parameter once, the head last."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision import models

from lit_guide.engine.errors import ConfigError
from lit_guide.networks import CNN
from lit_guide.parts.finetune.layers import blocks_of, head_of

SMALL = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
]
SMALL += [
    "resnet18",
    "resnet50",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_16",
    "convnext_tiny",
    "maxvit_t",
]


def built(name: str) -> nn.Module:
    more = {"init_weights": False} if name == "googlenet" else {}
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):  # it counts with tensors
        network = models.get_model(name, num_classes=7, **more)
    for part in ("aux1", "aux2"):  # as `build` makes them
        if hasattr(network, part):
            setattr(network, part, None)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_each_parameter_is_in_one_block_and_the_head_is_last(name: str) -> None:
    network = built(name)
    blocks = blocks_of(network, 7)
    named = [one for block in blocks for one in block]
    assert sorted(named) == sorted(one for one, _ in network.named_parameters())
    assert all(blocks)
    assert {network.get_parameter(one).shape[0] for one in blocks[-1]} == {7}
    assert all(one.startswith(f"{head_of(network, 7)}.") for one in blocks[-1])
    first = next(one for one, parameter in network.named_parameters() if parameter.ndim == 4)
    assert first in blocks[0]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 1 + 8 + 1),  # conv1 with its norm, eight residual blocks, fc
        ("resnet50", 1 + 16 + 1),
        ("vit_b_16", 1 + 12 + 1),  # twelve encoder layers; the last norm belongs to the twelfth
        ("vgg11_bn", 8 + 3),  # convolutions, and three linear layers of which the last is the head
        ("swin_t", 1 + 12 + 3 + 1),  # blocks, and three mergings between the stages
    ],
)
def test_blocks_are_what_the_papers_count(name: str, count: int) -> None:
    assert len(blocks_of(built(name), 7)) == count


def test_position_embedding_and_class_token_belong_to_the_stem() -> None:
    stem = blocks_of(built("vit_b_16"), 7)[0]
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= {*stem}


def test_the_blocks_of_the_cnn_are_its_convolutions_each_with_its_norm() -> None:
    blocks = blocks_of(CNN(3, 5, widths=(8, 16)), 5)
    convolutions = [[f"features.{at}.weight", f"features.{at + 1}.weight", f"features.{at + 1}.bias"] for at in (0, 3, 7, 10)]
    assert blocks == [*convolutions, ["head.2.weight", "head.2.bias"]]


def test_head_only() -> None:
    assert blocks_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2) == [["1.weight", "1.bias"]]


def test_squeezenets_head_is_a_convolution() -> None:
    assert head_of(built("squeezenet1_1"), 7) == "classifier.1"


class HeadFirst(nn.Module):
    """Its layers are not registered in the order in which an image passes them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_the_head_is_the_layer_with_the_classes_wherever_it_stands() -> None:
    assert blocks_of(HeadFirst(), 3) == [["body.weight", "body.bias"], ["head.weight", "head.bias"]]


def test_a_network_without_a_layer_for_its_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of 5 outputs"):
        head_of(HeadFirst(), 5)


def test_a_head_that_shares_weights_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    with pytest.raises(ConfigError, match="shares weights"):
        head_of(network, 3)


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="lazy layers"):
        head_of(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2)), 2)
