"""The LightningModule under the model: figures of an epoch, evaluation, layouts, schedules, and going on in mid-epoch.

Shapes: B images a batch, K classes, W processes.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.train.compiling import compile_in_place
from lit_guide.engine.train.losses import try_loss
from lit_guide.engine.train.optim import SchedulerFactory, carry_over, lay_out, wants_total_steps

Batch = tuple[Tensor, Tensor]


class Sums:
    """Those of an epoch so far, in this process: loss, correct images and images. They cost less a step than metric objects.

    No buffers: DDP would overwrite the other ranks' sums with rank 0's before every step. Float32 in a bf16-true run too: bf16
    can't count past 256.
    """

    def __init__(self, device: torch.device, loss: float = 0.0, correct: float = 0.0, images: float = 0.0) -> None:
        self.loss, self.correct = (torch.tensor(value, dtype=torch.float32, device=device) for value in (loss, correct))
        self.images = round(images)

    def tensor(self) -> Tensor:
        """The three: (3,) float32."""
        return torch.stack([self.loss, self.correct, self.loss.new_tensor(self.images)])


class ClassifierModule(LightningModule):
    """What an image classifier needs beside its network, loss, optimizer and metrics.

    A subclass has `network`, (B, C, H, W) -> (B, K), `criterion`, its training loss, and `plain_criterion`, that of
    evaluations; `scale_lr` and `class_weights` count where they are hyperparameters. It calls `count` for each training batch
    and `evaluate` for each batch of an evaluation. `channels_last` and `compile` are those of `LitClassifier`.
    """

    network: nn.Module
    criterion: nn.Module
    plain_criterion: nn.Module

    def __init__(self, classes: int, channels_last: bool = False, compile: bool = False) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to_compile = compile  # not self.compile, which is a method of every module
        self.lr_factor = 1
        self.sums = Sums(self.device)
        self.saved_sums_W3: Tensor | None = None  # those of a checkpoint, of each of its W processes, until training goes on
        self.confusion_matrix_KK: Tensor | None = None  # of the last evaluation; rows: true class, columns: predicted
        self.loss = MeanMetric(nan_strategy="disable")  # nan stays nan, and is not searched for, which would stop the device
        self.confusion_KK = MulticlassConfusionMatrix(classes, validate_args=False)

    def run_network(self, image_BCHW: Tensor) -> Tensor:
        """Logits (B, K), by the layout and the compiler that were asked for."""
        if self.memory_format == torch.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        # Compiled for training only: an evaluation would have it compiled again, for another mode and for each odd last batch.
        network = self.network.forward if self.to_compile and not self.training else self.network
        logits_BK: Tensor = network(image_BCHW)
        return logits_BK

    def setup(self, stage: str) -> None:
        """Fill in what depends on the run: `scale_lr`, and `class_weights: auto`."""
        if self.hparams.get("scale_lr"):
            self.lr_factor = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if stage == "fit":
            self.weigh(self.trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it
        if stage == "fit" and any(getattr(self.trainer.datamodule, name, 0) for name in ("mixup", "cutmix")):  # type: ignore[attr-defined]
            try_loss(self.criterion, len(self.hparams["class_names"]), shares=True)

    def weigh(self, data: Any) -> None:
        """Fill in `class_weights: auto`; also called before `setup`, in whose place callbacks copy the module first."""
        if self.hparams.get("class_weights") == "auto":
            if not hasattr(data, "class_counts"):
                raise ConfigError(
                    "model.class_weights auto counts images by data.class_counts(), which these data lack: give the weights."
                )
            weight_K = self.criterion.weight
            assert isinstance(weight_K, Tensor)
            # N images / (K classes x images of the class), as scikit-learn's "balanced"; 0 for a class without images.
            count_K = torch.tensor(data.class_counts())
            weight_K.copy_(torch.where(count_K > 0, count_K.sum() / (len(count_K) * count_K.clamp(min=1)), 0.0))

    def on_fit_start(self) -> None:
        """Compile the network: here, where the model summary has passed one image through it."""
        if self.to_compile:
            compile_in_place(self.network, self.device)

    def count(self, loss: Tensor, logits_BK: Tensor, label_B: Tensor) -> None:
        """Add a training batch to the epoch's figures; the loss is logged every `log_every_n_steps`: reading it stops the device.

        The loss, (), is the mean of the batch; labels are class indices, or shares (B, K), as MixUp and CutMix give them.
        """
        sums, images = self.sums, len(label_B)
        sums.loss.add_(loss.detach(), alpha=images)
        likeliest_B = label_B.argmax(dim=1) if label_B.ndim == 2 else label_B
        sums.correct.add_((logits_BK.argmax(dim=1) == likeliest_B).sum())
        sums.images += images
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        if every and (self.global_step + 1) % every == 0:
            shown = loss.detach().cpu()  # once: Lightning reads what the progress bar shows after every step
            self.log("train/loss_step", shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)
            self._log_row({"train/loss_step": shown}, self.global_step)

    def on_train_start(self) -> None:
        """Go on with the sums of an epoch that a checkpoint lies in the middle of."""
        saved_W3, self.saved_sums_W3 = self.saved_sums_W3, None
        if saved_W3 is not None:
            # Among another number of processes than before any division does: their total is what counts.
            same = len(saved_W3) == self.trainer.world_size
            sums_3 = saved_W3[self.global_rank] if same else saved_W3.sum(dim=0) / self.trainer.world_size
            self.sums = Sums(self.device, *sums_3.tolist())

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's sums."""
        self.sums = Sums(self.device)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and accuracy over the augmented training images of all processes."""
        loss, correct, count = self.trainer.strategy.reduce(self.sums.tensor(), reduce_op="sum").tolist()
        figures = {"train/loss": loss / max(count, 1), "train/accuracy": correct / max(count, 1)}
        self.log_dict(figures, logger=False)
        self._log_row(figures, self.global_step - 1)

    def _log_row(self, figures: dict[str, Any], step: int) -> None:
        """Log at once: Lightning does it after the callbacks, and a checkpoint would not have seen the row."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **figures}, step)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Probabilities (B, K), float32, and the labels (B,) as they came."""
        image_BCHW, label_B = batch
        return self(image_BCHW).float().softmax(dim=1), label_B

    def on_validation_epoch_start(self) -> None:
        """Begin the loss and the confusion matrix anew; validation and test share them."""
        if self.device.type != "mps":  # which has no float64: with it, the sum is the same however the images are divided
            self.loss.set_dtype(torch.float64)
        self.loss.reset()
        self.confusion_KK.reset()

    on_test_epoch_start = on_validation_epoch_start

    def evaluate(self, batch: Batch, metrics: MetricCollection) -> None:
        """Add a batch (image_BCHW, label_B) to the loss, the metrics and the confusion matrix."""
        image_BCHW, label_B = batch
        logits_BK = self(image_BCHW).float()
        loss = self.plain_criterion(logits_BK, label_B)  # of each image, or their mean where the loss gives no other
        self.loss.update(loss, 1.0 if loss.ndim else len(label_B))
        # As probabilities: torchmetrics would take logits that all lie between 0 and 1 for probabilities.
        metrics.update(logits_BK.softmax(dim=1), label_B)
        self.confusion_KK.update(logits_BK, label_B)

    def log_evaluation(self, loss_name: str, metrics: MetricCollection) -> None:
        """Log the loss and the metrics at an evaluation's end, over the images of all processes."""
        # Lightning's own mean of a logged loss would round the number of images.
        self.log(loss_name, self.loss.compute(), prog_bar=True)
        self.log_dict(metrics.compute())
        metrics.reset()
        self.confusion_matrix_KK = self.confusion_KK.compute()  # here: in a DDP run all processes must take part

    def with_schedule(self, optimizer: Optimizer, schedule: SchedulerFactory | None) -> Any:
        """What `configure_optimizers` returns: rates scaled to the global batch if that was asked for, and the schedule."""
        if self.hparams.get("scale_lr"):
            before = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                group["lr"] *= self.lr_factor
            if self.trainer.is_global_zero:
                print(f"Learning rate: {before:g} x {self.lr_factor} batches a step = {before * self.lr_factor:g}")
        if schedule is None:
            return optimizer
        wants_steps = wants_total_steps(schedule)
        # Asked for its own estimate, Lightning would start the loaders, before a checkpoint says where the run goes on.
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        count = data.optimizer_steps if hasattr(data, "optimizer_steps") else self.trainer.estimated_stepping_batches
        scheduler = schedule(optimizer, **({"total_steps": int(count)} if wants_steps else {}))
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step" if wants_steps else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config |= {"monitor": "val/loss", "strict": False}  # not strict: there may be no validation split
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip. Lightning refuses fused optimizers in mixed precision; without a scaler, in bf16, nothing speaks against them."""
        plugin, algorithm = self.trainer.precision_plugin, GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of the epoch so far, of each of the W processes."""
        sums_3 = self.sums.tensor()
        rows = [sums_3]
        if self.trainer.world_size > 1:
            rows = [torch.empty_like(sums_3) for _ in range(self.trainer.world_size)]
            distributed.all_gather(rows, sums_3)
        checkpoint["train_sums_W3"] = torch.stack(rows).cpu()
        checkpoint["lr_factor"] = self.lr_factor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let optimizer settings given now win over the ones in the checkpoint's optimizer state."""
        saved = checkpoint["hyper_parameters"]
        if lost := [key for key in ("optimizer", "scheduler") if key not in saved]:
            raise UserError(f"{self.trainer.ckpt_path} can't be gone on with: its hyperparameters lack {', '.join(lost)}.")
        self.hparams.update({key: saved[key] for key in ("mean", "std")})  # restored with the weights
        carry_over(checkpoint, self.hparams, self.lr_factor)
        lay_out(checkpoint, self.memory_format)
        self.saved_sums_W3 = checkpoint.get("train_sums_W3")
