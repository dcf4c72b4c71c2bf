"""The callback that measures how long training waits for its data."""

import time
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from lightning.pytorch import LightningModule, Trainer

from lit_guide.engine.errors import warn
from lit_guide.engine.machine import most_workers
from lit_guide.engine.tables import gone
from lit_guide.engine.train.metrics import Throughput

BATCHES = 200  # after so many it is judged, besides the end of an epoch


class SlowData(Throughput):
    """Tells once that training waits for its data, and which flag brings them faster.

    Its clock is the one of `Throughput`: validation and checkpoints are left out. A batch counts as waited for from the end of
    the one before until it has come; not where the GPU was busy all that time.

    Args:
        share: part of the training time, 0 to 1, that is spent waiting before this is told.
        seconds: and how many seconds it must be at least.
    """

    def __init__(self, share: ClosedUnitInterval = 0.3, seconds: NonNegativeFloat = 5.0) -> None:
        super().__init__()
        self.share, self.least = share, seconds
        self.batches, self.waited = 0, 0.0
        self._ended: float | None = None  # when the next batch began to be waited for
        self._told = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the data come from, and where they go."""
        self._data = getattr(trainer, "datamodule", None)
        device = trainer.strategy.root_device
        self._idle = torch.Event(device) if device.type == "cuda" else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count how long the batch was waited for."""
        if self._ended is not None and (self._idle is None or self._idle.query()):
            # A DataModule says when the batch came, so that what is done with it on the device does not count.
            self.waited += max(0.0, getattr(self._data, "arrived", time.perf_counter()) - self._ended)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Begin to wait."""
        self.batches += 1
        self._ended = time.perf_counter()
        if self._idle is not None:
            self._idle.record()
        if self.batches % BATCHES == 0:
            self._judge(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count no waiting over it."""
        self._ended = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor over a validation, which may also run in the middle of an epoch."""
        super().on_validation_start(trainer, pl_module)
        self._ended = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock, and judge."""
        self.on_validation_start(trainer, pl_module)
        self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        trained = self.trained()
        if not self._told and self.waited > max(self.least, self.share * trained):
            self._told = True
            waited = f"{self.waited:.0f} of {trained:.0f} s ({self.waited / trained:.0%})"
            warn(f"training waited {waited} for data. {faster(self._data, trainer.num_devices)}")


def faster(data: Any, devices: int) -> str:
    """Which flag brings the data faster."""
    workers, most = getattr(data, "loader_processes", 0), most_workers(devices)
    if workers < most:
        return f"Load with more processes: --data.num_workers {most} (now {workers})."
    if getattr(data, "cache", None) == "none" and not gone(getattr(data, "caches", {})):
        return "All cores load already: decode each image once with --data.cache ram, or disk if the set is larger than memory."
    return "All cores load already: make the images smaller before training, or put them on a faster disk."
