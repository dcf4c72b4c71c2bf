"""What `predict` found, as predictions.csv, predictions.json and a table on the screen."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, distributed

from lit_guide.engine.run import runs


class Gather(BasePredictionWriter):
    """Brings the predictions of all processes together, in the order of the samples.

    Attributes:
        probability_NK: the probability of each class, float32, on the CPU.
        label_N: the labels as the dataset gave them.
    """

    probability_NK: Tensor
    label_N: Tensor

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Gather; every process comes to hold all of them."""
        own = tuple(torch.cat(parts).cpu() for parts in zip(*predictions, strict=True))
        shards: list[Any] = [own]
        if trainer.world_size > 1:
            shards = [None] * trainer.world_size
            distributed.all_gather_object(shards, own)
        self.probability_NK, self.label_N = (_interleaved(parts) for parts in zip(*shards, strict=True))


def _interleaved(shards: Sequence[Tensor]) -> Tensor:
    """Samples 0, W, 2 W, ... of the first shard of W, 1, W + 1, ... of the second, and so on: as the loaders divide them."""
    whole = torch.empty(sum(map(len, shards)), *shards[0].shape[1:], dtype=shards[0].dtype)
    for first, shard in enumerate(shards):
        whole[first :: len(shards)] = shard
    return whole


def write_predictions(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write both files; the CSV has one row an image, with the runners-up in columns of their own.

    Args:
        run_dir: where they go.
        rows: file, class, probability, label where it is known, and top: (class, probability) from the best down.
    """
    text = io.StringIO()
    has_label = any("label" in row for row in rows)
    ranks = range(2, 1 + max((len(row["top"]) for row in rows), default=1))
    header = ["file", "class", "probability", *(["label"] if has_label else [])]
    header += [f"{column}_{rank}" for rank in ranks for column in ("class", "probability")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        others = [value for pair in row["top"][1:] for value in pair]
        writer.writerow([row["file"], row["class"], row["probability"], *([row["label"]] if has_label else []), *others])
    runs.write_atomic(run_dir / "predictions.csv", text.getvalue())
    plain = [{**row, "top": [{"class": name, "probability": p} for name, p in row["top"]]} for row in rows]
    runs.write_atomic(run_dir / "predictions.json", json.dumps(plain, indent=1) + "\n")


def print_predictions(run_dir: Path, rows: Sequence[Mapping[str, Any]], most: int = 20) -> None:
    """Print the first rows as a table, and where all of them are."""
    table = Table(title="Predictions", title_justify="left")
    for heading in ("file", "class", "probability", "top 3"):
        table.add_column(heading, overflow="fold")
    for row in rows[:most]:
        top = ", ".join(f"{name} {p:.3f}" for name, p in row["top"])
        table.add_row(escape(row["file"]), escape(row["class"]), f"{row['probability']:.3f}", escape(top))
    Console().print(table)
    if len(rows) > most:
        print(f"... and {len(rows) - most} more.")
    print(f"All are in {run_dir / 'predictions.csv'} and predictions.json")
