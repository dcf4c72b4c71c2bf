"""Training batches from a folder of JPEGs: lit-guide against torchvision's classic ImageFolder, and against NVIDIA DALI.

Claims, medians of the ratios of 7 rounds in alternation (n = 7), each an epoch of 4,000 JPEGs of 500 x 375 pixels in batches of
32 random crops of 224 pixels, mirrored by chance, as the loader hands them to the training step:

- images/s >= 2.0 times the classic pipeline's with the same 2 workers (goal 2.5 times). Ours are uint8, which the training step
  turns into normalised float32 on the device; the others' are normalised float32 already;
- with that work of the step included, done on the same two cores: >= 1.3 times the classic pipeline's;
- images/s >= 1.2 times DALI's on the CPU with 2 threads (only where DALI is installed: pip install nvidia-dali-cuda130);
- with `cache: disk`, from the second epoch on, images/s of CPU time on one core >= 8 times the classic pipeline's: both in one
  process without workers and with one thread.

Sides:

- classic: `ImageFolder` with its PIL loader, v1 RandomResizedCrop(224), RandomHorizontalFlip, ToTensor, Normalize, a DataLoader
  with 2 persistent workers.
- DALI: fn.readers.file shuffled, fn.decoders.image_random_crop, fn.resize, fn.crop_mirror_normalize, all on the CPU, 2 threads,
  its own defaults for prefetching.
- ours: FolderData's training loader with 2 workers; `ours_normalized`: and what the step does to its batches before the first
  layer, on the CPU.

All sides draw the same crops by distribution: 8 to 100 % of the area, sides from 3:4 to 4:3, antialiased bilinear scaling.

    python benchmarks/folder_pipeline.py [--quick]
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import photos
import record
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from lit_guide.data import FolderData
from lit_guide.engine.data.source import IMAGENET, to_float
from lit_guide.networks import Normalized

IMAGES, BATCH, SIDE, WORKERS = 4_000, 32, 224, 2
ROUNDS = 7
CLASSIC_LIMIT, CLASSIC_GOAL, NORMALIZED_LIMIT, DALI_LIMIT, CACHE_LIMIT = 2.0, 2.5, 1.3, 1.2, 8.0
DALI = importlib.util.find_spec("nvidia.dali") is not None if importlib.util.find_spec("nvidia") else False

Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def classic(root: Path, workers: int, min_area: float = 0.08) -> Epoch:
    """What tutorials write."""
    crop = T.RandomResizedCrop(SIDE, (min_area, 1.0))
    transform = T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET)])
    dataset = ImageFolder(str(root), transform)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


def ours(root: Path, workers: int, **kwargs: Any) -> Epoch:
    """What a training step of lit-guide gets: uint8."""
    data = FolderData(str(root), batch_size=BATCH, val_fraction=0, test_fraction=0, num_workers=workers, **kwargs)
    loader = data.train_dataloader()
    return lambda: iter(loader)


def normalized(epoch: Epoch) -> Epoch:
    """And what the step does to it before the first layer of the network's body; a float32 batch is ready as it is."""
    normalize = Normalized(torch.nn.Identity(), *IMAGENET)

    def ready() -> Iterator[tuple[Tensor, Tensor]]:
        for image_BCHW, label_B in epoch():
            yield normalize(to_float(image_BCHW)) if image_BCHW.dtype == torch.uint8 else image_BCHW, label_B

    return ready


