"""Classify image files, or the test split: the command `predict`, and `Predictor` for Python.

Shapes: B images a batch, C channels, H x W pixels, K classes, N files.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_guide.engine.data.loaders import Split, evaluation_loader
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import expanded, most_workers
from lit_guide.engine.photos.dataset import shown
from lit_guide.engine.photos.decode import UnreadableImageError
from lit_guide.engine.photos.listing import find_images
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import READING, load_model, model_of
from lit_guide.export.classifier import fact, require
from lit_guide.export.images import UNREADABLE, ImageFiles, read_image, why_unreadable
from lit_guide.export.predictions import gathered, print_predictions, write_predictions
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
