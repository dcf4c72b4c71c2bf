"""Stops a run that can't succeed, and says why: a loss that is not finite, weights that DDP waits for."""

import math
import re
from collections import deque
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from lit_guide.engine.errors import UserError
from lit_guide.engine.machine import command
from lit_guide.engine.photos.dataset import joined, shown
from lit_guide.engine.run import runs
from lit_guide.engine.train.checkpoints import best_checkpoint

RUNNING = ("running_mean", "running_var")  # BatchNorm's; other buffers may hold -inf on purpose
BATCHES = {"cpu": 1}  # after so many batches their losses are read at the latest; on other devices as the flag says


class Step(NamedTuple):
    """Where a training batch was, everything counted from 0, and the learning rate then."""

    step: int
    epoch: int
    batch: int
    rate: float | Tensor

    def __str__(self) -> str:
        return f"step {self.step + 1} (epoch {self.epoch + 1}, batch {self.batch + 1})"


class Guards(Callback):
    """Stops a run on a loss or weights that are not finite, and on weights without a gradient in a DDP run.

    On the CPU each loss is looked at before it is learnt from. Other devices would have to stop for that: there the losses are
    kept on the device, and read as soon as one that is logged is not finite, or after some batches, and when the epoch ends.
    Weights are looked at when an epoch ends and before a checkpoint is written. Gradients are not: those that are not finite
    break the weights, and so the loss of the next step.

    Args:
        every: batches after which the losses are read at the latest, on other devices than the CPU.
    """

    def __init__(self, every: PositiveInt = 1000) -> None:
        self.most = int(every)
        self._every, self._loss_L, self._unread = 1, torch.zeros(1), 0
        self._steps: deque[Step] = deque()
        self._first = True  # until the first backward pass
        self.bad_loss: float | None = None  # a loss whose backward pass anomaly detection is to look at

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the device."""
        device = trainer.strategy.root_device
        self._every = BATCHES.get(device.type, self.most)
        self._loss_L, self._unread = torch.zeros(self._every, device=device), 0
        self._steps = deque(maxlen=self._every + trainer.accumulate_grad_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        if self._unread == self._every > 1:  # the batch before had no loss
            self._read(trainer)
        rate = next((group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups), 0.0)
        self._steps.append(Step(trainer.global_step, trainer.current_epoch, batch_idx, rate))
        self._unread += 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop on a loss that is not finite, before it is learnt from; or keep it where it is not looked at yet."""
        if self._every > 1:
            self._loss_L[self._unread - 1] = loss.detach()
        elif not math.isfinite(value := loss.item()):
            if not torch.is_anomaly_enabled():
                raise self.not_finite(trainer, value)
            self.bad_loss = value

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses if it is time to; stop if the first backward pass left out parameters that DDP waits for."""
        if self.bad_loss is not None:
            raise self.not_finite(trainer, self.bad_loss)
        if self._every > 1 and (self._unread == self._every or not _logged_is_finite(trainer)):
            self._read(trainer)
        if self._first:
            self._first, ddp = False, trainer.strategy.model
            waits = isinstance(ddp, DistributedDataParallel) and not (ddp.find_unused_parameters or ddp.static_graph)
            unused = [name for name, weight in pl_module.named_parameters() if weight.requires_grad and weight.grad is None]
            if waits and unused:
                raise UserError(
                    f"{len(unused)} parameters of the network have no part in the loss, and DDP would wait for their gradients:\n"
                    f"{shown(unused)}\nTake them out of the network, or use --strategy ddp_find_unused_parameters_true."
                )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any = None) -> None:
        """Look at what was not looked at yet, and at the weights; refuse a checkpoint that nobody could go on with."""
        self._read(trainer)
        running = ((name, buffer) for name, buffer in pl_module.named_buffers() if name.endswith(RUNNING))
        if names := broken(chain(pl_module.named_parameters(), running)):
            last = f" of {self._steps[-1]}: {_images(trainer, [self._steps[-1]])}" if self._steps else ""
            told = f"The weights are not finite any more: {joined(names, ', ')}. The last batch was that{last}."
            raise UserError("\n".join([told, *_advice(trainer)]))

    on_train_epoch_end = on_save_checkpoint

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where it is anomaly detection's, give it the batch and the operation as its cause: that is what is told then."""
        if operation := re.search(r"Function '(\w+)' returned nan values", str(exception)):
            exception.__cause__ = self.not_finite(trainer, self.bad_loss or 0.0, operation=operation[1])

    def not_finite(self, trainer: Trainer, value: float, back: int = 0, operation: str | None = None) -> UserError:
        """The error for a loss that was not finite some batches ago; anomaly detection may name the operation."""
        at = self._steps[-1 - back]
        before = [step for step in self._steps if step.step == at.step - 1]
        what = "A gradient became nan" if math.isfinite(value) else f"The loss became {value:g}"
        told = [f"{what} in {at}, at a learning rate of {float(at.rate):g}."]
        if operation is not None:
            told.append(f"The operation is the one that {operation} belongs to; the warning above shows where it was called.")
        weights_broken = broken(trainer.lightning_module.named_parameters())
        if self._every > 1 or not weights_broken:
            told.append(f"Images of this batch: {_images(trainer, [at])}.")
        if self._every > 1 and weights_broken:
            told.append(f"The weights may have been broken one step earlier, by: {_images(trainer, before)}.")
        elif weights_broken and before:
            told.append(f"The weights were broken before, by the gradients of {before[-1]}, of: {_images(trainer, before)}.")
        elif weights_broken:
            told.append("The weights were broken before training began: start from another checkpoint.")
        return UserError("\n".join([*told, *_advice(trainer, named=operation is not None)]))

    def _read(self, trainer: Trainer) -> None:
        unread, self._unread = self._unread, 0
        for place, value in enumerate(self._loss_L[:unread].tolist() if unread else ()):
            if not math.isfinite(value):
                raise self.not_finite(trainer, value, back=unread - 1 - place)


