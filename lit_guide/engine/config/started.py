"""A command that was started: its settings, data and model, what runs them, and what is asked of them on the way."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_guide.engine.config.cli import ClassifierCLI
from lit_guide.engine.errors import ConfigError, Stopped, UserError, first_line, say
from lit_guide.engine.run import runs
from lit_guide.engine.train.checkpoints import BestCheckpoint
from lit_guide.engine.train.failures import explain_failure
from lit_guide.engine.train.metrics import IN_RESULTS, Throughput, write_confusion
from lit_guide.engine.train.stop import Stop


class Started(ClassifierCLI):
    """What `fit.start` makes of a command line.

    Attributes:
        trainer: the trainer.
        stop: what takes signals over.
        throughput: what measures the speed of training.
        best: what keeps the best checkpoint.
        validated: whether `fit` scores the validation split.
        tested: whether `fit` scores the test split.
    """

    trainer: Trainer
    stop: Stop
    throughput: Throughput
    best: BestCheckpoint | None
    validated: bool
    tested: bool

    def __init__(self, command: str, args: list[str], *more: Any) -> None:
        try:
            super().__init__(command, args, *more)
        except (UserError, OSError):
            raise
        except Exception as error:  # values so odd that the parser gives way
            files = ", ".join(word for word in [*self.call.args, self.ckpt_path or ""] if word.endswith((".yaml", ".ckpt")))
            raise ConfigError(f"{files}: settings that can't be used: {type(error).__name__}: {first_line(error)}.") from error

    def run(self, step: Callable[..., Any], model: LightningModule, **kwargs: Any) -> Any:
        """Call a method of the trainer; what it raises is told in words, and a Ctrl-C is a KeyboardInterrupt again."""
        try:
            return step(model, weights_only=True, **kwargs)
        except Stopped:
            raise
        except SystemExit:
            if self.trainer.interrupted:  # Lightning made exit 1 of it
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            told = explain_failure(error, self.trainer, self.datamodule, (self.checkpoint or {}).get("global_step"))
            if told is None and self.stop.received:  # the signal went to what this process waited for, such as a compiler
                raise Stopped(self.stop.received) from error
            if told is None:
                raise
            raise told from error

    def claim_directory(self) -> Path:
        """The run directory: the continued run's, a new one, or for an evaluation the one of its checkpoint."""
        call, name = self.call, self.config.name
        if self.continued is not None:
            runs.enter_run_dir(self.continued)
            return self.continued
        if self.command == "fit":
            return runs.claim_run_dir(call.run_dir, name, call.resume)
        if call.run_dir is not None:
            path = Path(call.run_dir).absolute()
        else:
            path = runs.run_of_checkpoint(Path(str(self.ckpt_path))) or runs.claim_run_dir(None, name)
        runs.make_results_dir(path)
        runs.check_space(path)
        return path

    def check_offers(self) -> None:
        """See that the model and the data have what the command calls.

        Raises:
            ConfigError: they have not; the message says what to add.
        """
        called = {"fit": ("training_step", "train"), "validate": ("validation_step", "val"), "test": ("test_step", "test")}
        step, split = called.get(self.command, (None, "predict"))
        if step is not None and not is_overridden(step, self.model):
            lacking, of = f"{step}(self, batch, batch_idx)", self.model
        elif self.datamodule is not None and not is_overridden(f"{split}_dataloader", self.datamodule):
            lacking, of = f"{split}_dataloader(self)", self.datamodule
        else:
            return
        raise ConfigError(f"{type(of).__name__} lacks what {self.command} calls: def {lacking}.")

    def has(self, split: str, step: str) -> bool:
        """Whether there is a split to score, and the model has the step that scores it."""
        rows = getattr(self.datamodule, "rows", None)
        there = len(rows[split]) > 0 if isinstance(rows, Mapping) else is_overridden(f"{split}_dataloader", self.datamodule)
        return there and is_overridden(step, self.model)

    def rows_to_keep(self) -> int | None:
        """Rows of metrics.csv that a run goes on after; None: all, also those of the evaluation at the end of its training."""
        if self.continued is None and self.call.resume:
            return 0
        if self.continued is None or self.checkpoint is None:
            return None
        results, limits = runs.read_results(self.run_dir), self.config.trainer
        ended = results.get("steps") == self.checkpoint["global_step"]
        # That evaluation comes again, and its rows would stand there twice.
        nothing_left = limits.max_epochs == results.get("epochs") or limits.max_steps == results.get("steps")
        return None if ended and not nothing_left else self.checkpoint.get("metrics_rows")

    def metrics(self, split: str) -> dict[str, Any]:
        """The figures of the evaluation that just ran, with its confusion matrix or the name of the file that has it."""
        logged = {name.partition("/")[2] or name: round(float(value), 6) for name, value in self.trainer.callback_metrics.items()}
        matrix_KK = getattr(self.model, "confusion_matrix_KK", None)
        if not logged or matrix_KK is None or len(matrix_KK) <= IN_RESULTS:
            return {**logged, "confusion_matrix": matrix_KK.tolist()} if logged and matrix_KK is not None else logged
        path = self.run_dir / f"confusion_{split}.csv"
        if self.trainer.is_global_zero:
            names = self.model.hparams.get("class_names", getattr(self.model, "class_names", range(len(matrix_KK))))
            write_confusion(path, matrix_KK.cpu(), names)
        return {**logged, "confusion_matrix": path.name}

    def report_changes(self) -> None:
        """Say which settings given now differ from the checkpoint's; they win."""
        if self.checkpoint is not None and self.ckpt_path is not None:
            for name, before, after in differences(self.checkpoint["hyper_parameters"], self.model.hparams, "model"):
                say(f"{name} is {after} as given, in place of {before} in {Path(self.ckpt_path).name}.")


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    """(key, before, after) of what is not the same."""
    found: list[tuple[str, Any, Any]] = []
    for key, before in saved.items():
        after = now.get(key)
        if key in ("mean", "std"):  # restored with the weights
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before.get("name") == after.get("name"):
            found += differences(before, after, f"{prefix}.{key}")
        elif before != after and not (isinstance(before, float) and isinstance(after, float) and math.isclose(before, after)):
            found.append((f"{prefix}.{key}", before, after))
    return found
