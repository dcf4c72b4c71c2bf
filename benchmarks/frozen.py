"""With `--model.freeze backbone` a step costs the forward pass and little more.

Claim: training images/s of ResNet-18 at 96 px (batches of 32, float32, two threads) with a frozen backbone >= 2 times those of
training all of it; median of the ratios of 5 rounds (n = 5), both sides in alternation.

Both are the trainer of `lit-guide fit` with all of its callbacks on random images from an .npz, shuffled and augmented as usual.
A clock in `on_train_batch_start` times the steps after 4 to warm up; start-up and checkpoints are not in the figures.

    python benchmarks/frozen.py [--quick]
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import fits
import record

ROUNDS, SIDE, BATCH, STEPS, SKIPPED, SPEEDUP = 5, 96, 32, 15, 4, 2.0
SIDES = {"whole": [], "frozen": ["--model.freeze", "backbone"]}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    fits.prepare()
    steps, batch, side = (SKIPPED + 3, 8, 64) if quick else (STEPS, BATCH, SIDE)
    with tempfile.TemporaryDirectory() as name:
        options = fits.random_images(Path(name), batch * steps, side)
        options += ["--model.network", "resnet18", "--data.batch_size", str(batch)]

        def one_round(index: int) -> dict[str, Any]:
            figures = {
                key: round(batch * 1000 / fits.step([*options, *SIDES[key]], SKIPPED, Path(name)), 3)
                for key in (list(SIDES) if index % 2 else list(reversed(SIDES)))
            }
            return {f"{key}_images_per_s": figures[key] for key in SIDES} | {
                "ratio": round(figures["frozen"] / figures["whole"], 3)
            }

        rounds = record.repeat(1 if quick else ROUNDS, one_round, None if quick else given.wait)
    middle = record.medians(rounds)
    text = f"training images/s with a frozen backbone over those of training all of it (ResNet-18, {SIDE} px)"
    claims = [record.claim(text, middle["ratio"], SPEEDUP, len(record.undisturbed(rounds)), at_most=False)]
    settings = {"batch": BATCH, "steps": STEPS, "skipped": SKIPPED, "threads": fits.CORES, "flags": SIDES}
    return record.finish("frozen", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