def _logged_is_finite(trainer: Trainer) -> bool:
    """Whether the loss that is logged in this step, if one is, is finite; it is on the CPU already."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
    logged = every and (trainer.global_step + 1) % every == 0
    return not logged or math.isfinite(trainer.callback_metrics.get("train/loss_step", 0.0))


def broken(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors with values that are not finite; one norm over all of them tells whether to look closer."""
    named = {name: tensor.detach() for name, tensor in tensors if tensor.is_floating_point()}
    if get_total_norm(named.values()).isfinite():
        return []
    return [name for name, tensor in named.items() if not tensor.isfinite().all()]


def _images(trainer: Trainer, steps: Iterable[Step]) -> str:
    """The first images of these batches, and how many more there are."""
    batch_names = getattr(getattr(trainer, "datamodule", None), "batch_names", None)
    if batch_names is None:
        return "the loader does not say which"
    return joined([name for step in steps for name in batch_names(step.epoch, step.batch)], ", ", most=10)


def _advice(trainer: Trainer, named: bool = False) -> list[str]:
    """The last good checkpoint, and what to try."""
    best, root = best_checkpoint(trainer), Path(trainer.default_root_dir)  # the first waits for one that is being written
    saved = [path for path in (root / runs.LAST, best) if path is not None and path.is_file()]
    group = trainer.optimizers[0].param_groups[0]
    tries = [f"--model.optimizer.lr {float(group.get('initial_lr', group['lr'])) / 10:g}"]
    tries += ["--trainer.gradient_clip_val 1.0"] if not trainer.gradient_clip_val else []
    tries += ["--precision bf16-mixed or 32-true"] if str(trainer.precision).startswith("16") else []
    tries += [f"{command('data', 'check')} (finds broken images)"]
    tries += ["--trainer.detect_anomaly true (names the operation)"] if not (named or torch.is_anomaly_enabled()) else []
    return [f"Last finite checkpoint: {saved[0] if saved else 'none was saved'}.", f"Try: {', '.join(tries)}."]
