"""`checkpoints/best.ckpt` and `checkpoints/last.ckpt`: always these two, under plain names."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as known
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, StochasticWeightAveraging
from torch import distributed

from lit_guide.engine.errors import ConfigError, Stopped, UserError
from lit_guide.engine.run.checkpoint import reading_of
from lit_guide.engine.train.going_on import go_on, place_of
from lit_guide.engine.train.metrics import MetricsCSV
from lit_guide.engine.train.stop import Stop
from lit_guide.engine.train.writer import CheckpointWriter


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with one file, best.ckpt, of the lowest `monitor`, in the directory of a run that may have been moved.

    `continued` is whether this goes on with that run; a new run that starts from a checkpoint has a best of its own. Where the
    model does not log `monitor`, the latest checkpoint is kept.
    """

    def __init__(self, run_dir: Path, continued: bool = False, monitor: str = "val/loss") -> None:
        super().__init__(run_dir / "checkpoints", filename="best", enable_version_counter=False, monitor=monitor)
        self.continued = continued
        self.wanted = monitor  # `monitor` is None once it is known that the model does not log it

    on_train_batch_end = Callback.on_train_batch_end  # it is saved when an epoch ends; asking after each batch costs time

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if it is time to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.wanted.startswith("val"):
            self._look_for_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        if self.wanted.startswith("train"):
            self._look_for_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def _look_for_monitor(self, trainer: Trainer) -> None:
        self.monitor = self.wanted if self.wanted in trainer.callback_metrics else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, for the file here: Lightning would drop it where the directory was moved."""
        if self.continued:
            best = str(Path(str(self.dirpath), "best.ckpt")) if state_dict["best_model_path"] else ""
            moved = {"dirpath": self.dirpath, "best_model_path": best, "kth_best_model_path": best, "last_model_path": ""}
            scores = dict(zip([best], state_dict["best_k_models"].values(), strict=False))  # none, or the one there is
            super().load_state_dict({**state_dict, **moved, "best_k_models": scores})


class LastCheckpoint(Checkpoint):
    """last.ckpt: where a run goes on, exactly. Saved when an epoch ends, every so many steps, and when the run is stopped.

    It is saved only where Lightning comes back to the same place: after a step and the validation that follows it, and at an
    epoch's last batch when the epoch has ended; not while gradients are accumulated. What is due earlier waits for that.

    `every_n_steps` are the optimizer steps between two saves in the middle of an epoch; None: only when it ends. `start` is the
    step that the run goes on from, as this process sees it, and `validated` whether there is anything to validate on.
    """

    def __init__(
        self, run_dir: Path, stop: Stop, every_n_steps: int | None = None, start: int = 0, validated: bool = True
    ) -> None:
        self.path = run_dir / "checkpoints" / "last.ckpt"
        self.stop, self.every_n_steps, self.start, self.validated = stop, every_n_steps, start, validated
        self._due, self._held = False, False  # held: the run is to end, but gradients are being accumulated
        self._saved = -1  # the batch, counted over all epochs, after which last.ckpt was saved
        # What a checkpoint knows and Lightning does not restore: schedules and callbacks look at the last validation's loss.
        self._val_loss: float | None = None
        self._plateau_due = False  # ReduceLROnPlateau is told after the epoch's checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that all processes go on from the same place: a directory may be shared by none, or lag behind on one machine."""
        check_callbacks(trainer, self.path.parent)  # again: a model may bring some
        if stage == "fit" and trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(found, self.start)
            if len(set(found)) > 1:
                raise UserError(
                    f"The processes of this run see another {self.path}: steps {', '.join(map(str, found))}. "
                    "--run_dir must be on a disk that all machines share."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide `max_steps` while Lightning 2.6 restores its loops: with it, an epoch that had ended would end a second time.

        https://github.com/Lightning-AI/pytorch-lightning/issues/19617
        """
        self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish what the checkpoint was too early for; stop here if that is wished for already."""
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        if self._val_loss is not None:
            trainer.callback_metrics["val/loss"] = torch.tensor(self._val_loss)
        if self._plateau_due:
            self._plateau_due = False
            _step_plateau(trainer)
        self._stop_if_agreed(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time to."""
        stopping = self.stop.vote(trainer)
        if self.every_n_steps and not _accumulating(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._due = True
        self._save_in_between(trainer, stopping, after_step=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, in the middle of an epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_in_between(trainer, self.stop.vote(trainer, at_once=True))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a whole epoch; one that was broken off is saved already."""
        if trainer.is_last_batch:
            self._plateau_due = True
            self._save(trainer)
            self._plateau_due = False
            if trainer.fit_loop.restarting:  # Lightning leaves it out in an epoch that goes on from its middle
                _step_plateau(trainer)
            self._stop_if_agreed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that ends before its first validation has one model only, the best one too; so is one that is averaged now.

        StochasticWeightAveraging puts the mean of the last epochs into the model here, and into no checkpoint.
        """
        best = next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint))
        if trainer.global_step and (not best.best_model_path or _is_averaged_now(trainer)):
            best.best_model_path = str(self.path.with_name("best.ckpt"))
            self._save(trainer, Path(best.best_model_path))
        self._stop_if_agreed(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how much of metrics.csv the checkpoint has seen, and what is still to be done for the epoch."""
        checkpoint["metrics_rows"] = sum(logger.rows for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        loss = trainer.callback_metrics.get("val/loss")
        checkpoint["val_loss"] = None if loss is None else float(loss)
        checkpoint["plateau_due"] = self._plateau_due
        checkpoint |= reading_of(trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it
        checkpoint["place"] = place_of(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take that over; a checkpoint of plain Lightning has none of it."""
        self._val_loss, self._plateau_due = checkpoint.get("val_loss"), checkpoint.get("plateau_due", False)
        if trainer.state.fn == "fit":
            go_on(checkpoint, trainer)

    def _validates(self, trainer: Trainer) -> bool:
        """Whether Lightning validates after this batch because it is its turn, and not for the run's end."""
        loop, every = trainer.fit_loop, trainer.check_val_every_n_epoch
        if not self.validated or trainer.val_check_batch is None or (every and (trainer.current_epoch + 1) % every):
            return False
        return ((loop.batch_idx if every else loop.total_batch_idx) + 1) % trainer.val_check_batch == 0

    def _save_in_between(self, trainer: Trainer, stopping: int, after_step: bool = False) -> None:
        """Save between two batches of an epoch, and stop, if that is due and the place is right."""
        if _accumulating(trainer):
            self._held, trainer.should_stop = self._held or trainer.should_stop, False
            return
        if self._held:
            self._held, trainer.should_stop = False, True
        # Where the run ends but not this epoch, it can be gone on with.
        ending = trainer.global_step == trainer.max_steps
        if trainer.should_stop:  # by early stopping or the time limit, unless a minimum stands against it
            ending |= trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
        if trainer.is_last_batch or not (self._due or stopping or ending) or (after_step and self._validates(trainer)):
            return
        if self._saved != trainer.fit_loop.total_batch_idx:
            self._save(trainer)
        if stopping:
            raise Stopped(stopping)

    def _stop_if_agreed(self, trainer: Trainer) -> None:
        if number := self.stop.vote(trainer, at_once=True):
            if self._saved < 0:
                self._save(trainer)
            raise Stopped(number)

    def _save(self, trainer: Trainer, path: Path | None = None) -> None:
        self._due, self._saved = False, trainer.fit_loop.total_batch_idx
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it
            trainer.save_checkpoint(path or self.path, weights_only=False)


def leave_averaging(trainer: Trainer) -> None:
    """Take the callbacks away that average weights: they swap them where a checkpoint is loaded, whose weights are averaged."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    callbacks[:] = [one for one in callbacks if not isinstance(one, known.WeightAveraging | StochasticWeightAveraging)]


def _is_averaged_now(trainer: Trainer) -> bool:
    """Whether StochasticWeightAveraging has come to its end, and so put its mean into the model."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    ends = [one.swa_end for one in callbacks if isinstance(one, StochasticWeightAveraging) and one.n_averaged is not None]
    return any(trainer.current_epoch > end for end in ends)


def check_callbacks(trainer: Trainer, folder: Path) -> None:
    """Refuse callbacks that write `best` or `last` into a run's `folder`, or set what config.yaml holds, by a ConfigError."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    for callback in callbacks:
        name, last = type(callback).__name__, getattr(callback, "save_last", None) and callback.CHECKPOINT_NAME_LAST
        if isinstance(callback, known.BatchSizeFinder | known.LearningRateFinder):
            raise ConfigError(f"{name} changes what config.yaml states: leave it out, and give --data.batch_size and the rate.")
        if isinstance(callback, Checkpoint) and not isinstance(callback, BestCheckpoint):
            given = [getattr(callback, "filename", None), last]
            files = [Path(getattr(callback, "dirpath", None) or folder, file) for file in given if file]
            names = [file.name.lower().partition(".")[0] for file in files if file.parent.resolve() == folder.resolve()]
            if {"best", "last"} & set(names):
                raise ConfigError(f"{name} would write best or last into {folder.name}/, and these names are the run's own.")


def _accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer's step is still to come, after this batch."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch


def _step_plateau(trainer: Trainer) -> None:
    loss = trainer.callback_metrics.get("val/loss")
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and loss is not None:
            config.scheduler.step(float(loss))  # type: ignore[arg-type]  # ReduceLROnPlateau takes a metric


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The best checkpoint of this run; None where none was saved (`fast_dev_run`)."""
    if isinstance(trainer.strategy.checkpoint_io, CheckpointWriter):
        trainer.strategy.checkpoint_io.wait()
    saving = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    saving.sort(key=lambda callback: not isinstance(callback, BestCheckpoint))
    return next((Path(path) for callback in saving if Path(path := callback.best_model_path).is_file()), None)
