"""What Lightning shows of a run and does in each step, made less: progress bar, model summary, profiler, hooks."""

import inspect
import sys
import time
from contextlib import nullcontext
from types import FunctionType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichModelSummary, RichProgressBar
from lightning.pytorch.profilers import PassThroughProfiler

MODULE = f"{__package__}.module"  # whose clipping does nothing either where there is none to do
INTERVAL = 0.2  # seconds between two drawings of the progress bar
STEP: tuple[str, ...] = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward")
STEP += ("on_before_optimizer_step", "on_train_batch_end")


class ProgressBar(RichProgressBar):
    """Lightning's RichProgressBar, brought up to date five times a second at most.

    Lightning reads every metric after each batch, which on small networks costs more than the training step. Where the output
    is no terminal, nothing is drawn and each epoch prints one line.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=False)
        self._drawn, self._epoch, self._validated = 0.0, 0, False
        if not sys.stdout.isatty():
            self.disable()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw, if it is time to or the epoch ends."""
        now = time.monotonic()
        if now - self._drawn >= INTERVAL or batch_idx + 1 == self.total_train_batches:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch, where a run goes on in the middle of one."""
        self._epoch = trainer.current_epoch + 1 if trainer.fit_loop.restarting else 0
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar anew, or print the epoch before: its training figures are known only after its last hook."""
        self.on_train_end(trainer, pl_module)
        self._epoch, self._validated = trainer.current_epoch + 1, False
        super().on_train_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has validation figures of its own."""
        self._validated = True
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch that ended."""
        if self.is_disabled and self._epoch and trainer.is_global_zero:
            shown = ["train/loss", "train/accuracy", *(["val/loss", "val/accuracy"] if self._validated else [])]
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""  # -1: as many as max_steps allows
            known = trainer.callback_metrics
            figures = "  ".join(f"{name} {float(known[name]):.4f}" for name in shown if name in known)
            print(f"epoch {self._epoch}{of}  {figures}", flush=True)


class Summary(RichModelSummary):
    """Lightning's RichModelSummary, with FLOPs of one image, without what has no parameters: metrics, which are modules too."""

    def __init__(self) -> None:
        super().__init__(max_depth=3)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Print the table."""
        columns = dict(summary_data)
        sizes = dict(zip(columns["Name"], columns["Params"], strict=True))
        kept = [index for index, name in enumerate(sizes) if sizes.get(name.partition(".")[0], "").strip() != "0"]
        RichModelSummary.summarize([(column, [cells[i] for i in kept]) for column, cells in summary_data], *args, **kwargs)


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that does nothing, in less time: a step enters it some 20 times."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """The same empty context every time."""
        return self.nothing


def leave_out_empty_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Take away the hooks of a training step that the module and the trainer's callbacks have only inherited.

    Lightning passes over a hook that can't be called; an empty one it calls, with all that goes with it: 70 times a step here.
    So it does with clipping where nothing is clipped. And in each step it asks what `training_step` takes: it finds that noted.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in callbacks)]:
        for name in STEP:
            if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
                setattr(owner, name, None)
    cls = type(module)
    if not trainer.gradient_clip_val and cls.configure_gradient_clipping.__module__ in (LightningModule.__module__, MODULE):
        module.configure_gradient_clipping = None  # type: ignore[assignment, method-assign]
    if isinstance(step := cls.training_step, FunctionType) and not hasattr(step, "__wrapped__"):
        step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
