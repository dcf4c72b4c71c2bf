"""What `freeze`, `backbone_lr`, `layer_decay` and `decay_norms` of a model do: what learns, and how fast."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from lit_guide.engine.errors import ConfigError
from lit_guide.parts.finetune.layers import blocks_of

COUNTING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # norms that keep statistics of what passes


class Tuning:
    """What of a network learns, from which epoch on, and at which share of the learning rate.

    Args:
        network: its last layer is the head, all before it the backbone.
        freeze: none or backbone.
        freeze_epochs: epochs for which that is frozen; None: all.
        backbone_lr: share of the learning rate that the backbone gets.
        layer_decay: further share for each block that lies between one and the head (Clark et al., arXiv:2003.10555).
        decay_norms: whether the weight decay of the optimizer is for biases and norms too.

    Raises:
        ConfigError: the network has nothing but a head.
    """

    def __init__(
        self,
        network: nn.Module,
        freeze: str = "none",
        freeze_epochs: int | None = None,
        backbone_lr: float = 1.0,
        layer_decay: float = 1.0,
        decay_norms: bool = True,
    ) -> None:
        *backbone, head = blocks_of(network)
        if not backbone:
            raise ConfigError("The network has no layer before its head: there is no backbone to freeze or to train slowly.")
        self.network, self.decay_norms = network, decay_norms
        self.freezes, self.epochs = freeze == "backbone", freeze_epochs
        self.names = {name for block in backbone for name in block}
        far = len(backbone)
        self.shares = {name: backbone_lr * layer_decay ** (far - at) for at, block in enumerate(backbone) for name in block}
        self.shares |= dict.fromkeys(head, 1.0)
        if self.freezes and self.epochs is None:  # now: DDP shares no gradients of what learns nothing
            self._let_learn(False)

    def is_frozen(self, epoch: int) -> bool:
        """Whether the backbone learns nothing in this epoch."""
        return self.freezes and (self.epochs is None or epoch < self.epochs)

    def hold(self, model: LightningModule) -> None:
        """See, as an epoch begins, that what is frozen is: its BatchNorm neither learns nor counts what passes."""
        frozen = self.is_frozen(model.current_epoch)
        if self.freezes:
            for module in self.network.modules():
                if isinstance(module, COUNTING):
                    module.train(not frozen)
        # Among several processes all gradients are shared in each step, and those of the backbone dropped before it.
        if self.freezes and self.epochs is not None and model.trainer.world_size == 1:
            self._let_learn(not frozen)

    def optimizer(self, build: Callable[[Iterable[Any]], Optimizer], model: LightningModule) -> Optimizer:
        """The optimizer, with a group of parameters for each rate, with and without weight decay.

        Its groups have the learning rate of the whole; in a step, each gets its share: so every schedule works, and what a run
        that goes on finds in its checkpoint is the rate that was given.
        """
        prefix = next(f"{name}." for name, module in model.named_modules() if module is self.network)
        groups: dict[tuple[float, bool], list[Parameter]] = {}
        for name, parameter in model.named_parameters():
            name = name.removeprefix(prefix)
            if self.freezes and self.epochs is None and name in self.names:
                continue
            spared = not self.decay_norms and parameter.ndim <= 1
            groups.setdefault((self.shares.get(name, 1.0), spared), []).append(parameter)
        spare = {True: {"weight_decay": 0.0}, False: dict[str, Any]()}
        built = build([{"params": parameters, **spare[spared]} for (_, spared), parameters in groups.items()])
        backbone = [parameter for name, parameter in self.network.named_parameters() if name in self.names]
        given: list[Any] = []

        def before(optimizer: Optimizer, *_: Any) -> None:
            given[:] = [group["lr"] for group in optimizer.param_groups]
            for group, (share, spared) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = group["lr"] * share
                group.update(spare[spared])  # another one, given as a run goes on, is not for these
            if self.is_frozen(model.current_epoch):
                for parameter in backbone:
                    parameter.grad = None  # the optimizer passes over it

        def after(optimizer: Optimizer, *_: Any) -> None:
            for group, lr in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = lr

        built.register_step_pre_hook(before)
        built.register_step_post_hook(after)
        return built

    def _let_learn(self, learns: bool) -> None:
        for name, parameter in self.network.named_parameters():
            if name in self.names:
                parameter.requires_grad_(learns)
