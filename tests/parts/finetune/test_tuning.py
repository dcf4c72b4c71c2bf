"""What learns, and how fast: compared with the same steps made by hand."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from lit_guide.engine.errors import ConfigError
from lit_guide.networks import CNN
from lit_guide.parts.finetune.layers import blocks_of
from lit_guide.parts.finetune.tuning import Tuning

IMAGE_BCHW = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABEL_B = torch.tensor([0, 1, 2, 0, 1, 2])


USUAL: dict[str, Any] = {"freeze": "none", "freeze_epochs": None, "backbone_lr": 1.0, "layer_decay": 1.0, "decay_norms": True}


class Model(nn.Module):
    """What `Tuning` asks of a LightningModule, and of its trainer."""

    def __init__(self, processes: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = CNN(1, 3, widths=(4, 6), dropout=0.0)
        self.hparams = {"class_names": ["a", "b", "c"]}
        self.starts_from = "best.ckpt"
        self.trainer = SimpleNamespace(world_size=processes, current_epoch=0, strategy=None, callbacks=[], ckpt_path=None)

    def backward(self) -> None:
        self.zero_grad()
        nn.functional.cross_entropy(self.network(IMAGE_BCHW), LABEL_B).backward()


def tuned(model: Model, **given: Any) -> Tuning:
    tuning = Tuning(**(USUAL | given))
    tuning.setup(model.trainer, model, "fit")
    return tuning


def step(tuning: Tuning, model: Model, optimizer: torch.optim.Optimizer, by_closure: bool = True) -> None:
    """As Lightning does: the backward pass and its hook are in the closure, but in 16-mixed."""

    def closure() -> None:
        model.backward()
        tuning.on_before_optimizer_step(model.trainer, model, optimizer)

    if by_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def sgd(parameters, lr=0.5, weight_decay=0.0):
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


def changes(tuning: Tuning, model: Model, optimizer: torch.optim.Optimizer, by_closure: bool = True) -> dict[str, torch.Tensor]:
    """Name -> what one step did to a parameter, in shares of its gradient (before weight decay)."""
    before = {name: parameter.detach().clone() for name, parameter in model.network.named_parameters()}
    model.backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.network.named_parameters()}
    step(tuning, model, optimizer, by_closure)
    moved = {name: before[name] - parameter.detach() for name, parameter in model.network.named_parameters()}
    return {n: moved[n] if gradients[n] is None else moved[n] / gradients[n].where(gradients[n] != 0, 1.0) for n in moved}


def share(change: torch.Tensor) -> float:
    return float(change[change != 0].median()) if (change != 0).any() else 0.0


@pytest.mark.parametrize("by_closure", [True, False])
def test_each_block_moves_by_its_share_of_the_rate(by_closure: bool) -> None:
    model = Model()
    tuning = tuned(model, backbone_lr=0.5, layer_decay=0.8)
    optimizer = tuning.optimizer(sgd, model)
    found = changes(tuning, model, optimizer, by_closure)
    blocks = blocks_of(model.network, 3)
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
    tuning = tuned(model, backbone_lr=0.25)
    optimizer = tuning.optimizer(sgd, model)
    scheduler = schedule(optimizer)
    for _ in range(5):
        rate = optimizer.param_groups[0]["lr"]
        found = changes(tuning, model, optimizer)
        assert share(found["head.2.weight"]) == pytest.approx(rate, rel=2e-3)
        assert share(found["features.0.weight"]) == pytest.approx(0.25 * rate, rel=2e-3)
        scheduler.step()


def test_norms_and_biases_are_spared_the_decay() -> None:
    model = Model()
    optimizer = tuned(model, decay_norms=False).optimizer(lambda groups: sgd(groups, weight_decay=0.1), model)
    before = {name: parameter.detach().clone() for name, parameter in model.network.named_parameters()}
    for parameter in model.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1  # as a run that goes on with another one sets it
    optimizer.step()
    for name, parameter in model.network.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.1) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def changed_of(model: Model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}


HEAD = {"head.2.weight", "head.2.bias"}


def test_a_frozen_backbone_learns_nothing_and_counts_nothing() -> None:
    model = Model()
    tuning = tuned(model, freeze="backbone")
    optimizer = tuning.optimizer(torch.optim.Adam, model)
    before = copy.deepcopy(model.network.state_dict())
    model.train()
    tuning.on_train_epoch_start(model.trainer, model)
    for _ in range(3):
        step(tuning, model, optimizer)
    assert changed_of(model, before) == HEAD
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert {name for name, parameter in model.network.named_parameters() if parameter.requires_grad} == HEAD
    assert model.network.head[1].training, "dropout goes on"


@pytest.mark.parametrize("by_closure", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_after_its_epochs_it_learns_again(processes: int, by_closure: bool) -> None:
    model = Model(processes)
    tuning = tuned(model, freeze="backbone", freeze_epochs=2, backbone_lr=0.1)
    optimizer = tuning.optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1), model)
    before = copy.deepcopy(model.network.state_dict())
    for epoch in range(3):
        model.trainer.current_epoch = epoch
        model.train()
        tuning.on_train_epoch_start(model.trainer, model)
        step(tuning, model, optimizer, by_closure)
        if epoch < 2:  # nor does the decay pull at them
            assert changed_of(model, before) == HEAD
            # Where processes share gradients, each parameter has one in every step.
            assert all(p.requires_grad for p in model.network.parameters()) == (processes == 2)
        else:
            assert changed_of(model, before) == set(before)


def test_parameters_beside_the_network_have_the_rate_of_the_head() -> None:
    model = Model()
    model.criterion_weight = nn.Parameter(torch.ones(()))
    optimizer = tuned(model, backbone_lr=0.1, freeze="backbone").optimizer(sgd, model)
    model.criterion_weight.grad = torch.ones(())
    optimizer.step()
    assert float(model.criterion_weight.detach()) == pytest.approx(0.5)


def test_a_step_that_fails_leaves_the_rates_as_they_were() -> None:
    model = Model()
    optimizer = tuned(model, backbone_lr=0.1).optimizer(sgd, model)

    def closure() -> None:
        raise RuntimeError("a batch that can't be")

    with pytest.raises(RuntimeError, match="can't be"):
        optimizer.step(closure)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_what_takes_no_groups_is_refused() -> None:
    class Sorting(torch.optim.AdamW):
        def __init__(self, params, lr: float = 0.1) -> None:
            super().__init__([{"params": [parameter for parameter in params if parameter.ndim > 1]}], lr=lr)

    class Joining(torch.optim.SGD):
        def __init__(self, params, lr: float = 0.1) -> None:
            super().__init__([parameter for group in params for parameter in group["params"]], lr=lr)

    for build, message in (
        (torch.optim.LBFGS, "takes no groups"),
        (Sorting, "takes no groups"),
        (Joining, "sorts parameters itself"),
    ):
        model = Model()
        with pytest.raises(ConfigError, match=message):
            tuned(model, backbone_lr=0.1).optimizer(build, model)


def test_what_can_not_be_frozen_is_refused() -> None:
    model = Model()
    model.trainer.callbacks = [StochasticWeightAveraging(0.1)]
    with pytest.raises(ConfigError, match="StochasticWeightAveraging"):
        tuned(model, freeze="backbone")
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for given in ({"backbone_lr": 0.1}, {"layer_decay": 0.5}):
        with pytest.raises(ConfigError, match="no layer before its head"):
            tuned(model, **given)
    tuned(model, decay_norms=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("freeze", "backbon"),
        ("freeze", None),
        ("freeze_epochs", 0),
        ("freeze_epochs", True),
        ("freeze_epochs", 1.5),
        ("backbone_lr", -1.0),
        ("backbone_lr", float("nan")),
        ("backbone_lr", float("inf")),
        ("backbone_lr", [0.1]),
        ("layer_decay", 1.5),
        ("layer_decay", "0.5"),
        ("decay_norms", "false"),
    ],
)
def test_values_that_no_parser_has_seen_are_checked(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key} is "):
        Tuning(**(USUAL | {"freeze": "backbone", key: value}))


def test_epochs_without_anything_frozen_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is frozen"):
        Tuning(**(USUAL | {"freeze_epochs": 3}))


def test_it_is_said_where_what_is_frozen_knows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    model.starts_from = None
    tuned(model, freeze="backbone")
    assert "know nothing yet" in capsys.readouterr().err
    model.trainer.ckpt_path = "last.ckpt"
    tuned(model, freeze="backbone")
    assert capsys.readouterr().err == ""


def test_it_is_said_where_a_model_makes_an_optimizer_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    tuned(model, backbone_lr=0.1).on_train_start(model.trainer, model)
    assert "the shares of the rate have no say" in capsys.readouterr().err
