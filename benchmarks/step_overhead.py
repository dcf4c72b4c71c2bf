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
    import lit_guide.engine.config.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    record.silence_lightning()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, limit = Path(name), None if quick else wait
        for part, sides, rounds in (
            ("small", small_sides(folder, 100 if quick else STEPS_A), ROUNDS_A),
            ("large", large_sides(folder, 8 if quick else STEPS_B), ROUNDS_B),
        ):
            # The warm-up, which also says what the trainers hold.
            about = {side: run()[1] for side, run in sides.items()}
            repeated = record.repeat(1 if quick else rounds, lambda index, sides=sides: alternate(index, sides), limit)
            found[part] = {"about": about, "rounds": repeated}
    return found


def alternate(index: int, sides: dict[str, Side]) -> dict[str, Any]:
    """Milliseconds a step of each side and what they come to; each round starts with another side."""
    names = list(sides)
    figures: dict[str, Any] = {}
    for name in names[index % len(names) :] + names[: index % len(names)]:
        gc.collect()
        figures[f"{name}_ms"] = round(sides[name]()[0], 4)
    if "stock" not in sides:
        return figures | {"step_ratio": round(figures["ours_ms"] / figures["plain_ms"], 4)}
    stock, ours = figures["stock_ms"] - figures["plain_ms"], figures["ours_ms"] - figures["plain_ms"]
    return figures | {"extra_stock_ms": round(stock, 4), "extra_ours_ms": round(ours, 4), "extra_ratio": round(ours / stock, 4)}


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
    from lit_guide.export.command import formats
    from lit_guide.fit import start

    run_dir = tempfile.mkdtemp(dir=folder) + "/run"
    trainer = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
    # Exports come after the last step: without them a round is shorter, and the callbacks are there all the same.
    exports = [word for name in formats() for word in (f"--export.{name}.enabled", "false")]
    return start("fit", [*options, *trainer, *exports, "--run_dir", run_dir, "--model.optimizer.lr", str(LR)])


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
    try:
        while os.read(parent, 65536):
            pass
    except OSError:  # Linux says so when the other end is closed
        process.wait()
    finally:
        process.kill()
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
    middle = {"a": record.medians(small), "b": record.medians(large)}
    print(json.dumps(middle, indent=1))
    text_a = "time added to a step of a small CNN over what stock Lightning adds"
    text_b = "time of a ResNet-18 step (64 px, batch 32) over a plain loop's"
    claims = [
        record.claim(text_a, middle["a"]["extra_ratio"], LIMIT_A, len(record.undisturbed(small))),
        record.claim(text_b, middle["b"]["step_ratio"], LIMIT_B, len(record.undisturbed(large))),
    ]
    rounds = [{"claim": "a", **item} for item in small] + [{"claim": "b", **item} for item in large]
    settings = {"terminal": "pseudo terminal, 40 x 120", "a": found["small"]["about"], "b": found["large"]["about"]}
    return record.finish("step_overhead", claims, rounds, middle, settings, given.quick)


if __name__ == "__main__":
    sys.exit(main())
