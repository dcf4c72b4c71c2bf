"""What a model said of each image: predictions.csv, predictions.json, and the first rows on the screen.

Shapes: N images, K classes, W processes.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from lit_guide.engine.errors import say
from lit_guide.engine.run import runs
from lit_guide.engine.run.screen import print_table


def gathered(batches: Sequence[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, Tensor]:
    """What all W processes predicted, in the order of the samples: probabilities (N, K) and labels (N,), on the CPU."""
    nothing = torch.empty(0, classes), torch.empty(0, dtype=torch.int64)
    own = tuple(torch.cat(parts) for parts in zip(nothing, *batches, strict=True))
    shards: list[Any] = [own]
    if distributed.is_available() and distributed.is_initialized():
        shards = [None] * distributed.get_world_size()
        distributed.all_gather_object(shards, own)
    whole = tuple(torch.empty(sum(len(shard[i]) for shard in shards), *own[i].shape[1:], dtype=own[i].dtype) for i in (0, 1))
    for rank, shard in enumerate(shards):  # process r has the samples r, r + W, r + 2 W, ...
        for part, target in zip(shard, whole, strict=True):
            target[rank :: len(shards)] = part
    return whole[0], whole[1]


def write_predictions(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.json, and predictions.csv with one row an image and the runners-up in columns of their own.

    Args:
        run_dir: where they go.
        rows: file, class, probability, label where it is known, and top: class and probability, from the best down.
    """
    flat = []
    for row in rows:
        others = {f"{key}_{at}": value for at, one in enumerate(row["top"][1:], 2) for key, value in one.items()}
        flat.append({key: value for key, value in row.items() if key != "top"} | others)
    text = io.StringIO()
    columns = dict.fromkeys(["file", "class", "probability", *(key for row in flat for key in row)])
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    runs.write_atomic(run_dir / "predictions.csv", text.getvalue())
    runs.write_atomic(run_dir / "predictions.json", json.dumps(rows, indent=1) + "\n")


def print_predictions(run_dir: Path, rows: Sequence[Mapping[str, Any]], most: int = 20) -> None:
    """Print the first rows as a table, and where all of them are."""
    first = []
    for row in rows[:most]:
        top = ", ".join(f"{one['class']} {one['probability']:.3f}" for one in row["top"])
        first.append((row["file"], row["class"], f"{row['probability']:.3f}", top))
    print_table("Predictions", ("file", "class", "probability", "top 3"), first)
    say(
        f"... and {len(rows) - most} more.\n" * (len(rows) > most)
        + f"All are in {run_dir / 'predictions.csv'} and predictions.json"
    )
