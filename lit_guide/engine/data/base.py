"""The LightningDataModule under every source of images: splits, loaders, and what is done to a batch on the device.

Shapes: B images a batch, C channels, H x W pixels, K classes, N samples.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.data.loaders import Split, TrainBatches, evaluation_loader, loader, seed_step, shuffled_loader
from lit_guide.engine.data.source import IMAGENET, Source, mean_and_std, stratified_split, to_float
from lit_guide.engine.errors import ConfigError, UserError


class ImageDataModule(LightningDataModule, ABC):
    """Splits, loaders and on-device transforms for any `Source`.

    Batches are `(image_BCHW, label_B)`: images stay uint8 until they are on the device, and become float32 from 0 to 1 there.

    Args:
        batch_size: images a step on each device.
        val_fraction: share of the data kept for validation; unused where the data come split.
        test_fraction: share of the data kept for the test.
        split_seed: which split; independent of the training seed, so that seeds can be compared on one test set.
        num_workers: loader processes; auto: none for data in memory, one for each core where files are decoded.
        image_size: resize images to this many pixels square, on the device; null keeps their size.
        augment: whether training images are changed at random.
        mixup: 0, or the alpha of MixUp: training images and labels are blended in pairs (Zhang et al., arXiv:1710.09412).
        cutmix: 0, or the alpha of CutMix: a rectangle comes from another image (Yun et al., arXiv:1905.04899). With both, each
            batch gets one of the two.
        sampler: shuffle: every image once an epoch; balanced: drawn with replacement, every class equally often.
        statistics: compute: mean and standard deviation of the training split; imagenet: those of ImageNet.
    """

    shifted = (0, 0)  # see TrainBatches
    crop: float | None = None  # part of the image's side that evaluation keeps; None: the image is squeezed to the size, not cut

    def __init__(
        self,
        batch_size: PositiveInt = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        num_workers: NonNegativeInt | Literal["auto"] = "auto",
        image_size: PositiveInt | None = None,
        augment: bool = True,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        sampler: Literal["shuffle", "balanced"] = "shuffle",
        statistics: Literal["compute", "imagenet"] = "compute",
    ) -> None:
        super().__init__()
        if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
            raise ConfigError(
                f"data.val_fraction {val_fraction} and data.test_fraction {test_fraction} must be 0 or more "
                "and leave something to train on: make their sum less than 1."
            )
        # As plain numbers: the parser's are of classes of its own, which a checkpoint may not hold.
        self.batch_size, self.image_size = int(batch_size), None if image_size is None else int(image_size)
        self.fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
        self.split_seed, self.num_workers, self.augment = split_seed, num_workers, augment
        self.mixup, self.cutmix, self.sampler, self.statistics = mixup, cutmix, sampler, statistics

    @abstractmethod
    def load(self) -> Source:
        """Find the samples. Called once in each process, on first use."""

    @cached_property
    def source(self) -> Source:
        """The samples, loaded on first use."""
        return self.load()

    @cached_property
    def rows(self) -> Mapping[str, NDArray[np.int64]]:
        """Split name -> indices of its samples in `source.dataset`."""
        if self.source.rows is not None:
            return self.source.rows
        return stratified_split(self.source.labels_N, self.fractions, self.split_seed)

    @property
    def class_names(self) -> list[str]:
        """The K class names; index i of the logits is class_names[i]."""
        return self.source.class_names

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network gets."""
        C, H, W = self.source.dataset[0][0].shape
        return (C, self.image_size or H, self.image_size or W)

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training split, pixels from 0 to 1."""
        return self._statistics[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training split, pixels from 0 to 1."""
        return self._statistics[1]

    def class_counts(self, split: str = "train") -> list[int]:
        """Images of each class in a split."""
        count_K = np.bincount(self.source.labels_N[self.rows[split]], minlength=len(self.class_names))
        return [int(count) for count in count_K]

    def samples(self, training: bool) -> Dataset[tuple[Tensor, Tensor]]:
        """The dataset that the loaders read from: with the transforms of training, or of evaluation."""
        return self.source.dataset

    @property
    def loader_processes(self) -> int:
        """How many processes load the training data."""
        return self.auto_workers() if self.num_workers == "auto" else self.num_workers

    def auto_workers(self) -> int:
        """What `num_workers: auto` means: data in memory are fastest without loader processes."""
        return 0

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        if self.statistics == "compute":
            return mean_and_std(image_BCHW for image_BCHW, _ in self._loader("train"))
        if (C := self.input_shape[0]) != 3:
            raise ConfigError(f"data.statistics imagenet is for 3 channels, the images have {C}: use compute.")
        return IMAGENET

    def sample_names(self, split: str) -> list[str]:
        """A name for each sample of a split, in order: what `predict` prints."""
        return [f"row {row}" for row in self.rows[split]]

    def _loader(self, split: str, training: bool = False) -> DataLoader[Any]:
        rows, trainer = self.rows[split], self.trainer
        world_size = trainer.world_size if trainer is not None else 1
        if len(rows) < world_size:
            found = f"has {len(rows)} images for {world_size} processes: use fewer --devices," if len(rows) else "is empty:"
            mend = "lower data.val_fraction and data.test_fraction, or add data."
            raise UserError(f"The {split} split {found} {'set data.test_fraction above 0.' if split == 'test' else mend}")
        samples = Split(self.samples(training), torch.from_numpy(rows))
        workers = self.loader_processes
        if not training:
            return evaluation_loader(samples, self.batch_size, trainer, workers)
        if trainer is None:
            return shuffled_loader(samples, self.batch_size, self._weights, workers)
        epoch = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batches = self.batches(epoch, 0 if progress.is_last_batch else progress.current.ready)
        return loader(samples, trainer, workers, batch_sampler=batches)

    def batches(self, epoch: int = 0, start: int = 0) -> TrainBatches:
        """This process's training batches from a place in the run on."""
        assert self.trainer is not None
        process = self.trainer.global_rank, self.trainer.world_size
        fixed = bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]  # Lightning sets it
        return TrainBatches(len(self.rows["train"]), self.batch_size, *process, self._weights, epoch, start, fixed, self.shifted)

    @property
    def _weights(self) -> NDArray[np.float64] | None:
        """How likely each training sample is drawn; None for each of them once."""
        if self.sampler == "shuffle":
            return None
        weight_S: NDArray[np.float64] = (1 / np.maximum(self.class_counts(), 1))[self.source.labels_N[self.rows["train"]]]
        return weight_S

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimizer in the whole run, by the trainer's limits."""
        trainer = self.trainer
        assert trainer is not None
        batches, limit = len(self.batches()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = -(-batches // trainer.accumulate_grad_batches) * (trainer.max_epochs or 0)
        limits = [number for number in (steps, trainer.max_steps) if number >= 0]
        if not limits:
            raise ConfigError("This schedule needs an end: give --trainer.max_epochs or --trainer.max_steps.")
        return max(1, min(limits))  # of no steps most schedules can't be made

    def batch_names(self, epoch: int, batch: int) -> list[str]:
        """The names of the samples of this process's training batch `batch` of `epoch`: what to look at when it made trouble."""
        batches, names = self.batches(), self.sample_names("train")
        return [names[place] for place in batches.batch(batches.order(epoch), epoch, batch).places]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches (image_BCHW uint8, label_B int64)."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches in order; no loader where the split is empty."""
        return self._loader("val") if len(self.rows["val"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test split: what `predict` runs on when it is given no images."""
        return self.test_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed what a training step draws, augmentation on the device and dropout, by its place in the run."""
        self.arrived = time.perf_counter()  # where waiting for data ends
        trainer = self.trainer
        if trainer is not None and trainer.training:
            seed_step(trainer.current_epoch, trainer.fit_loop.batch_idx + 1, trainer.global_rank)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """What the model gets of a batch that has arrived on the device; Lightning calls it."""
        if isinstance(batch, Tensor):
            return batch  # the model summary's example input, ready as it is
        image_BCHW, label_B = batch
        return self.to_model(image_BCHW, label_B, self.trainer is not None and self.trainer.training)

    def augment_batch(self, image_BCHW: Tensor) -> Tensor:
        """What training does to a batch as it came, on the device: nothing, unless a source says so."""
        return image_BCHW

    def to_model(self, image_BCHW: Tensor, label_B: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Augment (training only), turn into float32 from 0 to 1, resize.

        Returns:
            (image_BCHW, label_B), or (image_BCHW, label_BK) after MixUp or CutMix.
        """
        augmenting = self.augment and training
        image_BCHW = to_float(self.augment_batch(image_BCHW) if augmenting else image_BCHW)
        if self.image_size and tuple(image_BCHW.shape[2:]) != (self.image_size, self.image_size):
            image_BCHW = TF.resize(image_BCHW, [self.image_size, self.image_size], antialias=True)
        if augmenting and self._mix is not None:
            image_BCHW, label_B = self._mix(image_BCHW, label_B)
        return image_BCHW, label_B

    @cached_property
    def _mix(self) -> v2.Transform | None:
        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        wanted = [kind(alpha=alpha, num_classes=len(self.class_names)) for kind, alpha in kinds if alpha]
        return v2.RandomChoice(wanted) if wanted else None