def dali(root: Path) -> Epoch:
    """The pipeline of DALI's own ResNet example, on the CPU."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy

    mean, std = ([255 * value for value in values] for values in IMAGENET)

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=0)
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(root), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, device="cpu", size=(SIDE, SIDE), interp_type=types.INTERP_LINEAR, antialias=True)
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, device="cpu", mirror=mirror, mean=mean, std=std, output_layout="CHW"), labels

    loader = DALIClassificationIterator(
        pipeline(), reader_name="reader", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL
    )

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for (batch,) in loader:
            yield batch["data"], batch["label"].squeeze(1)

    return epoch


@torch.no_grad()
def images_per_second(epoch: Epoch, clock: Callable[[], float] = time.perf_counter) -> float:
    """Run through an epoch and throw the batches away."""
    count, started = 0, clock()
    for image_BCHW, _ in epoch():
        count += len(image_BCHW)
    return count / (clock() - started)


@torch.no_grad()
def check_same(sides: dict[str, Epoch], count: int) -> None:
    """Warm-up, and proof that all sides give the same kind of batch: shape, type, count, and moments of the pixels."""
    moments: dict[str, list[float]] = {}
    for name, epoch in sides.items():
        total, square, seen = 0.0, 0.0, 0
        for image_BCHW, label_B in normalized(epoch)():
            if image_BCHW.dtype != torch.float32 or image_BCHW.shape != (len(label_B), 3, SIDE, SIDE):
                raise SystemExit(f"{name} gives {image_BCHW.dtype} {tuple(image_BCHW.shape)}")
            total += image_BCHW.double().mean().item() * len(label_B)
            square += image_BCHW.double().square().mean().item() * len(label_B)
            seen += len(label_B)
        if seen != count:
            raise SystemExit(f"{name} gives {seen} images of {count}")
        moments[name] = [total / seen, square / seen]
    print(f"moments of the normalised pixels: {moments}", file=sys.stderr)
    for column in zip(*moments.values(), strict=True):
        if max(column) - min(column) > 5 / count**0.5:  # four times what chance gives
            raise SystemExit("The sides do not give the same images.")


def one_round(index: int, sides: dict[str, Epoch], alone: dict[str, Epoch]) -> dict[str, Any]:
    """An epoch of each side; every second round runs them in the opposite order."""
    figures: dict[str, Any] = {}
    for side in list(sides) if index % 2 else list(reversed(sides)):
        figures[f"{side}_images_per_s"] = round(images_per_second(sides[side]), 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for side in list(alone) if index % 2 else list(reversed(alone)):
        figures[f"{side}_images_per_core_s"] = round(images_per_second(alone[side], time.process_time), 1)
    torch.set_num_threads(threads)
    rate = figures["ours_images_per_s"]
    figures["over_classic"] = round(rate / figures["classic_images_per_s"], 3)
    figures["normalized_over_classic"] = round(figures["ours_normalized_images_per_s"] / figures["classic_images_per_s"], 3)
    if "dali" in sides:
        figures["over_dali"] = round(rate / figures["dali_images_per_s"], 3)
    figures["cached_over_classic"] = round(figures["cached_images_per_core_s"] / figures["classic_images_per_core_s"], 3)
    return figures


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    record.silence_lightning()
    count = 320 if quick else IMAGES
    with tempfile.TemporaryDirectory() as folder:
        root = photos.make_folder(Path(folder) / "photos", count)
        cache = {"cache_dir": str(Path(folder) / "cache")}
        sides = {"classic": classic(root, WORKERS), "ours": ours(root, WORKERS, **cache)}
        sides["ours_normalized"] = normalized(ours(root, WORKERS, **cache))
        if DALI:
            sides["dali"] = dali(root)
        # The cache is built here; what is measured are later epochs.
        alone = {"classic": classic(root, 0), "cached": ours(root, 0, cache="disk", **cache)}
        check_same(sides | {"cached": alone["cached"]}, count)
        rounds = record.repeat(
            2 if quick else ROUNDS, lambda index: one_round(index, sides, alone), None if quick else given.wait
        )
    middle, n = record.medians(rounds), len(record.undisturbed(rounds))
    print(f"medians: {middle}; goal {CLASSIC_GOAL:g} {'reached' if middle['over_classic'] >= CLASSIC_GOAL else 'not reached'}")
    settings = {"images": count, "batch_size": BATCH, "workers": WORKERS, "goal": CLASSIC_GOAL, "dali": dali_version()}
    text = "images/s of training crops from a folder of JPEGs, as uint8 for the device to normalise, over those of"
    classic_side = "ImageFolder + PIL + v1 transforms"
    included = f"the same, with the normalisation on the CPU included, over {classic_side}"
    claims = [
        record.claim(f"{text} {classic_side}", middle["over_classic"], CLASSIC_LIMIT, n, at_most=False),
        record.claim(included, middle["normalized_over_classic"], NORMALIZED_LIMIT, n, at_most=False),
    ]
    if DALI:
        claims.append(record.claim(f"{text} DALI on the CPU", middle["over_dali"], DALI_LIMIT, n, at_most=False))
    cached = f"images per second of one core from the disk cache, as uint8, over those of {classic_side}"
    claims.append(record.claim(cached, middle["cached_over_classic"], CACHE_LIMIT, n, at_most=False))
    return record.finish("folder_pipeline", claims, rounds, middle, settings, quick)


def dali_version() -> str | None:
    """The version of DALI, or None."""
    if not DALI:
        return None
    import nvidia.dali

    return str(nvidia.dali.__version__)


if __name__ == "__main__":
    sys.exit(main())
