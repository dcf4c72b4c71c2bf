"""The progress bar: rich in a terminal, a line an epoch in a log file."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's RichProgressBar, brought up to date five times a second at most.

    Lightning reads every metric after each batch, which on small networks costs more than the training step. Where the output
    is no terminal, nothing is drawn and each epoch prints one line.

    Args:
        interval: seconds between two drawings.
    """

    def __init__(self, interval: float = 0.2) -> None:
        super().__init__(refresh_rate=5, leave=False)
        self.interval = interval
        self._drawn = 0.0
        self._epoch = 0
        self._validated = False
        if not sys.stdout.isatty():
            self.disable()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw, if it is time to or the epoch ends."""
        now = time.monotonic()
        if now - self._drawn >= self.interval or batch_idx + 1 == self.total_train_batches:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch, where a run goes on in the middle of one."""
        self._epoch = trainer.current_epoch + 1 if trainer.fit_loop.restarting else 0
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar anew, or print the epoch before: its training figures are known only after its last hook."""
        self._print_epoch(trainer)
        self._epoch, self._validated = trainer.current_epoch + 1, False
        super().on_train_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has validation figures of its own."""
        self._validated = True
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self._print_epoch(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        if not self.is_disabled or not self._epoch or not trainer.is_global_zero:
            return
        shown = ["train/loss", "train/accuracy", *(["val/loss", "val/accuracy"] if self._validated else [])]
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""  # -1: as many as max_steps allows
        figures = [f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in shown if name in trainer.callback_metrics]
        print(f"epoch {self._epoch}{of}  {'  '.join(figures)}", flush=True)
