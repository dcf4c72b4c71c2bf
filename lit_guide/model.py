"""LitClassifier: a network, its loss, its optimizer and its metrics: what you change first.

Everything under it (figures of an epoch, going on in mid-epoch, layouts, schedules) is `engine/train/module.py`.
Shapes: B images a batch, C channels, H x W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from lit_guide.engine import tables
from lit_guide.engine.errors import ConfigError, warn
from lit_guide.engine.run.checkpoint import load_model
from lit_guide.engine.train.losses import LossFactory, build_loss, describe_loss
from lit_guide.engine.train.module import Batch, ClassifierModule
from lit_guide.engine.train.optim import (
    ADAM,
    OptimizerFactory,
    SchedulerFactory,
    describe_optimizer,
    describe_scheduler,
    from_plain,
)
from lit_guide.engine.zoo import Normalized
from lit_guide.networks import build_network

FINETUNE = {"start_from": "weights:start_from", "tuning": "tuning:Tuning"}  # what is there with the part `finetune`
UNTUNED = {"freeze": "none", "freeze_epochs": None, "backbone_lr": 1.0, "layer_decay": 1.0, "decay_norms": True}


def of_part(name: str) -> Any:
    """What a setting for fine-tuning needs; a ConfigError where the project does not have the part."""
    table = {name: f"{__package__}.parts.finetune.{FINETUNE[name]}"}
    if tables.gone(table):
        raise ConfigError(f"model.weights FILE, {', '.join(UNTUNED)} need the part finetune, which this project does not have.")
    return tables.load(table)[name]


class LitClassifier(ClassifierModule):
    """An image classifier: images (B, C, H, W) float32 from 0 to 1 in, logits (B, K) out.

    The first four arguments come from the data (`DataModule` has them as properties); a command line never types them.
    All arguments are kept in checkpoints as plain values, so `load_classifier("best.ckpt")` needs nothing else.

    Args:
        class_names: the K names, in the order of the logits.
        input_shape: (C, H, W) of the images.
        mean: mean of each channel, pixels from 0 to 1.
        std: standard deviation of each channel.
        network: cnn, any classification network of torchvision, such as resnet18, or a class of yours: my_project.mlp.MLP.
        network_args: further arguments of the network, such as {widths: [16, 32]} for cnn.
        weights: a .ckpt or .safetensors to start from, whose head is taken too where the classes are the same; or torchvision's
            weights, such as DEFAULT, downloaded on first use.
        freeze: backbone: only the last layer learns, and BatchNorm's statistics stay as they are.
        freeze_epochs: for how many epochs; null: for the whole run.
        backbone_lr: share of the learning rate that all layers before the last one get.
        layer_decay: further share for each step from the last layer towards the pixels (Clark et al., arXiv:2003.10555).
        decay_norms: whether the optimizer's weight decay is for biases and norms too.
        optimizer: any class of torch.optim.
        scheduler: any class of torch.optim.lr_scheduler, or WarmupCosine. One that takes `total_steps` and is given none gets
            the run's and steps every batch; the others step every epoch.
        loss: a class of torch.nn, or of yours, that maps logits (B, K) and labels (B,) to a mean; null: cross-entropy.
        label_smoothing: share of the target that is spread over all classes, 0 to 1 (Szegedy et al., arXiv:1512.00567).
        class_weights: weight of each class in the training loss; auto: in inverse proportion to its training images.
        scale_lr: multiply the learning rate by the number of batches that make one optimizer step: processes times
            `accumulate_grad_batches` (the linear scaling rule: Goyal et al., arXiv:1706.02677); anew where a run goes on. Rates
            that a scheduler brings with it, such as OneCycleLR's max_lr, stay as they are.
        channels_last: keep images and filters with their channels side by side, faster on GPUs and most CPUs. The results stay
            the same, so that this and `compile` are not kept in checkpoints.
        compile: train with torch.compile, which needs a compiler for C++ and a minute at first. Evaluations run as without.

    Raises:
        ConfigError: an argument that does not fit the others; the message names it.
    """

    tuning: Any = None  # in training, what the part `finetune` made of the arguments in UNTUNED

    def __init__(
        self,
        class_names: Sequence[str],
        input_shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        network: str = "cnn",
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        freeze: Literal["none", "backbone"] = "none",
        freeze_epochs: PositiveInt | None = None,
        backbone_lr: NonNegativeFloat = 1.0,
        layer_decay: ClosedUnitInterval = 1.0,
        decay_norms: bool = True,
        optimizer: OptimizerFactory = ADAM,
        scheduler: SchedulerFactory | None = None,
        loss: LossFactory | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["auto"] | None = None,
        scale_lr: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        # Plain values under the same names: save_hyperparameters compares all arguments of this frame.
        class_names, input_shape = [str(name) for name in class_names], [int(side) for side in input_shape]
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if class_weights is not None and not isinstance(class_weights, str):
            class_weights = [float(weight) for weight in class_weights]
        K, (C, H, W) = len(class_names), input_shape
        super().__init__(K, channels_last, compile)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing is {label_smoothing}; it must be from 0 to less than 1.")
        if isinstance(class_weights, str) and class_weights != "auto":
            raise ConfigError(f"model.class_weights is {class_weights!r}; it must be auto, a list of {K} numbers, or null.")
        if isinstance(class_weights, list) and len(class_weights) != K:
            raise ConfigError(f"model.class_weights has {len(class_weights)} values for {K} classes: {', '.join(class_names)}.")
        # Plain values from a checkpoint stay as they are until training needs them: a model to look at or export does not.
        self.optimizer, self.scheduler = optimizer, scheduler
        described = describe_loss(loss)
        tuned: dict[str, Any] = {"freeze": freeze, "freeze_epochs": None if freeze_epochs is None else int(freeze_epochs)}
        tuned |= {"backbone_lr": float(backbone_lr), "layer_decay": float(layer_decay), "decay_norms": decay_norms}
        self.save_hyperparameters(
            {
                "class_names": class_names,
                "input_shape": input_shape,
                "mean": mean,
                "std": std,
                "network": network,
                "network_args": network_args or {},
                "optimizer": describe_optimizer(optimizer),
                "scheduler": describe_scheduler(scheduler, optimizer),
                "loss": described,
                "label_smoothing": label_smoothing,
                "class_weights": class_weights,
                "scale_lr": scale_lr,
                **tuned,
            }
        )
        self.starts_from, file = weights, weights if weights and not weights.isidentifier() else None  # torchvision's are names
        body = build_network(network, C, K, (H, W), None if file else weights, network_args)
        self.network = Normalized(body, mean, std).to(memory_format=self.memory_format)
        if file:
            self.hparams.update(of_part("start_from")(self.network, file, self.hparams))  # mean and std
        self.criterion = build_loss(described, K, label_smoothing, class_weights)
        # Evaluations leave out smoothing and weights, so that runs with others can be compared; what the loss learnt stays.
        self.plain_criterion = self.criterion if [*self.criterion.parameters()] else build_loss(described, K, reduction="none")
        self.val_metrics = classification_metrics(K, "val/")
        self.test_metrics = classification_metrics(K, "test/")
        # Lightning's summary counts the operations of a forward pass over this.
        self.example_input_array = torch.zeros(1, C, H, W)

    def configure_callbacks(self) -> list[Callback]:
        """What freezes layers, and trains some more slowly, where that is asked for."""
        asked = {key: self.hparams.get(key, usual) for key, usual in UNTUNED.items()}
        if self.trainer.state.fn != "fit" or asked == UNTUNED:
            return []
        self.tuning = of_part("tuning")(**asked)
        return [self.tuning]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) floating point from 0 to 1 -> logits (B, K)."""
        return self.run_network(image_BCHW)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        image_BCHW, label_B = batch
        logits_BK = self(image_BCHW)
        loss: Tensor = self.criterion(logits_BK, label_B)
        self.count(loss, logits_BK, label_B)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `val/*`."""
        self.evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log `val/*`."""
        self.log_evaluation("val/loss", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `test/*`."""
        self.evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log `test/*`."""
        self.log_evaluation("test/loss", self.test_metrics)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule if there is one."""
        build = from_plain(self.optimizer, Optimizer)
        optimizer = build(self.parameters()) if self.tuning is None else self.tuning.optimizer(build, self)
        return self.with_schedule(optimizer, from_plain(self.scheduler, LRScheduler))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with other groups of parameters, where they are asked for, by an optimizer that begins anew."""
        super().on_load_checkpoint(checkpoint)
        saved, now = (
            {key: one.get(key, UNTUNED[key]) for key in UNTUNED} for one in (checkpoint["hyper_parameters"], self.hparams)
        )
        if saved != now and self.trainer.state.fn == "fit":
            checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
            warn("other layers learn, or at other rates, than before: the optimizer, and its schedule, begin anew.")


def load_classifier(path: str | Path) -> LitClassifier:
    """The trained model of a checkpoint or .safetensors, on the CPU, in float32 and evaluation mode; the data are not needed.

    Raises:
        ConfigError: the path is a URL or is not there.
        UserError: the file is broken, names code to import, or is of another class.
    """
    return load_model(path, LitClassifier)[0]


def classification_metrics(classes: int, prefix: str) -> MetricCollection:
    """Accuracy, macro F1, expected calibration error (15 bins; Guo et al., arXiv:1706.04599) and, for K > 5, top-5 accuracy.

    They take probabilities (B, K) and labels (B,), accumulate on the device and are summed over processes.
    """
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
        "ece": MulticlassCalibrationError(classes, n_bins=15, validate_args=False),
    }
    if classes > 5:
        metrics["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
    # compute_groups would take metrics that agree on the first batch for one: top-1 and top-5 where all of its images are right.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
