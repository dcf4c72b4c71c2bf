"""What Lightning does in each step for nobody, left out: on a small network that is a good part of the step."""

from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler

STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that does nothing, in less time: a step enters it some 20 times."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """The same empty context every time."""
        return self.nothing


def leave_out_empty_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Take away the hooks of a training step that the module and the trainer's callbacks have only inherited.

    Lightning passes over a hook that can't be called; an empty one it calls, with all that goes with it: 70 times a step here.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in callbacks)]:
        for name in STEP:
            if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
                setattr(owner, name, None)
