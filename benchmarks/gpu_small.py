"""A small CNN at 32 px, where the data are the bottleneck: `lit-guide fit` against the loop of every PyTorch tutorial.

Claim, for the CNN of lit-guide on one GPU, 51,200 random 32 x 32 RGB images in memory, batches of 512, each image shifted by up
to 4 pixels and mirrored by its own draw, float32, Adam: images/s of an epoch of `lit-guide fit` over those of the tutorial's
loop >= 2; median of the ratios of 5 rounds in alternation (n = 5), after an epoch of each to warm up.

Recorded, not claimed: images/s of the same network on batches that are on the device already, in a loop written by hand, and
what share of them `fit` reaches: how far the data are the bottleneck.

- classic: a Dataset that makes a PIL image of each array, RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize;
  a DataLoader with pinned memory and a persistent worker for each core, 16 at most; non-blocking copies; zero_grad, forward,
  cross-entropy, backward, step. Its workers are started in the warm-up.
- ours: the trainer of `lit-guide fit` with all of its callbacks and its logger, on the same images in an .npz.
- resident: the classic loop on four batches that stay on the device.

An epoch's time is from its start to the end of its last batch, when the device has done what it was given. There is no
validation. Without a GPU the script ends with 2.

    python benchmarks/gpu_small.py [--quick] [--seconds 60]
    python benchmarks/gpu_small.py --quick --device cpu      only tries the script
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fits
import numpy as np
import record

ROUNDS, IMAGES, BATCH, SIDE, PADDING, LR, LIMIT = 5, 51_200, 512, 32, 4, 1e-3, 2.0
FLAGS = ["--data.shift", str(PADDING / SIDE), "--data.flip", "true", "--trainer.limit_val_batches", "0"]


class Bench:
    """The sides of the comparison, on one device with one set of images: each gives images/s of one epoch."""

    def __init__(self, device: str, quick: bool, folder: Path) -> None:
        import augment
        import torch
        from torch.utils.data import DataLoader

        self.device, self.folder = device, folder
        self.count, self.batch = (256, 64) if quick else (IMAGES, BATCH)
        accelerator = ["--accelerator", "gpu" if device == "cuda" else device, "--data.batch_size", str(self.batch)]
        self.options = [*fits.random_images(folder, self.count, SIDE), *accelerator, *FLAGS, "--model.optimizer.lr", str(LR)]
        cli = self.build()
        self.mean, self.std = cli.datamodule.mean, cli.datamodule.std
        with np.load(folder / f"images_{self.count}_{SIDE}.npz") as arrays:
            images_NHWC, labels = arrays["images"].transpose(0, 2, 3, 1).copy(), arrays["labels"]
        dataset = augment.Classic(images_NHWC, labels, self.mean, self.std)
        self.workers = 1 if quick else min(16, record.cores())
        how: Any = {"num_workers": self.workers, "persistent_workers": True, "pin_memory": device == "cuda"}
        self.loader = DataLoader(dataset, self.batch, shuffle=True, **how)
        pixels_BCHW = torch.rand((self.batch, 3, SIDE, SIDE), device=device)
        ready = [(pixels_BCHW.roll(index), torch.arange(self.batch, device=device) % 10) for index in range(4)]
        self.ready = [ready[index % 4] for index in range(self.count // self.batch)]

    def build(self) -> Any:
        """What `lit-guide fit` builds."""
        return fits.build(self.options, self.folder)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def loop(self, batches: Iterable[Any]) -> float:
        """The loop written by hand, on the network that lit-guide builds, without the normalisation that its images have had."""
        import torch
        import torch.nn.functional as F

        network = self.build().model.network.body.to(self.device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        started = self.now()
        for images, labels in batches:
            image_BCHW, label_B = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(image_BCHW), label_B)
            loss.backward()
            optimizer.step()
        return self.count / (self.now() - started)

    def ours(self) -> float:
        """`lit-guide fit`."""
        from lightning.pytorch.callbacks import Callback

        times: list[float] = []

        class Clock(Callback):
            def on_train_epoch_start(_, trainer: Any, module: Any) -> None:  # noqa: N805
                times.append(self.now())

            def on_train_batch_end(_, trainer: Any, *args: Any) -> None:  # noqa: N805
                if trainer.is_last_batch:
                    times.append(self.now())

        cli = self.build()
        cli.trainer.callbacks.append(Clock())
        fits.train(cli, cli.datamodule)
        return self.count / (times[1] - times[0])

    def round(self, index: int) -> dict[str, Any]:
        """Images/s of each side and the ratios; each round starts with another side."""
        sides: dict[str, Callable[[], float]] = {
            "classic": lambda: self.loop(self.loader),
            "ours": self.ours,
            "resident": lambda: self.loop(self.ready),
        }
        names, figures = list(sides), {}
        for name in names[index % 3 :] + names[: index % 3]:
            figures[name] = round(sides[name](), 1)
        over = {f"ours_over_{name}": round(figures["ours"] / figures[name], 3) for name in ("classic", "resident")}
        return figures | over


def main() -> int:
    parser = record.arguments(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu, with --quick, only tries the script")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no round later, if there is one")
    given = parser.parse_args()
    import torch

    import lit_guide.engine.config.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu goes with --quick: the claim is about a GPU")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here: nothing was measured.", file=sys.stderr)
        return 2
    record.silence_lightning()
    until = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.device, given.quick, Path(folder))
        bench.round(0)  # the warm-up
        wait = None if given.quick else given.wait
        rounds = record.repeat(1 if given.quick else ROUNDS, bench.round, wait, until)
    middle = record.medians(rounds)
    print(f"medians: {middle}")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    text = f"training images/s on 32 px images in memory over the tutorial's loop on one {name}"
    claims = [record.claim(text, middle["ours_over_classic"], LIMIT, len(record.undisturbed(rounds)), at_most=False)]
    settings = {"images": bench.count, "batch": bench.batch, "workers": bench.workers, "precision": "32-true"}
    return record.finish("gpu_small", claims, rounds, middle, settings, given.quick)


if __name__ == "__main__":
    sys.exit(main())
