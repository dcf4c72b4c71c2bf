"""To be able to go on exactly where a run stopped costs next to nothing.

Claims:

(a) An epoch with the seeded order of samples and the seeding of every batch and step takes <= 1.01 times as long as one over a
    plain DataLoader(shuffle=True) of the same dataset without any seeding: ResNet-18 at 64 px, batches of 32, images in memory,
    two threads; median of the ratios of 7 rounds (n = 7).
(b) `--checkpoint.every_n_steps 10` makes training steps take <= 1.05 times as long as without checkpoints in the middle of an
    epoch: ResNet-18 at 128 px, batches of 32, Adam, two threads; median of the ratios of 4 rounds of 20 steps and two
    checkpoints each (n = 4), in alternation.

Recorded, not claimed: (a) for the small CNN on the digits, whose steps take milliseconds.

Both use the trainer of `lit-guide fit` with all of its callbacks. A round of (a) is one training, without checkpoints: an epoch
to warm up, then four, of which the first and the last have the seeds (in every second round the two in the middle): same
process, same network, same memory. An epoch has 12 steps; its time is from its start to the end of its last batch, with the
making of its order. A round of (b) is two trainings. A clock in `on_train_batch_start` times the steps after 5 to warm up; the
checkpoint at the end of the epoch, which both sides have, is not in the figures. A checkpoint holds 134 MB and goes to the
folder for temporary files.

    python benchmarks/resume_cost.py [--quick]
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fits
import record

ROUNDS_A, STEPS_A, SIDE_A, LIMIT_A = 7, 12, 64, 1.01
ROUNDS_B, STEPS_B, SIDE_B, LIMIT_B = 4, 26, 128, 1.05  # the clock takes the start of a step: it sees 25 of 26
BATCH, SKIPPED, EVERY = 32, 5, 10
ROUNDS_DIGITS, EPOCHS_DIGITS = 3, 40


def alternate(data: Any, is_exact: Callable[[int], bool]) -> Any:
    """These data, but in some epochs as a plain DataLoader gives them, in an order that nobody seeds."""
    from torch.utils.data import DataLoader

    exact_loader, exact_seeding = data.train_dataloader, data.on_before_batch_transfer

    def train_dataloader() -> Any:
        ours = exact_loader()
        if is_exact(data.trainer.current_epoch):
            return ours
        return DataLoader(ours.dataset, data.batch_size, shuffle=True, collate_fn=ours.collate_fn)

    def on_before_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
        return exact_seeding(batch, dataloader_idx) if is_exact(data.trainer.current_epoch) else batch

    data.train_dataloader, data.on_before_batch_transfer = train_dataloader, on_before_batch_transfer
    return data


def epochs(index: int, options: Sequence[str], count: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of an epoch with and without the seeds, and their ratio; `count` epochs after one to warm up."""
    from lightning.pytorch.callbacks import Callback

    def is_exact(epoch: int) -> bool:
        return (epoch % 4 in (0, 1)) == (
            index % 2 == 0
        )  # 1 to 4: with, without, without, with; in odd rounds the other way round

    seconds: dict[bool, list[float]] = {True: [], False: []}

    class EpochClock(Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.is_last_batch and trainer.current_epoch:
                seconds[is_exact(trainer.current_epoch)].append(time.perf_counter() - self.started)

    flags = ["--trainer.max_epochs", str(1 + count), "--trainer.reload_dataloaders_every_n_epochs", "1"]
    cli = fits.build([*options, *flags, "--trainer.enable_checkpointing", "false"], folder)
    cli.trainer.callbacks.append(EpochClock())
    fits.train(cli, alternate(cli.datamodule, is_exact))
    assert len(seconds[True]) == len(seconds[False]) == count // 2
    exact, plain = (1000 * sum(seconds[side]) / len(seconds[side]) for side in (True, False))
    return {"exact_ms": round(exact, 3), "plain_ms": round(plain, 3), "epoch_ratio": round(exact / plain, 5)}


def saving(index: int, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Milliseconds of a step with and without checkpoints every so many steps, and their ratio."""
    sides = {"none": list(options), "every": [*options, "--checkpoint.every_n_steps", str(EVERY)]}
    figures: dict[str, Any] = {}
    for name in list(sides)[:: -1 if index % 2 else 1]:
        figures[f"{name}_ms"] = round(fits.step(sides[name], SKIPPED, folder), 3)
    return figures | {"saving_ratio": round(figures["every_ms"] / figures["none_ms"], 5)}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick, wait = given.quick, None if given.quick else given.wait
    fits.prepare()
    batch, steps_a, steps_b, side_b = (8, 3, 13, 64) if quick else (BATCH, STEPS_A, STEPS_B, SIDE_B)
    resnet = ["--model.network", "resnet18", "--data.batch_size", str(batch)]
    digits = ["--data", "DigitsData", "--data.batch_size", "64", "--trainer.limit_val_batches", "0"]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options_a = [*fits.random_images(folder, batch * steps_a, SIDE_A), *resnet]
        options_b = [*fits.random_images(folder, batch * steps_b, side_b), *resnet]
        few = 4 if quick else EPOCHS_DIGITS
        found["a"] = record.repeat(1 if quick else ROUNDS_A, lambda index: epochs(index, options_a, 4, folder), wait)
        found["digits"] = record.repeat(1 if quick else ROUNDS_DIGITS, lambda index: epochs(index, digits, few, folder), wait)
        found["b"] = record.repeat(1 if quick else ROUNDS_B, lambda index: saving(index, options_b, folder), wait)
    middle = {part: record.medians(rounds) for part, rounds in found.items()}
    print(f"medians: {middle}")
    text_a = f"time of an epoch with all that an exact resume needs over one of a plain shuffled loader (ResNet-18, {SIDE_A} px)"
    text_b = f"time of a step with a checkpoint every {EVERY} steps over one without (ResNet-18, {SIDE_B} px)"
    claims = [
        record.claim(text_a, middle["a"]["epoch_ratio"], LIMIT_A, len(record.undisturbed(found["a"]))),
        record.claim(text_b, middle["b"]["saving_ratio"], LIMIT_B, len(record.undisturbed(found["b"]))),
    ]
    rounds = [{"claim": part, **item} for part, items in found.items() for item in items]
    settings = {"batch": BATCH, "steps_a": STEPS_A, "steps_b": STEPS_B, "skipped_b": SKIPPED, "threads": fits.CORES}
    return record.finish("resume_cost", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
