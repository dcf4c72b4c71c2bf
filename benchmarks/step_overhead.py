"""What lit-guide adds to a training step, against a plain PyTorch loop on the same network and the same batches.

Claims, both with logging, checkpoints, a progress bar and a running accuracy:

(a) A small CNN (widths 16 and 32, 1 x 8 x 8, batch 64): the milliseconds that lit-guide adds to a step of the plain loop are
    <= 0.25 times those that a stock LightningModule under a stock Trainer adds; median of the ratios of 7 rounds of 1,000
    steps each (n = 7), the three sides in alternation.
(b) ResNet-18 at 64 px, batch 32: a step under lit-guide takes <= 1.03 times as long as one of the plain loop; median of the
    ratios of 9 rounds of 30 steps each (n = 9), in alternation.

- plain: zero_grad, forward, cross-entropy, backward, step of Adam. It logs nothing.
- stock: `self.log(..., prog_bar=True)` of the loss and of a torchmetrics accuracy in each step, a Trainer with its default
  progress bar, checkpoint and CSVLogger.
- ours: LitClassifier with the trainer that `lit-guide fit` builds, all of its callbacks and its logger in it.

Every side iterates over one loader of ready batches on the device, float32, not augmented; there is no validation. Standard
output is a pseudo terminal of 40 x 120, so that the bars of both Trainers draw; a second process reads it and drops what it
reads. A clock in `on_train_batch_start` times whole steps from the 6th (a: 51st) to the last, so start-up and the checkpoint
at the end of the epoch are not in the figures.

    python benchmarks/step_overhead.py [--quick]
"""

import fcntl
import gc
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import record

ROUNDS_A, STEPS_A, SKIPPED_A, LIMIT_A = 7, 1000, 50, 0.25
ROUNDS_B, STEPS_B, SKIPPED_B, LIMIT_B = 9, 30, 5, 1.03
BATCH_A, BATCH_B, SIDE_B, CLASSES, LR = 64, 32, 64, 10, 1e-3

Side = Callable[[], tuple[float, dict[str, Any]]]


def measure(quick: bool, wait: float) -> dict[str, Any]:
    """Both claims' rounds, in this process, whose standard output is a terminal."""
    import lit_guide.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    record.silence_lightning()
    with tempfile.TemporaryDirectory() as folder:
        small, large = small_sides(Path(folder), 100 if quick else STEPS_A), large_sides(Path(folder), 8 if quick else STEPS_B)
        return {
            "small": alternate(small, 1 if quick else ROUNDS_A, wait),
            "large": alternate(large, 1 if quick else ROUNDS_B, wait),
        }


def alternate(sides: dict[str, Side], rounds: int, wait: float) -> dict[str, Any]:
    """Milliseconds a step of each side and round, after a round that does not count; each round starts with another side."""
    names, found, about = list(sides), [], {}
    for index in range(-1, rounds):
        record.wait_for_quiet(wait)
        figures: dict[str, Any] = {}
        busy, own, started = record.busy_seconds(), time.process_time(), time.perf_counter()
        for name in names[index % len(names) :] + names[: index % len(names)]:
            gc.collect()
            milliseconds, settings = sides[name]()
            figures[f"{name}_ms"] = round(milliseconds, 4)
            about[name] = settings
        figures["others"] = record.share_of_others(busy, time.process_time() - own, time.perf_counter() - started)
        if index >= 0:
            found.append(figures)
        print(f"round {index + 1} of {rounds}: {figures}", file=sys.stderr, flush=True)
    return {"rounds": found, "about": about}


def small_sides(folder: Path, steps: int) -> dict[str, Side]:
    """The three sides of claim (a)."""
    options = ["--data", "DigitsData", "--model.network_args", "{widths: [16, 32]}"]
    batches = make_batches(steps, (BATCH_A, 1, 8, 8))
    skipped = min(SKIPPED_A, steps // 2)
    return {
        "plain": partial(run_plain, batches, skipped, options, folder),
        "stock": partial(run_stock, batches, skipped, options, folder),
        "ours": partial(run_ours, batches, skipped, options, folder),
    }


def large_sides(folder: Path, steps: int) -> dict[str, Side]:
    """The two sides of claim (b); its 3 x 64 x 64 images are there only to say the shape and the classes."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (20 * CLASSES, SIDE_B, SIDE_B, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(len(images)) % CLASSES)
    options = ["--data", "ArraysData", "--data.path", str(folder / "images.npz"), "--model.network", "resnet18"]
    options += ["--trainer.log_every_n_steps", "10"]
    batches = make_batches(steps, (BATCH_B, 3, SIDE_B, SIDE_B))
    skipped = min(SKIPPED_B, steps // 2)
    return {
        "plain": partial(run_plain, batches, skipped, options, folder),
        "ours": partial(run_ours, batches, skipped, options, folder),
    }


def make_batches(steps: int, shape: tuple[int, ...]) -> Any:
    """A loader over a list of batches (image_BCHW float32 from 0 to 1, label_B); 50 different ones, over and over."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    different = [
        (torch.rand(shape, generator=generator), torch.randint(0, CLASSES, shape[:1], generator=generator))
        for _ in range(min(50, steps))
    ]
    return DataLoader([different[index % len(different)] for index in range(steps)], batch_size=None)  # type: ignore[arg-type]


