"""What a run leaves behind in figures: metrics.csv, the speed of training, the versions and the device."""

import csv
import io
import itertools
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning_utilities.core.rank_zero import rank_zero_only

from lit_guide.engine.run import runs

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "onnx", "onnxruntime")


class MetricsCSV(Logger, CSVLogger):
    """`metrics.csv` in the run directory, every row written at once; a run that is continued goes on in the same file.

    Args:
        run_dir: the run directory.
        keep: rows to keep of a run that was broken off: those that its checkpoint has seen. None: all.
    """

    def __init__(self, run_dir: Path, keep: int | None = None) -> None:
        super().__init__(root_dir=str(run_dir), name="", version="", flush_logs_every_n_steps=1)
        self.path, self.rows = run_dir / "metrics.csv", 0
        earlier = run_dir / "metrics.csv.earlier"
        if getattr(rank_zero_only, "rank", 0) == 0 and (self.path.is_file() or earlier.is_file()):
            if self.path.is_file():
                self.path.replace(earlier)
            writer = self.experiment  # CSVLogger would delete the file here
            with earlier.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                kept = list(itertools.islice(rows, keep))
                writer.metrics_keys.extend(rows.fieldnames or [])
            if kept:
                self._write(kept)
                self.rows = len(kept)
            earlier.unlink()

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return self.root_dir

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append a row. For a new column the file is written anew, as a whole, so that a crash loses nothing."""
        keys = self.experiment.metrics_keys
        if new := {*metrics, "step"} - set(keys):
            keys[:] = sorted({*keys, *new})
            if self.path.is_file():
                with self.path.open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
                self._write(rows)
        super().log_metrics(metrics, step)
        self.rows += 1

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.experiment.metrics_keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        runs.write_atomic(self.path, text.getvalue())


class Throughput(Callback):
    """Counts training images and the seconds spent on training batches, validation and checkpoints left out."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, where a run goes on in the middle of an epoch."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch."""
        self.images += len(batch[1]) * trainer.world_size
        if trainer.is_last_batch:
            self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation may also run in the middle of an epoch."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def figures(self, seconds: float) -> dict[str, float]:
        """`seconds` and `images_per_second` (training, all processes) for results.json; nothing where nothing was trained."""
        if not self.images or not self.seconds:
            return {}
        return {"seconds": round(seconds, 2), "images_per_second": round(self.images / self.seconds, 1)}


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that does nothing, in less time: a step enters it some 150 times."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """The same empty context every time."""
        return self.nothing


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
