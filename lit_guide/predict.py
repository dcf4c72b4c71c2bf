"""Classify image files, or the test split: the command `predict`, and `Predictor` for Python.

Shapes: B images a batch, C channels, H x W pixels, K classes, N files.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed

from lit_guide.engine.data.loaders import Split, evaluation_loader
from lit_guide.engine.errors import ConfigError, UserError, say
from lit_guide.engine.machine import expanded, most_workers
from lit_guide.engine.photos.dataset import shown
from lit_guide.engine.photos.decode import UnreadableImageError
from lit_guide.engine.photos.listing import find_images
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import READING, load_model, model_of
from lit_guide.engine.run.screen import print_table
from lit_guide.export.classifier import fact, require
from lit_guide.export.images import UNREADABLE, ImageFiles, read_image, why_unreadable
from lit_guide.fit import start
from lit_guide.model import LitClassifier

WORTH_WORKERS = 500  # files from which on loader processes pay


class Probabilities(LightningModule):
    """A model as `Trainer.predict` uses it: probabilities (B, K), float32, and the labels (B,) as they came."""

    def __init__(self, model: LightningModule) -> None:
        super().__init__()
        self.model = model

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """What one batch gives."""
        image_BCHW, label_B = batch
        return self.model(image_BCHW).float().softmax(dim=1).cpu(), label_B.cpu()


class Predictor:
    """A trained model that classifies image files: `Predictor("runs/digits/...")("a.png")`.

    Args:
        run: a run directory, latest, or a checkpoint file.
        model: its class; None: the one that the run was trained with.

    Raises:
        ConfigError: there is no such run or checkpoint.
        UserError: the checkpoint can't be used, or the model lacks a piece of `Classifier`.
    """

    def __init__(self, run: str | Path, model: type[LightningModule] | None = None) -> None:
        file = Path(expanded(run))
        file = file if file.is_file() else runs.find_run(str(run)) / runs.BEST
        self.model, checkpoint = load_model(file, model or model_of(runs.run_of_checkpoint(file), LitClassifier))
        require(self.model)
        self.class_names: list[str] = list(fact(self.model, "class_names"))
        self.input_shape = tuple(fact(self.model, "input_shape"))
        self.reading = {key: checkpoint[key] for key in READING}

    def __call__(self, path: str | Path) -> dict[str, float]:
        """Class name -> probability for one image file, the likeliest first.

        Raises:
            UserError: the file can't be read; the message says why.
        """
        try:
            image_CHW = read_image(path, self.input_shape, **self.reading)
        except UnreadableImageError as error:
            raise UserError(f"{path}: {error}") from None
        with torch.inference_mode():
            probability_K = self.model(image_CHW[None]).softmax(dim=1)[0]
        order_K = probability_K.argsort(descending=True).tolist()
        return {self.class_names[k]: float(probability_K[k]) for k in order_K}


def predict(args: list[str]) -> None:
    """Classify images, or the test split, and write predictions.csv and predictions.json."""
    cli = start("predict", args)
    given: dict[str, Any] = {}
    bad: dict[str, str] = {}
    if cli.call.images:
        files, bad = find_images(cli.call.images)
        if not files:
            raise ConfigError("--images: " + "; ".join(f"{path}: {reason}" for path, reason in bad.items()))
        predictor = Predictor(str(cli.ckpt_path), cli.model_type)
        model, classes, names = predictor.model, predictor.class_names, [str(path) for path in files]
        samples = Split(ImageFiles(files, predictor.input_shape, **predictor.reading), torch.arange(len(files)))
        batch_size = (cli.config.get("data.init_args") or {}).get("batch_size", 64)
        workers = most_workers() if len(files) > WORTH_WORKERS else 0
        given["dataloaders"] = evaluation_loader(samples, batch_size, cli.trainer, workers)
    else:
        assert cli.checkpoint is not None  # without one the command is refused
        require(cli.model)
        model, classes = cli.model, list(fact(cli.model, "class_names"))
        try:
            model.load_state_dict(cli.checkpoint["state_dict"])
        except RuntimeError as error:
            raise UserError(f"{cli.ckpt_path}: its weights do not fit the network it names: {error}") from None
        data: Any = cli.datamodule
        names = data.sample_names("test") if hasattr(data, "sample_names") else []
        given["datamodule"] = data
    batches = cli.run(cli.trainer.predict, Probabilities(model), **given)
    probability_NK, label_N = gathered(batches or [], len(classes))
    if not cli.trainer.is_global_zero:
        return
    rows: list[dict[str, Any]] = []
    for at, (probability_K, label) in enumerate(zip(probability_NK, label_N.tolist(), strict=True)):
        name = names[at] if names else f"row {at}"
        if label == UNREADABLE:
            bad[name] = why_unreadable(name, predictor.input_shape, **predictor.reading)
            continue
        best = probability_K.topk(min(3, len(classes)))
        top = [
            {"class": classes[int(k)], "probability": round(float(p), 6)} for p, k in zip(best.values, best.indices, strict=True)
        ]
        rows.append({"file": name, **top[0], **({"label": classes[label]} if label >= 0 else {}), "top": top})
    write_predictions(cli.run_dir, rows)
    print_predictions(cli.run_dir, rows)
    if bad:
        listed = shown([f"{path}: {reason}" for path, reason in bad.items()])
        raise UserError(f"{len(rows)} images were predicted, {len(bad)} were not:\n{listed}")


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