def our_cli(options: list[str], folder: Path) -> Any:
    """What `lit-guide fit` builds: the trainer with all callbacks and the logger, and the model."""
    from lit_guide.parser import ClassifierCLI

    run_dir = tempfile.mkdtemp(dir=folder) + "/run"
    trainer = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
    return ClassifierCLI("fit", [*options, *trainer, "--run_dir", run_dir, "--model.optimizer.lr", str(LR)])


def clock() -> tuple[Any, list[float]]:
    """A callback that notes when each step starts, and its notes."""
    from lightning.pytorch.callbacks import Callback

    starts: list[float] = []

    class Clock(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            starts.append(time.perf_counter())

    return Clock(), starts


def step_ms(starts: list[float], skipped: int) -> float:
    """Mean milliseconds of the steps after the first few."""
    return 1000 * (starts[-1] - starts[skipped]) / (len(starts) - 1 - skipped)


def run_plain(batches: Any, skipped: int, options: list[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """The loop of every PyTorch tutorial, on the network that lit-guide builds."""
    import torch
    import torch.nn.functional as F

    network = our_cli(options, folder).model.network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    starts = []
    for image_BCHW, label_B in batches:
        starts.append(time.perf_counter())
        optimizer.zero_grad()
        loss = F.cross_entropy(network(image_BCHW), label_B)
        loss.backward()
        optimizer.step()
    return step_ms(starts, skipped), {}


def run_stock(batches: Any, skipped: int, options: list[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """A LightningModule as the documentation writes it, under a Trainer with its defaults and a CSVLogger."""
    import torch
    import torch.nn.functional as F
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger
    from torchmetrics.classification import MulticlassAccuracy

    class Stock(LightningModule):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network
            self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            image_BCHW, label_B = batch
            logits_BK = self.network(image_BCHW)
            loss = F.cross_entropy(logits_BK, label_B)
            self.accuracy(logits_BK, label_B)
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/accuracy", self.accuracy, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=LR)

    callback, starts = clock()
    place = tempfile.mkdtemp(dir=folder)
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], logger=CSVLogger(place), default_root_dir=place)
    trainer.fit(Stock(our_cli(options, folder).model.network), batches)
    return step_ms(starts, skipped), describe(trainer)


def run_ours(batches: Any, skipped: int, options: list[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """LitClassifier under the trainer of `lit-guide fit`."""
    cli = our_cli(options, folder)
    callback, starts = clock()
    cli.trainer.callbacks.append(callback)
    cli.trainer.fit(cli.model, batches)
    return step_ms(starts, skipped), describe(cli.trainer)


def describe(trainer: Any) -> dict[str, Any]:
    """What ran in the trainer; a bar that does not draw would make the comparison unfair."""
    bar = trainer.progress_bar_callback
    if bar is None or bar.is_disabled:
        raise SystemExit("A progress bar does not draw: standard output should be a terminal.")
    names = [type(item).__name__ for item in trainer.callbacks]
    return {
        "callbacks": names,
        "loggers": [type(item).__name__ for item in trainer.loggers],
        "log_every": trainer.log_every_n_steps,
    }


def in_terminal(command: list[str]) -> None:
    """Run a command whose standard output is a pseudo terminal; read and drop what it draws."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(command, stdout=child, env={**os.environ, "TERM": "xterm-256color"})
    os.close(child)
    while True:
        try:
            if not os.read(parent, 65536):
                break
        except OSError:  # Linux says so when the other end is closed
            break
    os.close(parent)
    if process.wait():
        raise SystemExit(f"the measuring process ended with {process.returncode}")


def main() -> int:
    parser = record.arguments(__doc__)
    parser.add_argument("--worker", default=None, help="used by the script itself")
    given = parser.parse_args()
    if given.worker:
        Path(given.worker).write_text(json.dumps(measure(given.quick, given.wait)), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        options = ["--quick", "--wait", "0"] if given.quick else ["--wait", str(given.wait)]
        in_terminal([sys.executable, __file__, "--worker", str(file), *options])
        found = json.loads(file.read_text(encoding="utf-8"))
    small, large = found["small"]["rounds"], found["large"]["rounds"]
    for item in small:
        item["extra_stock_ms"] = round(item["stock_ms"] - item["plain_ms"], 4)
        item["extra_ours_ms"] = round(item["ours_ms"] - item["plain_ms"], 4)
        item["extra_ratio"] = round(item["extra_ours_ms"] / item["extra_stock_ms"], 4)
    for item in large:
        item["step_ratio"] = round(item["ours_ms"] / item["plain_ms"], 4)
    medians = {
        part: {name: round(statistics.median(item[name] for item in rounds), 4) for name in rounds[0] if name != "others"}
        for part, rounds in (("small", small), ("large", large))
    }
    print(json.dumps(medians, indent=1))
    claims = [
        record.claim(
            "time added to a step of a small CNN over what stock Lightning adds", medians["small"]["extra_ratio"], LIMIT_A
        )
        | {"n": len(small)},
        record.claim("time of a ResNet-18 step (64 px, batch 32) over a plain loop's", medians["large"]["step_ratio"], LIMIT_B)
        | {"n": len(large)},
    ]
    rounds = [{"claim": "a", **item} for item in small] + [{"claim": "b", **item} for item in large]
    settings = {"terminal": "pseudo terminal, 40 x 120", "a": found["small"]["about"], "b": found["large"]["about"]}
    return record.finish("step_overhead", claims, rounds, medians, settings, given.quick)


if __name__ == "__main__":
    sys.exit(main())
