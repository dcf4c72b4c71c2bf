"""What a run leaves behind in figures: metrics.csv, the speed of training, the versions and the device."""

import csv
import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.rank_zero import rank_zero_only

from lit_guide.engine.run import runs
from lit_guide.engine.train.progress import NoProfiler as NoProfiler  # where it was in version 0.1

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "onnx", "onnxruntime")
IN_RESULTS = 100  # classes whose confusion matrix lies in results.json, which each export reads and writes whole


class MetricsCSV(Logger):
    """`metrics.csv` in the run directory, every row written at once; a run that is continued goes on in the same file.

    Lightning's CSVLogger deletes the file of an earlier run, and a crash while it adds a column would lose the rows before.
    Of a run that was broken off it keeps the first `keep` rows, those that its checkpoint has seen; None: all.
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
        with runs.whole_file(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class Throughput(Callback):
    """Counts training images and the seconds spent on training batches, validation and checkpoints left out."""

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0
        self._since: float | None = None  # when the clock was started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; here too, as a run may go on in the middle of an epoch."""
        self._since = time.perf_counter()

    on_train_epoch_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch."""
        self.images += (extract_batch_size(batch) if isinstance(batch, Mapping) else len(batch[1])) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation may also run in the middle of an epoch."""
        self.seconds, self._since = self.trained(), None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._since = time.perf_counter()

    on_train_epoch_end = on_validation_start

    def trained(self) -> float:
        """Seconds of training so far."""
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def figures(self, seconds: float) -> dict[str, float]:
        """`seconds` and `images_per_second` (training, all processes) for results.json; nothing where nothing was trained."""
        if not self.images or not self.seconds:
            return {}
        return {"seconds": round(seconds, 2), "images_per_second": round(self.images / self.seconds, 1)}


def write_confusion(path: Path, matrix_KK: torch.Tensor, class_names: Sequence[Any]) -> None:
    """The cells of a confusion matrix that are not 0, a row each: they are no more than the images, however many classes."""
    with runs.whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("true", "predicted", "images"))
        for true, predicted in matrix_KK.nonzero().tolist():
            table.writerow((class_names[true], class_names[predicted], int(matrix_KK[true, predicted])))


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
