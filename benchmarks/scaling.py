"""Two processes train nearly twice as many images a second as one: `--devices 2 --strategy ddp` on the CPU.

Claim: images/s of two gloo ranks with one thread each over twice those of one process with one thread >= 0.85; ResNet-18 at
128 px, 32 images a step on each rank (weak scaling), float32, Adam; median of the ratios of 5 rounds (n = 5), in alternation.

Every side is the trainer of `lit-guide fit` with all of its callbacks, in processes of its own, with OMP_NUM_THREADS=1, on random
images from an .npz, shuffled and augmented as usual. A clock in `on_train_batch_start` of the first rank times 8 steps after 4
to warm up; start-up, validation and checkpoints are not in the figures.

Recorded once, not claimed: two single processes at the same time that know nothing of each other, over twice one alone. This is
what the machine leaves of the speed of a core when both work; the rest of the loss is DDP's.

    python benchmarks/scaling.py [--quick]
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fits
import record

ROUNDS, SIDE, BATCH, STEPS, SKIPPED = 5, 128, 32, 13, 4  # the clock takes the start of a step: it sees 12 of 13
LIMIT = 0.85
TWO = ["--devices", "2", "--strategy", "ddp"]


def measure(index: int, options: Sequence[str], batch: int) -> dict[str, Any]:
    """Images/s of both sides and their ratio; each round starts with the other side."""
    sides = {"one": list(options), "two": [*options, *TWO]}
    figures: dict[str, Any] = {}
    for name in list(sides)[:: -1 if index % 2 else 1]:
        (milliseconds,) = fits.step_in_processes(sides[name], SKIPPED, threads=1)
        figures[name] = round((2 if name == "two" else 1) * batch * 1000 / milliseconds, 3)
    return figures | {"scaling": round(figures["two"] / (2 * figures["one"]), 4)}


def apart(options: Sequence[str], batch: int) -> dict[str, Any]:
    """Images/s of two processes that know nothing of each other, together."""
    both = fits.step_in_processes(options, SKIPPED, threads=1, count=2)
    return {"apart": round(sum(batch * 1000 / milliseconds for milliseconds in both), 3)}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    if record.cores() < fits.CORES:
        raise SystemExit("Two processes of one thread each need two cores; this machine has one.")
    fits.two_cores()
    steps, batch, side = (SKIPPED + 3, 8, 64) if given.quick else (STEPS, BATCH, SIDE)
    wait = None if given.quick else given.wait
    with tempfile.TemporaryDirectory() as folder:
        options = fits.random_images(Path(folder), 2 * batch * steps, side)
        options += ["--model.network", "resnet18", "--data.batch_size", str(batch), "--trainer.limit_train_batches", str(steps)]
        rounds = record.repeat(1 if given.quick else ROUNDS, lambda index: measure(index, options, batch), wait)
        control = record.repeat(1, lambda index: apart(options, batch), wait)
    middle = record.medians(rounds)
    middle |= record.medians(control)
    middle["apart_scaling"] = round(middle["apart"] / (2 * middle["one"]), 4)
    print(f"medians: {middle}")
    text = f"images/s of two gloo ranks over twice those of one process (ResNet-18, {SIDE} px)"
    claims = [record.claim(text, middle["scaling"], LIMIT, len(record.undisturbed(rounds)), at_most=False)]
    settings = {"batch": BATCH, "steps": STEPS, "skipped": SKIPPED, "threads": 1, "cores_used": fits.CORES}
    return record.finish("scaling", claims, rounds + control, middle, settings, given.quick)


if __name__ == "__main__":
    sys.exit(main())
