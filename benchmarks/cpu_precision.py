"""A CPU with bf16 instructions trains much faster with two flags: `--model.channels_last true --precision bf16-mixed`.

Claims, where the CPU has AVX512-BF16 or AMX; elsewhere nothing is judged:

(a) Training images/s with both flags over those without (float32, NCHW) >= 1.6: ResNet-18 at 128 px, batches of 32, two threads;
    median of the ratios of 3 rounds of 8 steps each (n = 3), all sides in alternation.
(b) Test accuracy of `configs/digits.yaml` with both flags differs by <= 0.2 percentage points from that without: the means of
    five seeds each (`--seed_everything` 0 to 4), one test split of 359 images.

Recorded, not claimed: images/s with `--model.compile true` alone, and with `--model.optimizer.fused true` alone, over those
without.

(a) is the trainer of `lit-guide fit` with all of its callbacks on random images from an .npz, shuffled and augmented as usual. A
clock in `on_train_batch_start` times the steps after 4 to warm up; start-up and checkpoints are not in the figures, nor is the
compilation, which takes place in the first step. (b) is the real command.

    python benchmarks/cpu_precision.py [--quick]
"""

import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fits
import record
from digits_accuracy import train

ROUNDS, SIDE, BATCH, STEPS, SKIPPED = 3, 128, 32, 13, 4  # the clock takes the start of a step: it sees 12 of 13
SEEDS = 5
SPEEDUP, POINTS = 1.6, 0.2
BF16 = ["--model.channels_last", "true", "--precision", "bf16-mixed"]
SIDES = {
    "plain": [],
    "bf16": BF16,
    "compiled": ["--model.compile", "true"],
    "fused": ["--model.optimizer.fused", "true"],
}


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers by itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\b(avx512_bf16|amx_bf16)\b", text, re.MULTILINE) is not None


def speed(index: int, sides: Mapping[str, Sequence[str]], batch: int, folder: Path) -> dict[str, Any]:
    """Images/s of each side, and each over the plain one; each round starts with another side."""
    import torch

    names = list(sides)
    figures: dict[str, Any] = {}
    for name in names[index % len(names) :] + names[: index % len(names)]:
        torch.compiler.reset()  # it gives up on code that it has met with too many networks
        figures[name] = round(batch * 1000 / fits.step(sides[name], SKIPPED, folder), 3)
    return figures | {f"{name}_ratio": round(figures[name] / figures["plain"], 4) for name in names if name != "plain"}


def accuracy(seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Test accuracy on the digits of both sides, in percent."""
    both = {"plain": list(options), "bf16": [*options, *BF16]}
    return {"seed": seed} | {
        f"{name}_accuracy": 100 * train("digits.yaml", seed, given)["test_accuracy"] for name, given in both.items()
    }


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick, wait = given.quick, None if given.quick else given.wait
    if not has_bf16():
        print("This CPU has neither AVX512-BF16 nor AMX, or does not say so in /proc/cpuinfo: nothing is judged.")
        return 0
    fits.prepare()
    steps, batch, side = (SKIPPED + 3, 8, 64) if quick else (STEPS, BATCH, SIDE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = fits.random_images(folder, batch * steps, side)
        options += ["--model.network", "resnet18", "--data.batch_size", str(batch)]
        sides = {key: [*options, *more] for key, more in SIDES.items()}
        fits.step(sides["compiled"], SKIPPED, folder)  # the compiler keeps what it made on disk
        rounds = record.repeat(1 if quick else ROUNDS, lambda index: speed(index, sides, batch, folder), wait)
    exports = [word for kind in ("torchscript", "onnx", "pt2") for word in (f"--export.{kind}.enabled", "false")]
    short = ["--trainer.max_epochs", "2"] if quick else []
    seeds = record.repeat(1 if quick else SEEDS, lambda seed: accuracy(seed, [*exports, *short]), None)
    middle = record.medians(rounds)
    for key in ("plain_accuracy", "bf16_accuracy"):
        middle[f"mean_{key}"] = round(statistics.mean(item[key] for item in seeds), 4)
    print(f"medians: {middle}")
    points = abs(middle["mean_bf16_accuracy"] - middle["mean_plain_accuracy"])
    text_a = f"training images/s with channels_last and bf16-mixed over float32 NCHW on the CPU (ResNet-18, {SIDE} px)"
    text_b = "difference of the mean test accuracy on the digits, with channels_last and bf16-mixed, in percentage points"
    claims = [
        record.claim(text_a, middle["bf16_ratio"], SPEEDUP, len(record.undisturbed(rounds)), at_most=False),
        record.claim(text_b, points, POINTS, len(seeds)),
    ]
    settings = {"batch": BATCH, "steps": STEPS, "skipped": SKIPPED, "threads": fits.CORES, "flags": SIDES}
    return record.finish("cpu_precision", claims, rounds + seeds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
