"""What learns, and how fast: compared with the same steps made by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_guide.engine.errors import ConfigError
from lit_guide.networks import CNN
from lit_guide.parts.finetune.layers import blocks_of
from lit_guide.parts.finetune.tuning import Tuning

IMAGE_BCHW = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABEL_B = torch.tensor([0, 1, 2, 0, 1, 2])


class Model(nn.Module):
    """What `Tuning` asks of a LightningModule."""

    def __init__(self, processes: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = CNN(1, 3, widths=(4, 6), dropout=0.0)
        self.current_epoch = 0
        self.trainer = SimpleNamespace(world_size=processes)

    def backward(self) -> None:
        self.zero_grad()
        nn.functional.cross_entropy(self.network(IMAGE_BCHW), LABEL_B).backward()


def sgd(parameters, lr=0.5, weight_decay=0.0):
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


def changes(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name -> what one step did to a parameter, in shares of its gradient (before weight decay)."""
    before = {name: parameter.detach().clone() for name, parameter in model.network.named_parameters()}
    model.backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.network.named_parameters()}
    optimizer.step()
    moved = {name: before[name] - parameter.detach() for name, parameter in model.network.named_parameters()}
    return {n: moved[n] if gradients[n] is None else moved[n] / gradients[n].where(gradients[n] != 0, 1.0) for n in moved}


def share(change: torch.Tensor) -> float:
    return float(change[change != 0].median()) if (change != 0).any() else 0.0


def test_each_block_moves_by_its_share_of_the_rate() -> None:
    model = Model()
    tuning = Tuning(model.network, backbone_lr=0.5, layer_decay=0.8)
    optimizer = tuning.optimizer(sgd, model)
    found = changes(model, optimizer)
    blocks = blocks_of(model.network)
    for at, block in enumerate(blocks):
        expected = 0.5 if at == len(blocks) - 1 else 0.5 * 0.5 * 0.8 ** (len(blocks) - 1 - at)
        for name in block:
            assert share(found[name]) == pytest.approx(expected, rel=1e-3), name
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}  # as it was given, for schedules and checkpoints


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False),
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(
            optimizer, base_lr=0.1, max_lr=0.4, step_size_up=3, cycle_momentum=False
        ),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.05),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1),
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
    ],
)
def test_every_schedule_keeps_the_shares(schedule) -> None:
    model = Model()
    optimizer = Tuning(model.network, backbone_lr=0.25).optimizer(sgd, model)
    scheduler = schedule(optimizer)
    for _ in range(5):
        rate = optimizer.param_groups[0]["lr"]
        found = changes(model, optimizer)
        assert share(found["head.2.weight"]) == pytest.approx(rate, rel=2e-3)
        assert share(found["features.0.weight"]) == pytest.approx(0.25 * rate, rel=2e-3)
        scheduler.step()


def test_norms_and_biases_are_spared_the_decay() -> None:
    model = Model()
    optimizer = Tuning(model.network, decay_norms=False).optimizer(lambda groups: sgd(groups, weight_decay=0.1), model)
    before = {name: parameter.detach().clone() for name, parameter in model.network.named_parameters()}
    for parameter in model.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1  # as a run that goes on with another one sets it
    optimizer.step()
    for name, parameter in model.network.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.1) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_frozen_backbone_learns_nothing_and_counts_nothing() -> None:
    model = Model()
    tuning = Tuning(model.network, freeze="backbone")
    optimizer = tuning.optimizer(torch.optim.Adam, model)
    before = copy.deepcopy(model.network.state_dict())
    model.train()
    tuning.hold(model)
    for _ in range(3):
        model.backward()
        optimizer.step()
    changed = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.2.weight", "head.2.bias"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert [name for name, parameter in model.network.named_parameters() if parameter.requires_grad] == [*sorted(changed)[::-1]]
    assert model.network.head[1].training, "dropout goes on"


@pytest.mark.parametrize("processes", [1, 2])
def test_after_its_epochs_it_learns_again(processes: int) -> None:
    model = Model(processes)
    tuning = Tuning(model.network, freeze="backbone", freeze_epochs=2, backbone_lr=0.1)
    optimizer = tuning.optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1), model)
    before = copy.deepcopy(model.network.state_dict())
    for epoch in range(3):
        model.current_epoch = epoch
        model.train()
        tuning.hold(model)
        model.backward()
        optimizer.step()
        changed = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
        if epoch < 2:  # nor does the decay pull at them
            assert changed == {"head.2.weight", "head.2.bias"}
            # Where processes share gradients, each parameter has one in every step.
            assert all(p.requires_grad for p in model.network.parameters()) == (processes == 2)
        else:
            assert changed == set(before)


def test_parameters_beside_the_network_have_the_rate_of_the_head() -> None:
    model = Model()
    model.criterion_weight = nn.Parameter(torch.ones(()))
    optimizer = Tuning(model.network, backbone_lr=0.1, freeze="backbone").optimizer(sgd, model)
    model.criterion_weight.grad = torch.ones(())
    optimizer.step()
    assert float(model.criterion_weight.detach()) == pytest.approx(0.5)


def test_a_network_without_a_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer before its head"):
        Tuning(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), freeze="backbone")
