"""What a run leaves behind in figures: metrics.csv, the speed of training and of its data, the versions and the device."""

import csv
import io
import itertools
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.rank_zero import rank_zero_only

from lit_guide.engine.errors import warn
from lit_guide.engine.photos.module import most_workers
from lit_guide.engine.run import runs
from lit_guide.engine.tables import gone

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "onnx", "onnxruntime")


class MetricsCSV(Logger):
    """`metrics.csv` in the run directory, every row written at once; a run that is continued goes on in the same file.

    Lightning's CSVLogger deletes the file of an earlier run, and a crash while it adds a column would lose the rows before.

    Args:
        run_dir: the run directory.
        keep: rows to keep of a run that was broken off: those that its checkpoint has seen. None: all.
    """

    name = version = save_dir = ""

    def __init__(self, run_dir: Path, keep: int | None = None) -> None:
        super().__init__()
        self.path, self.save_dir = run_dir / "metrics.csv", str(run_dir)
        self.rows, self.columns = 0, list[str]()
        if self.path.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
            self._rewrite(keep)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append a row."""
        row = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        if not row.keys() <= set(self.columns):
            self.columns = sorted({*self.columns, *row})
            self._rewrite()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        self.rows += 1

    def _rewrite(self, keep: int | None = None) -> None:
        """Write the file anew, as a whole, with the columns there are now; a crash loses nothing."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                earlier = csv.DictReader(file)
                rows = list(itertools.islice(earlier, keep))
                self.columns = sorted({*self.columns, *(earlier.fieldnames or ())})
        self.rows = len(rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        runs.write_atomic(self.path, text.getvalue())


class Throughput(Callback):
    """Counts training images and the seconds spent on training batches, validation and checkpoints left out; tells of slow data.

    Args:
        wait_share: part of the training time that is spent waiting for data before this is told.
        wait_seconds: and how many seconds it must be at least.
        wait_batches: batches after which it is judged, besides the end of an epoch.
    """

    def __init__(self, wait_share: float = 0.3, wait_seconds: float = 5.0, wait_batches: int = 200) -> None:
        self.wait_share, self.wait_seconds, self.wait_batches = wait_share, wait_seconds, wait_batches
        self.images, self.batches, self.seconds, self.waited = 0, 0, 0.0, 0.0
        self._since: float | None = None  # when the clock was started
        self._ended: float | None = None  # when the next batch began to be waited for
        self._told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, where a run goes on in the middle of an epoch."""
        self._data = getattr(trainer, "datamodule", None)
        device = trainer.strategy.root_device
        self._idle = torch.Event(device) if device.type == "cuda" else None
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count how long the batch was waited for."""
        # A GPU that was busy all the time did not wait.
        if self._ended is not None and (self._idle is None or self._idle.query()):
            # A DataModule says when the batch came, so that what is done with it on the device does not count.
            self.waited += max(0.0, getattr(self._data, "arrived", time.perf_counter()) - self._ended)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch."""
        self.images += (extract_batch_size(batch) if isinstance(batch, Mapping) else len(batch[1])) * trainer.world_size
        self.batches += 1
        self._ended = time.perf_counter()
        if self._idle is not None:
            self._idle.record()
        if self.batches % self.wait_batches == 0:
            self._judge_waiting(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count no waiting over it."""
        self._ended = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation may also run in the middle of an epoch."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self._since = self._ended = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.on_validation_start(trainer, pl_module)
        self._judge_waiting(trainer)

    def figures(self, seconds: float) -> dict[str, float]:
        """`seconds` and `images_per_second` (training, all processes) for results.json; nothing where nothing was trained."""
        if not self.images or not self.seconds:
            return {}
        return {"seconds": round(seconds, 2), "images_per_second": round(self.images / self.seconds, 1)}

    def _judge_waiting(self, trainer: Trainer) -> None:
        trained = self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)
        if not self._told and self.waited > max(self.wait_seconds, self.wait_share * trained):
            self._told = True
            waited = f"{self.waited:.0f} of {trained:.0f} s ({self.waited / trained:.0%})"
            warn(f"training waited {waited} for data. {_faster(self._data, trainer.num_devices)}")


def environment(trainer: Trainer) -> dict[str, Any]:
    """The `versions` and `device` sections of results.json."""
    root, kind = trainer.strategy.root_device, type(trainer.strategy).__name__
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "device": {
            "accelerator": root.type,
            "name": name,
            "devices": trainer.world_size,
            "strategy": getattr(trainer.strategy, "strategy_name", kind.removesuffix("Strategy").lower()),
            "precision": str(trainer.precision),
        },
    }


def _faster(data: Any, devices: int) -> str:
    """Which flag brings the data faster."""
    workers, most = getattr(data, "loader_processes", 0), most_workers(devices)
    if workers < most:
        return f"Load with more processes: --data.num_workers {most} (now {workers})."
    if getattr(data, "cache", None) == "none" and not gone(getattr(data, "caches", {})):
        return "All cores load already: decode each image once with --data.cache ram, or disk if the set is larger than memory."
    return "All cores load already: make the images smaller before training, or put them on a faster disk."
