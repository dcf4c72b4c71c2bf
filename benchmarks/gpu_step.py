"""On a GPU `lit-guide fit` is as fast as a loop written by hand, and hardly ever waits for the device.

Claims, for ResNet-50 at 224 px on one GPU, batches of 128 that are on the device already, Adam:

(a) Images/s with `--precision bf16-mixed --model.channels_last true` over those of a hand-written PyTorch loop with the same
    settings >= 0.98; median of the ratios of 5 rounds of 100 steps each (n = 5), all sides in alternation.
(b) The same over those of lit-guide's defaults, float32 and NCHW, >= 2.5; from the same rounds.
(c) With these flags the host waits for the device at most once in 50 steps: the warnings of torch.cuda.set_sync_debug_mode
    over 100 steps in the middle of an epoch, halved.

- plain: zero_grad, forward under autocast, cross-entropy, backward, step of Adam, on the network that lit-guide builds, in
  channels_last; it logs nothing.
- ours, default: LitClassifier with the trainer that `lit-guide fit` builds, all of its callbacks and its logger in it.

There is no augmentation and no validation, and checkpoints come after the last step. Standard output is a pseudo terminal, so
that the progress bar draws. The clock waits for the device at the 21st step and after the last one. Without a GPU the script
ends with 2; it needs one with 24 GB.

    python benchmarks/gpu_step.py [--quick] [--seconds 180]
    python benchmarks/gpu_step.py --quick --device cpu      only tries the script
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fits
import record
from step_overhead import in_terminal

ROUNDS, BATCH, SIDE, STEPS, SKIPPED, DIFFERENT = 5, 128, 224, 120, 20, 4
LR, PER = 1e-3, 50
LIMIT_A, LIMIT_B, LIMIT_C = 0.98, 2.5, 1.0
BF16 = ["--precision", "bf16-mixed", "--model.channels_last", "true"]


class Bench:
    """The sides of the comparison, on one device with one list of batches.

    Args:
        device: cuda or cpu.
        quick: few small batches.
        folder: for runs and images.
    """

    def __init__(self, device: str, quick: bool, folder: Path) -> None:
        import torch
        from torch.utils.data import DataLoader

        self.device, self.folder, self.skipped = device, folder, 2 if quick else SKIPPED
        self.batch, side, steps = (4, 64, 6) if quick else (BATCH, SIDE, STEPS)
        self.timed = steps - self.skipped
        accelerator = ["--accelerator", "gpu" if device == "cuda" else device, "--model.network", "resnet50"]
        self.options = [*fits.random_images(folder, 20, side), *accelerator, "--model.optimizer.lr", str(LR)]
        generator = torch.Generator().manual_seed(0)
        different = [
            (
                torch.rand((self.batch, 3, side, side), generator=generator).to(device),
                torch.randint(0, 10, (self.batch,), generator=generator).to(device),
            )
            for _ in range(DIFFERENT)
        ]
        repeated: Any = [different[index % DIFFERENT] for index in range(steps)]
        self.loader = DataLoader(repeated, batch_size=None)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def plain(self) -> float:
        """Images/s of the loop written by hand."""
        import torch
        import torch.nn.functional as F

        network = fits.build([*self.options, *BF16], self.folder).model.network
        network = network.to(self.device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        started = 0.0
        for step, (image_BCHW, label_B) in enumerate(self.loader):
            if step == self.skipped:
                started = self.now()
            optimizer.zero_grad()
            with torch.autocast(self.device, torch.bfloat16):
                logits_BK = network(image_BCHW.to(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits_BK, label_B)
            loss.backward()
            optimizer.step()
        return self.timed * self.batch / (self.now() - started)

    def trainer(self, options: Sequence[str]) -> float:
        """Images/s of `lit-guide fit`."""
        from lightning.pytorch.callbacks import Callback

        times: list[float] = []
        last = self.skipped + self.timed - 1

        class Clock(Callback):
            def on_train_batch_start(_, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:  # noqa: N805
                if batch_idx == self.skipped:
                    times.append(self.now())

            def on_train_batch_end(_, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: N805
                if batch_idx == last:
                    times.append(self.now())

        cli = self.build(options)
        cli.trainer.callbacks.append(Clock())
        cli.trainer.fit(cli.model, self.loader)
        return self.timed * self.batch / (times[1] - times[0])

    def syncs(self) -> float:
        """How often the host waits for the device in 50 steps."""
        found = fits.syncs(self.build(BF16), self.loader, self.skipped, self.skipped + self.timed - 1)
        for place in sorted(set(found)):
            print(f"the host waits in {place}", file=sys.stderr)
        return len(found) * PER / self.timed

    def build(self, options: Sequence[str]) -> Any:
        """What `lit-guide fit` builds, with a progress bar that draws."""
        cli = fits.build([*self.options, *options], self.folder)
        bar = cli.trainer.progress_bar_callback
        if bar is None or bar.is_disabled:
            raise SystemExit("A progress bar does not draw: standard output should be a terminal.")
        return cli

    def round(self, index: int) -> dict[str, Any]:
        """Images/s of each side and the ratios; each round starts with another side."""
        import torch

        sides = {"plain": self.plain, "ours": lambda: self.trainer(BF16), "default": lambda: self.trainer([])}
        names, figures = list(sides), {}
        for name in names[index % 3 :] + names[: index % 3]:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            figures[name] = round(sides[name](), 2)
        over = {key: round(figures["ours"] / figures[key], 4) for key in ("plain", "default")}
        return figures | {"ours_over_plain": over["plain"], "ours_over_default": over["default"]}


def measure(device: str, quick: bool, wait: float, seconds: float) -> dict[str, Any]:
    """All figures, in this process, whose standard output is a terminal."""
    import torch

    import lit_guide.engine.config.parser  # noqa: F401  # Lightning sets its logging up when it is imported

    record.silence_lightning()
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, quick, Path(folder))
        if not quick:
            bench.round(0)  # the warm-up
        rounds = record.repeat(1 if quick else ROUNDS, bench.round, None if quick else wait, until)
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        return {"rounds": rounds, "syncs": bench.syncs(), "device": name, "tf32": torch.backends.cudnn.allow_tf32}


def main() -> int:
    parser = record.arguments(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu, with --quick, only tries the script")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no round later, if there is one")
    parser.add_argument("--worker", default=None, help="used by the script itself")
    given = parser.parse_args()
    if given.worker:
        Path(given.worker).write_text(json.dumps(measure(given.device, given.quick, given.wait, given.seconds)), encoding="utf-8")
        return 0
    import torch

    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu goes with --quick: the claims are about a GPU")
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here: nothing was measured.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        options = ["--device", given.device, "--wait", str(given.wait), "--seconds", str(given.seconds)]
        options += ["--quick"] if given.quick else []
        in_terminal([sys.executable, __file__, "--worker", str(file), *options])
        found = json.loads(file.read_text(encoding="utf-8"))
    middle = {**record.medians(found["rounds"]), "syncs": found["syncs"]}
    print(f"medians: {middle}")
    n, on = len(record.undisturbed(found["rounds"])), f"on one {found['device']} (ResNet-50, bf16-mixed, channels_last)"
    claims = [
        record.claim(f"images/s over a hand-written loop's {on}", middle["ours_over_plain"], LIMIT_A, n, at_most=False),
        record.claim(f"images/s over those of float32 NCHW {on}", middle["ours_over_default"], LIMIT_B, n, at_most=False),
        record.claim(f"times in {PER} steps that the host waits {on}", middle["syncs"], LIMIT_C, 1),
    ]
    settings = {"batch": BATCH, "side": SIDE, "steps": STEPS, "skipped": SKIPPED, "tf32_convolutions": found["tf32"]}
    return record.finish("gpu_step", claims, found["rounds"], middle, settings, given.quick)


if __name__ == "__main__":
    sys.exit(main())
