"""What `freeze`, `backbone_lr`, `layer_decay` and `decay_norms` of a model do: what learns, and how fast."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from lit_guide.engine.errors import ConfigError, warn
from lit_guide.parts.finetune.layers import blocks_of

COUNTING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # norms that keep statistics of what passes
CAN_BE: dict[str, Callable[[Any], bool]] = {
    "freeze": lambda value: value in ("none", "backbone"),
    "freeze_epochs": lambda value: value is None or (type(value) is int and value > 0),
    "backbone_lr": lambda value: type(value) in (int, float) and 0 <= value < float("inf"),
    "layer_decay": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "decay_norms": lambda value: isinstance(value, bool),
}
KEYS = "model.freeze, backbone_lr, layer_decay and decay_norms"


class Tuning(Callback):
    """What of a network learns, from which epoch on, and at which share of the learning rate.

    Args:
        freeze: none or backbone, which is all before the last layer.
        freeze_epochs: epochs for which that is frozen; None: all.
        backbone_lr: share of the learning rate that the backbone gets.
        layer_decay: further share for each step from the last layer towards the pixels (Clark et al., arXiv:2003.10555).
        decay_norms: whether the weight decay of the optimizer is for biases and norms too.

    Raises:
        ConfigError: a value that can't be.
    """

    def __init__(self, freeze: str, freeze_epochs: int | None, backbone_lr: float, layer_decay: float, decay_norms: bool) -> None:
        given: dict[str, Any] = {"freeze": freeze, "freeze_epochs": freeze_epochs, "backbone_lr": backbone_lr}
        given |= {"layer_decay": layer_decay, "decay_norms": decay_norms}
        for key, value in given.items():  # of a checkpoint, or from Python: the parser has not seen them
            if not CAN_BE[key](value):
                raise ConfigError(f"model.{key} is {str(value)[:40]}, which can't be: see --model.help.")
        if freeze_epochs is not None and freeze == "none":
            raise ConfigError("model.freeze_epochs says for how long, but nothing is frozen: --model.freeze backbone.")
        self.freezes, self.epochs, self.decay_norms = freeze == "backbone", freeze_epochs, decay_norms
        self.backbone_lr, self.layer_decay = backbone_lr, layer_decay
        self.shares: dict[str, float] = {}  # of the learning rate, by name in the module
        self.backbone: set[str] = set()
        self.built = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the layers; freeze what learns nothing in the whole run: here, before DDP divides what there is to share."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ConfigError(f"{KEYS} need whole weights, which FSDP takes apart: use --strategy ddp.")
        if self.freezes and any(isinstance(one, StochasticWeightAveraging) for one in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError(
                "StochasticWeightAveraging counts BatchNorm's statistics anew, and model.freeze keeps them: use configs/ema.yaml."
            )
        network: Any = pl_module.network
        prefix = next(f"{name}." for name, module in pl_module.named_modules() if module is network)
        *backbone, _ = blocks_of(network, len(pl_module.hparams["class_names"]))
        if not backbone and (self.freezes or (self.backbone_lr, self.layer_decay) != (1, 1)):
            raise ConfigError("The network has no layer before its head: there is no backbone to freeze or to train slowly.")
        self.backbone = {prefix + name for block in backbone for name in block}
        far = len(backbone)
        self.shares = {
            prefix + name: self.backbone_lr * self.layer_decay ** (far - at)
            for at, block in enumerate(backbone)
            for name in block
        }
        if self.freezes and self.epochs is None:
            self._let_learn(pl_module, False)
        if self.freezes and not getattr(pl_module, "starts_from", None) and trainer.ckpt_path is None:
            warn("the layers that are frozen know nothing yet: give --model.weights FILE, or DEFAULT, to start from.")

    def is_frozen(self, epoch: int) -> bool:
        """Whether the backbone learns nothing in this epoch."""
        return self.freezes and (self.epochs is None or epoch < self.epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that what is frozen is: its BatchNorm neither learns nor counts what passes."""
        frozen = self.is_frozen(trainer.current_epoch)
        if self.freezes:
            for module in pl_module.network.modules():  # type: ignore[union-attr]
                if isinstance(module, COUNTING):
                    module.train(not frozen)
        # Among several processes all gradients are shared in each step, and those of the backbone dropped after it.
        if self.freezes and self.epochs is not None and trainer.world_size == 1:
            self._let_learn(pl_module, not frozen)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same in the middle of an epoch that a run goes on in; and say what has no say."""
        self.on_train_epoch_start(trainer, pl_module)
        if not self.built and (self.decay_norms is False or (self.backbone_lr, self.layer_decay) != (1, 1)):
            warn(f"{type(pl_module).__name__} makes an optimizer of its own: the shares of the rate have no say in it.")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what is frozen, before they are clipped: the optimizer passes over it, and nothing decays."""
        if self.epochs is not None and self.is_frozen(trainer.current_epoch):
            for name, parameter in pl_module.named_parameters():
                if name in self.backbone:
                    parameter.grad = None

    def optimizer(self, build: Callable[[Iterable[Any]], Optimizer], model: LightningModule) -> Optimizer:
        """The optimizer, with a group of parameters for each rate, with and without weight decay.

        Its groups have the learning rate of the whole; in a step, each gets its share: so every schedule works, and what a run
        that goes on finds in its checkpoint is the rate that was given.

        Raises:
            ConfigError: it takes no groups.
        """
        groups: dict[tuple[float, bool], list[Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spared = not self.decay_norms and parameter.ndim <= 1
                groups.setdefault((self.shares.get(name, 1.0), spared), []).append(parameter)
        spare = {True: {"weight_decay": 0.0}, False: dict[str, Any]()}
        given = [
            {"params": some, "name": f"x{share:.4g}" + "_no_decay" * spared, **spare[spared]}
            for (share, spared), some in groups.items()
        ]
        try:
            built = build(given)
        except Exception as error:
            raise ConfigError(f"{KEYS}: the optimizer takes no groups of parameters, which they need: {error}.") from None
        if [len(group["params"]) for group in built.param_groups] != [len(some) for some in groups.values()]:
            raise ConfigError(f"{KEYS}: {type(built).__name__} sorts parameters itself, so they have no say: leave them out.")
        _share(built, [share for share, _ in groups], [spare[spared] for _, spared in groups])
        self.built = True
        return built

    def _let_learn(self, model: LightningModule, learns: bool) -> None:
        for name, parameter in model.named_parameters():
            if name in self.backbone:
                parameter.requires_grad_(learns)


def _share(optimizer: Optimizer, shares: list[float], fixed: list[dict[str, Any]]) -> None:
    """Let each group have its share of the rate while weights are changed, and at no other time: nobody else sees it."""
    whole: list[Any] = []

    def restore(*_: Any) -> None:
        for group, lr in zip(optimizer.param_groups, whole, strict=False):
            group["lr"] = lr
        whole.clear()

    def share() -> None:
        restore()  # of a closure that is called more than once
        whole.extend(group["lr"] for group in optimizer.param_groups)
        for group, part, settings in zip(optimizer.param_groups, shares, fixed, strict=True):
            group.update({**settings, "lr": group["lr"] * part})  # another weight decay, given as a run goes on, is not for these

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            share()
            return None

        def then_share() -> Any:  # forward and backward pass are in there, and may fail
            loss = closure()
            share()
            return loss

        return (args[0], then_share, *args[2:]), {key: value for key, value in kwargs.items() if key != "closure"}

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(restore)
