"""The model and its networks: losses as worked out by hand, images of any size, and the settings that were given."""

import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lit_guide.data import DigitsData
from lit_guide.engine.errors import ConfigError
from lit_guide.model import LitClassifier
from lit_guide.networks import NETWORKS, build_network

LOGITS_BK, LABEL_B = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]), torch.tensor([0, 2])
LOG_BK = LOGITS_BK - LOGITS_BK.exp().sum(dim=1, keepdim=True).log()
LOSS_B = -LOG_BK[[0, 1], LABEL_B]  # cross-entropy of each image


class Doubled(nn.Module):
    """A loss of one's own: twice the cross-entropy."""

    def forward(self, logits_BK, label_B):
        return 2 * nn.functional.cross_entropy(logits_BK, label_B)


class Mean(nn.Linear):
    """A network of one's own: the mean of each channel, then one layer."""

    def forward(self, image_BCHW):
        return super().forward(image_BCHW.mean(dim=(2, 3)))


def small(**settings):
    return LitClassifier(["a", "b", "c"], [1, 8, 8], [0.5], [0.25], network_args={"widths": [4]}, **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, LOSS_B.mean()),
        ({"label_smoothing": 0.3}, (0.7 * LOSS_B - 0.3 * LOG_BK.mean(dim=1)).mean()),
        ({"class_weights": [1.0, 5.0, 3.0]}, (LOSS_B[0] + 3 * LOSS_B[1]) / 4),
        ({"loss": nn.MultiMarginLoss}, torch.tensor((1.5 + 2) / 3 / 2)),
        ({"loss": {"name": "lit_guide.own.Doubled"}}, 2 * LOSS_B.mean()),
    ],
)
def test_the_loss_of_a_training_step(settings, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "lit_guide.own", sys.modules[__name__])  # this file
    model = small(**settings)
    torch.testing.assert_close(model.criterion(LOGITS_BK, LABEL_B), expected)
    if "loss" not in settings:  # evaluations go without smoothing and weights
        torch.testing.assert_close(model.plain_criterion(LOGITS_BK, LABEL_B), LOSS_B)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_weights": [1.0, 2.0]}, "model.class_weights has 2 values for 3 classes: a, b, c"),
        ({"loss": nn.MultiMarginLoss, "label_smoothing": 0.1}, "MultiMarginLoss takes no label_smoothing"),
        ({"loss": {"name": "os.system"}}, "os.system may not be imported"),
        ({"optimizer": partial(torch.optim.SGD, lr=-1.0)}, "model.optimizer"),
        ({"network": "cnm"}, "there is no network 'cnm'. Did you mean cnn"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, words):
    with pytest.raises(ConfigError) as caught:
        small(**settings)
    assert words in str(caught.value)


def test_parameters_have_these_shapes_and_normalisation_is_inside():
    model = small().eval()
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(4, 1, 3, 3), (4,), (4,), (4, 4, 3, 3), (4,), (4,), (3, 4), (3,)]
    image_BCHW = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(image_BCHW), model.network.body((image_BCHW - 0.5) / 0.25))


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_the_first_loss_on_the_digits():
    seed_everything(7, verbose=False)
    data, adam = DigitsData(batch_size=64), partial(torch.optim.Adam, lr=3e-3)
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, optimizer=adam)
    trainer = Trainer(accelerator="cpu", fast_dev_run=4, logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, data)
    # Another network, other data or another augmentation give another figure: put it here.
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(2.28001, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(("name", "size"), [("cnn", (8, 8)), ("cnn", (31, 15)), ("resnet18", (32, 40))])
def test_a_network_takes_any_channels_and_any_size(name, size, channels):
    network, image_BCHW = build_network(name, channels, 7, size).eval(), torch.rand(2, channels, *size)
    assert network(image_BCHW).shape == (2, 7)
    for channel in range(channels):  # every channel counts
        other_BCHW = image_BCHW.clone()
        other_BCHW[:, channel] += 1
        assert not torch.allclose(network(other_BCHW), network(image_BCHW))
    other = build_network(name, channels, 7, (64, 64)).eval()
    other.load_state_dict(network.state_dict())  # the weights know no image size
    torch.testing.assert_close(other(image_BCHW), network(image_BCHW))


@pytest.mark.parametrize("name", ["mean", "lit_guide.own.Mean"])
def test_a_network_of_ones_own_by_its_name_and_by_its_class(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "lit_guide.own", sys.modules[__name__])  # this file
    monkeypatch.setitem(NETWORKS, "mean", Mean)
    network, image_BCHW = build_network(name, 2, 3, (4, 6), args={"bias": False}), torch.rand(5, 2, 4, 6)
    torch.testing.assert_close(network(image_BCHW), image_BCHW.mean(dim=(2, 3)) @ network.weight.T)
