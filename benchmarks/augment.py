"""Augmenting whole batches of images in memory against the classic way, image by image in loader processes.

Claim: 32 x 32 RGB training batches, shifted by up to 4 pixels, mirrored, normalised, float32, come out at >= 5 times the
images/s (goal: 8 times); median of the ratios of 7 rounds in alternation (n = 7), each an epoch of 25,600 images in batches
of 128 on each side.

- classic: a Dataset that makes a PIL image of each uint8 array, torchvision's RandomCrop(32, padding=4),
  RandomHorizontalFlip, ToTensor and Normalize, a DataLoader with 2 persistent workers; their start is in the warm-up.
- ours: ArraysData on a `.npz` with (N, H, W, C) uint8 images, its training loader, `on_after_batch_transfer` as a training
  Trainer calls it, and the normalisation that the network does first.

torch's threads are left at their default on both sides.

    python benchmarks/augment.py [--quick]
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from lit_guide.data import ArraysData
from lit_guide.networks import Normalized

IMAGES, BATCH, SIDE, PADDING, WORKERS = 25_600, 128, 32, 4, 2
ROUNDS = 7
LIMIT, GOAL = 5.0, 8.0


class Classic(Dataset[tuple[Tensor, int]]):
    """Images as tutorials read them: one at a time, through PIL."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], mean: list[float], std: list[float]) -> None:
        self.images, self.labels = images, labels
        self.transform = T.Compose(
            [T.RandomCrop(SIDE, padding=PADDING), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def make_arrays(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Smooth random images, brighter at the left, and labels."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    images[:, :, : SIDE // 2] |= 128
    return images, generator.integers(0, 10, count)


def our_batches(data: ArraysData, normalize: nn.Module) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """What a training step of lit-guide gets, up to the first layer of the network's body."""
    loader = data.train_dataloader()

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            image_BCHW, label_B = data.on_after_batch_transfer(batch, 0)
            yield normalize(image_BCHW), label_B

    return epoch


@torch.no_grad()
def images_per_second(epoch: Callable[[], Any]) -> float:
    """Run through an epoch and throw the batches away."""
    count, started = 0, time.perf_counter()
    for image_BCHW, _ in epoch():
        count += len(image_BCHW)
    return count / (time.perf_counter() - started)


@torch.no_grad()
def check_same(sides: dict[str, Callable[[], Any]], count: int) -> None:
    """Warm-up, and proof that both sides give the same kind of batch: shape, type, count, and moments of each column."""
    columns = {}
    for name, epoch in sides.items():
        total_W, square_W, seen = torch.zeros(SIDE), torch.zeros(SIDE), 0
        for image_BCHW, label_B in epoch():
            if image_BCHW.dtype != torch.float32 or image_BCHW.shape != (len(label_B), 3, SIDE, SIDE):
                raise SystemExit(f"{name} gives {image_BCHW.dtype} {tuple(image_BCHW.shape)}")
            total_W += image_BCHW.mean(dim=(1, 2)).sum(dim=0)
            square_W += image_BCHW.square().mean(dim=(1, 2)).sum(dim=0)
            seen += len(image_BCHW)
        if seen != count:
            raise SystemExit(f"{name} gives {seen} images of {count}")
        columns[name] = torch.stack([total_W, square_W]) / seen
    difference = (columns["ours"] - columns["classic"]).abs().max().item()
    print(f"largest difference between the columns' moments: {difference:.4f}")
    if difference > 0.2:  # twice what chance gives; without the flip, or with half the crop, it is 0.4 and more
        raise SystemExit("The two sides do not draw the same augmentation.")


def both(index: int, sides: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """An epoch of each side; every second round starts with the other one."""
    figures: dict[str, Any] = {}
    for side in list(sides) if index % 2 else list(reversed(sides)):
        figures[f"{side}_images_per_s"] = round(images_per_second(sides[side]), 1)
    return figures | {"ratio": round(figures["ours_images_per_s"] / figures["classic_images_per_s"], 3)}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    record.silence_lightning()
    count = IMAGES // 5 if quick else IMAGES
    images, labels = make_arrays(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, images=images, labels=labels)
        shift = PADDING / SIDE
        data = ArraysData(str(path), batch_size=BATCH, val_fraction=0.0, test_fraction=0.0, shift=shift, flip=True)
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        data.trainer.training = True
        classic = Classic(images, labels, data.mean, data.std)
        loader = DataLoader(classic, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
        sides = {"classic": lambda: iter(loader), "ours": our_batches(data, Normalized(nn.Identity(), data.mean, data.std))}
        check_same(sides, count)
        rounds = record.repeat(2 if quick else ROUNDS, lambda index: both(index, sides), None if quick else given.wait)
    middle = record.medians(rounds)
    print(f"medians: {middle}; goal {GOAL:g} {'reached' if middle['ratio'] >= GOAL else 'not reached'}")
    text = "images/s of augmented training batches over those of a per-image DataLoader with 2 workers"
    settings = {"images": count, "batch_size": BATCH, "side": SIDE, "goal": GOAL, "torch_threads": torch.get_num_threads()}
    claims = [record.claim(text, middle["ratio"], LIMIT, len(record.undisturbed(rounds)), at_most=False)]
    return record.finish("augment", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
