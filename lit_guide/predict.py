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
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, distributed
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.classifier import fact, require
from lit_guide.engine.data.augment import to_float
from lit_guide.engine.data.loaders import Split, evaluation_loader
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import usable_cores
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.decode import UnreadableImageError, decode, find_images
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_model
from lit_guide.fit import run_trainer, start
from lit_guide.model import model_of

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of the model -> Pillow's name of the mode
WORTH_WORKERS = 500  # files from which on loader processes pay
UNKNOWN, UNREADABLE = -1, -2  # labels of a file to predict, and of one that could not be decoded


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files as a model takes them: (image_CHW float32 from 0 to 1, UNKNOWN); (zeros, UNREADABLE) for what is no image.

    Args:
        paths: the N files.
        shape: (C, H, W) of the model.
        crop: the share of the shorter side that is kept, as the model's data were cut; None: images are squeezed.

    Raises:
        ConfigError: the model has a number of channels that no image file has.
    """

    def __init__(self, paths: Sequence[Path], shape: Sequence[int], crop: float | None = None) -> None:
        if shape[0] not in MODES:
            raise ConfigError(f"The model takes {shape[0]} channels; image files can give 1, 3 or 4.")
        self.paths, self.shape, self.crop = paths, tuple(shape), crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index`."""
        try:
            return self.read(index), torch.tensor(UNKNOWN)
        except UnreadableImageError:
            return torch.zeros(self.shape), torch.tensor(UNREADABLE)

    def read(self, index: int) -> Tensor:
        """Image `index`, (C, H, W) float32 from 0 to 1.

        Raises:
            UnreadableImageError: it can't be decoded; the message is the reason.
        """
        C, H, W = self.shape
        image_CHW = decode(self.paths[index], MODES[C])
        if self.crop is not None:
            return to_float(EvalTransform(H, self.crop)(image_CHW))
        return to_float(TF.resize(image_CHW, [H, W], antialias=True))


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
        file = Path(run) if Path(run).is_file() else runs.find_run(str(run)) / runs.BEST
        self.model, checkpoint = load_model(file, model or model_of(runs.run_of_checkpoint(file)))
        require(self.model)
        self.class_names: list[str] = list(fact(self.model, "class_names"))
        self.input_shape, self.crop = tuple(fact(self.model, "input_shape")), checkpoint["crop"]

    def __call__(self, path: str | Path) -> dict[str, float]:
        """Class name -> probability for one image file, the likeliest first.

        Raises:
            UserError: the file can't be read; the message says why.
        """
        try:
            image_CHW = ImageFiles([Path(path)], self.input_shape, self.crop).read(0)
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
        samples = Split(ImageFiles(files, predictor.input_shape, predictor.crop), torch.arange(len(files)))
        batch_size = (cli.config.get("data.init_args") or {}).get("batch_size", 64)
        workers = min(16, usable_cores()) if len(files) > WORTH_WORKERS else 0
        given["dataloaders"] = evaluation_loader(samples, batch_size, cli.trainer, workers)
    else:
        assert cli.checkpoint is not None  # without one the command is refused
        require(cli.model)
        model, classes = cli.model, list(fact(cli.model, "class_names"))
        model.load_state_dict(cli.checkpoint["state_dict"])
        data: Any = cli.datamodule
        names = data.sample_names("test") if hasattr(data, "sample_names") else []
        given["datamodule"] = data
    batches = run_trainer(cli, cli.trainer.predict, Probabilities(model), **given)
    probability_NK, label_N = gathered(batches or [], len(classes))
    if not cli.trainer.is_global_zero:
        return
    rows: list[dict[str, Any]] = []
    for at, (probability_K, label) in enumerate(zip(probability_NK, label_N.tolist(), strict=True)):
        name = names[at] if names else f"row {at}"
        if label == UNREADABLE:
            bad[name] = "not a readable image"
            continue
        top = probability_K.topk(min(3, len(classes)))
        ranked = [(classes[int(k)], round(float(p), 6)) for p, k in zip(top.values, top.indices, strict=True)]
        truth = {"label": classes[label]} if label >= 0 else {}
        rows.append({"file": name, "class": ranked[0][0], "probability": ranked[0][1], **truth, "top": ranked})
    write_predictions(cli.run_dir, rows)
    print_predictions(cli.run_dir, rows)
    if bad:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in bad.items())
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
