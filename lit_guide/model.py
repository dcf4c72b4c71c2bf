"""LitClassifier: a network, its loss, its optimizer and its metrics.

Shapes: B images a batch, C channels, H x W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lit_guide.engine.config.devices import compile_in_place
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.train.optim import (
    ADAM,
    OptimizerFactory,
    SchedulerFactory,
    carry_over,
    describe_optimizer,
    describe_scheduler,
    from_plain,
    lay_out,
    scale_lr,
    wants_total_steps,
)
from lit_guide.networks import Normalized, build_network

Batch = tuple[Tensor, Tensor]


class LitClassifier(LightningModule):
    """An image classifier: images (B, C, H, W) float32 from 0 to 1 in, logits (B, K) out.

    The first four arguments come from the data (`DataModule` has them as properties); a command line never types them.
    All arguments are kept in checkpoints as plain values, so `load_classifier("best.ckpt")` needs nothing else.

    Args:
        class_names: the K names, in the order of the logits.
        input_shape: (C, H, W) of the images.
        mean: mean of each channel, pixels from 0 to 1.
        std: standard deviation of each channel.
        network: cnn, or any classification network of torchvision, such as resnet18.
        network_args: further arguments of the network, such as {widths: [16, 32]} for cnn.
        weights: torchvision weights to start from, such as DEFAULT; downloaded on first use.
        optimizer: any class of torch.optim.
        scheduler: any class of torch.optim.lr_scheduler, or WarmupCosine. One that takes `total_steps` and is given none gets
            the run's and steps every batch; the others step every epoch.
        label_smoothing: share of the target that is spread over all classes, 0 to 1 (Szegedy et al., arXiv:1512.00567).
        class_weights: weight of each class in the training loss; auto: in inverse proportion to its training images.
        scale_lr: multiply the learning rate by the number of batches that make one optimizer step: processes times
            `accumulate_grad_batches` (the linear scaling rule: Goyal et al., arXiv:1706.02677); anew where a run goes on. Rates
            that a scheduler brings with it, such as OneCycleLR's max_lr, stay as they are.
        channels_last: keep images and filters with their channels side by side, faster on GPUs and most CPUs. The results stay
            the same, so that this and `compile` are not kept in checkpoints.
        compile: train with torch.compile, which needs a compiler for C++ and a minute at first. Evaluations run as without.
        crop: how photos are brought to `input_shape`: the centre, `crop` of the shorter side; None: they are squeezed. Comes from
            the data too.

    Raises:
        ConfigError: an argument that does not fit the others; the message names it.
    """

    class_weights_K: Tensor | None

    def __init__(
        self,
        class_names: Sequence[str],
        input_shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        network: str = "cnn",
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        optimizer: OptimizerFactory = ADAM,
        scheduler: SchedulerFactory | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["auto"] | None = None,
        scale_lr: bool = False,
        channels_last: bool = False,
        compile: bool = False,
        crop: float | None = None,
    ) -> None:
        super().__init__()
        # Plain values under the same names: save_hyperparameters compares all arguments of this frame.
        class_names, input_shape = [str(name) for name in class_names], [int(side) for side in input_shape]
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if isinstance(class_weights, str) and class_weights != "auto":
            raise ConfigError(
                f"model.class_weights is {class_weights!r}; it must be auto, a list of {len(class_names)} numbers, or null."
            )
        if class_weights is not None and not isinstance(class_weights, str):
            class_weights = [float(weight) for weight in class_weights]
        K, (C, H, W) = len(class_names), input_shape
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing is {label_smoothing}; it must be from 0 to less than 1.")
        if isinstance(class_weights, list) and len(class_weights) != K:
            raise ConfigError(f"model.class_weights has {len(class_weights)} values for {K} classes: {', '.join(class_names)}.")
        # Plain values from a checkpoint stay as they are until training needs them: a model to look at or export does not.
        self.optimizer, self.scheduler = optimizer, scheduler
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
                "label_smoothing": label_smoothing,
                "class_weights": class_weights,
                "scale_lr": scale_lr,
                "crop": crop,
            }
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to_compile = compile  # not self.compile, which is a method of every module
        self.lr_factor = 1
        self.network = Normalized(build_network(network, C, K, (H, W), weights, network_args), mean, std)
        weights_K = torch.tensor(class_weights) if isinstance(class_weights, list) else None  # auto: in setup
        self.register_buffer("class_weights_K", weights_K, persistent=False)
        # Sums over the epoch of loss and correct images: they cost less a step than metric objects.
        # No buffer: DDP would overwrite the other ranks' sums with rank 0's before every step.
        self.train_sums_2, self.train_count = torch.zeros(2), 0
        self.saved_sums_W3: Tensor | None = None  # those of a checkpoint, of each of its W processes, until training goes on
        self.val_metrics = classification_metrics(K, "val/")
        self.test_metrics = classification_metrics(K, "test/")
        self.confusion_matrix_KK: Tensor | None = None  # of the last evaluation; rows: true class, columns: predicted
        self.loss = MeanMetric(nan_strategy="disable")  # nan stays nan, and is not searched for, which would stop the device
        self.confusion_KK = MulticlassConfusionMatrix(K, validate_args=False)
        # Lightning's summary counts the operations of a forward pass over this.
        self.example_input_array = torch.zeros(1, C, H, W)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) floating point from 0 to 1 -> logits (B, K)."""
        if self.memory_format == torch.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        # Compiled for training only: an evaluation would have it compiled again, for another mode and for each odd last batch.
        eager = self.to_compile and not self.training
        network = self.network.forward if eager else self.network
        logits_BK: Tensor = network(image_BCHW)
        return logits_BK

    def setup(self, stage: str) -> None:
        """Lay the weights out; fill in `class_weights: auto`: N images / (K classes x images of the class).

        That is what scikit-learn's "balanced" does.
        """
        self.network.to(memory_format=self.memory_format)
        if self.hparams["scale_lr"]:
            self.lr_factor = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if stage == "fit" and self.hparams["class_weights"] == "auto":
            data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
            if not hasattr(data, "class_counts"):
                raise ConfigError(
                    "model.class_weights auto counts the images of a DataModule: give trainer.fit one, or give the weights."
                )
            count_K = torch.tensor(data.class_counts())
            # A class without images has no loss to weigh.
            self.class_weights_K = torch.where(count_K > 0, count_K.sum() / (len(count_K) * count_K.clamp(min=1)), 0.0)

    def on_fit_start(self) -> None:
        """Compile the network: here, where the model summary has passed one image through it."""
        if self.to_compile:
            compile_in_place(self.network, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch; logged every `log_every_n_steps`, since reading it stops the device."""
        image_BCHW, label_B = batch
        logits_BK = self(image_BCHW)
        loss = F.cross_entropy(logits_BK, label_B, self.class_weights_K, label_smoothing=self.hparams["label_smoothing"])
        with torch.no_grad():
            self.train_sums_2[0].add_(loss, alpha=len(label_B))
            likeliest_B = label_B.argmax(dim=1) if label_B.ndim == 2 else label_B  # MixUp and CutMix give (B, K)
            self.train_sums_2[1].add_((logits_BK.argmax(dim=1) == likeliest_B).sum())
            self.train_count += len(label_B)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        if every and (self.global_step + 1) % every == 0:
            shown = loss.detach().cpu()  # once: Lightning reads what the progress bar shows after every step
            self.log("train/loss_step", shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)
            self._log_row({"train/loss_step": shown}, self.global_step)
        return loss

    def on_train_start(self) -> None:
        """Go on with the sums of an epoch that a checkpoint lies in the middle of."""
        saved_W3, self.saved_sums_W3 = self.saved_sums_W3, None
        if saved_W3 is not None:
            # Among another number of processes than before any division does: their total is what counts.
            same = len(saved_W3) == self.trainer.world_size
            sums_3 = saved_W3[self.global_rank] if same else saved_W3.sum(dim=0) / self.trainer.world_size
            self.train_sums_2, self.train_count = sums_3[:2].to(self.device, copy=True), round(float(sums_3[2]))

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's sums."""
        # float32 in a bf16-true run too: bf16 can't count past 256.
        self.train_sums_2, self.train_count = torch.zeros(2, device=self.device), 0

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and accuracy over the augmented training images of all processes."""
        loss, correct, count = self.trainer.strategy.reduce(self._train_sums(), reduce_op="sum").tolist()
        figures = {"train/loss": loss / max(count, 1), "train/accuracy": correct / max(count, 1)}
        self.log_dict(figures, logger=False)
        self._log_row(figures, self.global_step - 1)

    def _train_sums(self) -> Tensor:
        """Loss, correct images and images of the epoch so far, in this process: (3,) float32."""
        return torch.cat([self.train_sums_2, self.train_sums_2.new_tensor([self.train_count])])

    def _log_row(self, figures: dict[str, Any], step: int) -> None:
        """Log at once: Lightning does it after the callbacks, and a checkpoint would not have seen the row."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **figures}, step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `val/*`."""
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log `val/*`."""
        self._log_metrics("val/loss", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `test/*`."""
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log `test/*`."""
        self._log_metrics("test/loss", self.test_metrics)

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

    def _evaluate(self, batch: Batch, metrics: MetricCollection) -> None:
        image_BCHW, label_B = batch
        logits_BK = self(image_BCHW).float()
        # Plain cross-entropy, whatever training uses: runs with other smoothing or class weights can be compared.
        self.loss.update(F.cross_entropy(logits_BK, label_B, reduction="none"))
        # As probabilities: torchmetrics would take logits that all lie between 0 and 1 for probabilities.
        metrics.update(logits_BK.softmax(dim=1), label_B)
        self.confusion_KK.update(logits_BK, label_B)

    def _log_metrics(self, loss_name: str, metrics: MetricCollection) -> None:
        # The metrics count the images of all processes. Lightning's own mean of a logged loss would round their number.
        self.log(loss_name, self.loss.compute(), prog_bar=True)
        self.log_dict(metrics.compute())
        metrics.reset()
        self.confusion_matrix_KK = self.confusion_KK.compute()  # here: in a DDP run all processes must take part

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one."""
        optimizer = from_plain(self.optimizer, Optimizer)(self.parameters())
        if self.hparams["scale_lr"]:
            before = optimizer.param_groups[0]["lr"]
            scale_lr(optimizer, self.lr_factor)
            if self.trainer.is_global_zero:
                print(f"Learning rate: {before:g} x {self.lr_factor} batches a step = {before * self.lr_factor:g}")
        if self.scheduler is None:
            return optimizer
        factory = from_plain(self.scheduler, LRScheduler)
        wants_steps = wants_total_steps(factory)
        # Asked for its own estimate, Lightning would start the loaders, before a checkpoint says where the run goes on.
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        count = data.optimizer_steps if hasattr(data, "optimizer_steps") else self.trainer.estimated_stepping_batches
        steps = {"total_steps": int(count)} if wants_steps else {}
        scheduler = factory(optimizer, **steps)
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
        sums_3 = self._train_sums()
        rows = [sums_3]
        if self.trainer.world_size > 1:
            rows = [torch.empty_like(sums_3) for _ in range(self.trainer.world_size)]
            distributed.all_gather(rows, sums_3)
        checkpoint["train_sums_W3"] = torch.stack(rows).cpu()
        checkpoint["lr_factor"] = self.lr_factor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let optimizer settings given now win over the ones in the checkpoint's optimizer state."""
        saved = checkpoint["hyper_parameters"]
        self.hparams.update({key: saved[key] for key in ("mean", "std")})  # restored with the weights
        carry_over(checkpoint, self.hparams, self.lr_factor)
        lay_out(checkpoint, self.memory_format)
        self.saved_sums_W3 = checkpoint.get("train_sums_W3")


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
