"""A run that goes on with other batches, processes or epochs: at the same sample, and at the same share of its schedule."""

from typing import Any

from lightning.pytorch import Trainer

from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.errors import is_first

OF_THE_END = ("total_steps", "_schedule_phases")  # what OneCycleLR keeps of where it ends


def place_of(trainer: Trainer) -> dict[str, int] | None:
    """Where in its epoch a run is, as plain numbers for its checkpoint; None where the data are of another class."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    if not isinstance(data, ImageDataModule):
        return None
    batches, batch = data.batches(), trainer.fit_loop.epoch_loop.batch_progress.current.ready
    done = batches.begin(trainer.current_epoch, batch) if batch < len(batches) else batches.count
    by_step = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    a_step = batches.step * trainer.accumulate_grad_batches
    return {"samples": done, "of": batches.count, "a_batch": batches.step, "a_step": a_step, "by_step": int(by_step)}


def go_on(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Change a checkpoint, in place, so that this run goes on at its sample, and its schedule at its share of the run.

    A schedule of steps comes to its end with the run; where only epochs were added, it stands where it did.
    """
    was, data = checkpoint.get("place"), trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    if not was or not isinstance(data, ImageDataModule):
        return
    batches, epoch = data.batches(), checkpoint["epoch"]
    left, step = was["of"] - was["samples"], batches.step
    if left and was["of"] == batches.count and was["a_batch"] != step:
        at = len(batches) - max(1, batches.batches_of(left))
        data.shifted = epoch, was["samples"] - at * step
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        progress.update({key: count + at - progress["ready"] for key, count in progress.items()})  # one is not completed yet
        if is_first():
            now = f"{step} a batch, {was['a_batch']} before"
            print(f"Epoch {epoch + 1} goes on after {was['samples']:,} of {was['of']:,} images: {now}.")
    if not was["by_step"]:
        return
    at_step = checkpoint["global_step"]
    if was["a_step"] != step * trainer.accumulate_grad_batches and data.optimizer_steps != trainer.max_steps:
        at_step = int((epoch + was["samples"] / was["of"]) * data.optimizer_steps / (trainer.max_epochs or 1))
    for state in checkpoint["lr_schedulers"]:
        state["last_epoch"] = at_step
        for key in OF_THE_END:
            state.pop(key, None)
