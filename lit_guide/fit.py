"""`fit`, `validate` and `test`: the whole run, in order.

`start` makes what a command needs, `fit` is what happens from there to the exported files.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_guide.engine import tables
from lit_guide.engine.classifier import missing
from lit_guide.engine.config.cli import ClassifierCLI
from lit_guide.engine.errors import Stopped, UserError
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_model
from lit_guide.engine.run.screen import print_closing, print_metrics
from lit_guide.engine.run.weights import write_weights
from lit_guide.engine.train.checkpoints import BestCheckpoint, LastCheckpoint, best_checkpoint
from lit_guide.engine.train.failures import explain_failure
from lit_guide.engine.train.guards import Guards
from lit_guide.engine.train.lean import NoProfiler, leave_out_empty_hooks
from lit_guide.engine.train.metrics import MetricsCSV, Throughput, environment
from lit_guide.engine.train.progress import ProgressBar
from lit_guide.engine.train.stop import Stop
from lit_guide.engine.train.summary import Summary
from lit_guide.engine.train.writer import CheckpointWriter
from lit_guide.export.command import formats, raise_for
from lit_guide.model import LitClassifier

# Callbacks of parts: the key of their flags -> their class, there while the part's folder is.
CALLBACKS: dict[str, str] = {}


class Start(ClassifierCLI):
    """What a command has once it was started: settings, data and model, and these."""

    trainer: Trainer
    stop: Stop
    throughput: Throughput
    validated: bool
    tested: bool


def flags() -> dict[str, type]:
    """Key -> the class whose arguments are flags below it: exports, and callbacks of parts."""
    return {**{f"export.{name}": cls for name, cls in formats().items()}, **tables.load(CALLBACKS)}


def start(command: str, args: list[str]) -> Start:
    """Settings, data, model, run directory, callbacks and trainer of a command, in this order."""
    cli = Start(command, args, LitClassifier, flags(), tables.gone(CALLBACKS))
    training, settings, going_on = command == "fit", cli.config.trainer, cli.continued is not None
    cli.build("trainer" if cli.call.images else None)
    getattr(cli.datamodule, "rows", None)  # what is wrong with the data is said before there is a run directory
    cli.validated = training and settings.limit_val_batches != 0 and has(cli, "val", "validation_step")
    cli.tested = training and has(cli, "test", "test_step")
    cli.run_dir = claim_directory(cli)
    try:
        cli.stop, cli.throughput = Stop(), Throughput()
        callbacks: list[Callback] = [cli.stop, cli.throughput]
        if settings.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if training:
            if settings.enable_model_summary is not False:
                callbacks.append(Summary())
            callbacks += [Guards(), LearningRateMonitor("epoch"), *(cli.built[key] for key in tables.load(CALLBACKS))]
        if training and settings.enable_checkpointing is not False:
            begun = int((cli.checkpoint or {}).get("global_step", 0))
            callbacks.append(BestCheckpoint(cli.run_dir, going_on, "val/loss" if cli.validated else "train/loss"))
            callbacks.append(LastCheckpoint(cli.run_dir, cli.stop, cli.config.checkpoint.every_n_steps, begun, cli.validated))
        given = cli.config_init.trainer.get("logger")
        others = [] if given in (None, True, False) else given if isinstance(given, list) else [given]
        cli.trainer = cli.make_trainer(
            callbacks,
            plugins=[CheckpointWriter()],
            logger=[MetricsCSV(cli.run_dir, rows_to_keep(cli)), *others] if training else False,
            profiler=cli.config_init.trainer.get("profiler") or NoProfiler(),
        )
    except UserError:
        if training and not going_on:
            runs.release_run_dir(cli.run_dir)
        raise
    if not cli.call.images:
        leave_out_empty_hooks(cli.trainer, cli.model)
    return cli


def fit(args: list[str]) -> None:
    """Train, score the best weights, export them, and leave everything in the run directory."""
    cli = start("fit", args)
    trainer, run_dir, began = cli.trainer, cli.run_dir, time.perf_counter()
    if trainer.is_global_zero:
        report_changes(cli)
        # Weights and two Adam moments in best, last and the one being written; best.safetensors, three exports; 4 bytes each.
        runs.check_space(run_dir, needed=4 * (3 * 3 + 1 + 3) * sum(p.numel() for p in cli.model.parameters()))
        (run_dir / runs.WEIGHTS).unlink(missing_ok=True)  # of a best model that this training may surpass
        cli.save_config()
        print(f"Run directory: {run_dir}")
    try:
        with cli.stop.installed():
            run_trainer(cli, trainer.fit, cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
            if trainer.is_global_zero and cli.checkpoint is not None and trainer.global_step == cli.checkpoint["global_step"]:
                print(f"Nothing was left to train. To train on, {limit_of(trainer)}.")
            finish(cli, began)
    except (KeyboardInterrupt, Stopped):
        if trainer.is_global_zero and (go_on := runs.how_to_go_on(run_dir)):
            print(f"Saved {runs.LAST.name}. {go_on}")
        raise
    finally:
        runs.leave_run_dir()


def finish(cli: Start, began: float) -> None:
    """What comes after training: figures of the best weights, their files, and the closing table."""
    trainer, run_dir = cli.trainer, cli.run_dir
    best = trainer.strategy.broadcast(best_checkpoint(trainer))  # one process writes it: the others would not see it yet
    if best is None and trainer.is_global_zero:
        print("No checkpoint was saved (fast_dev_run, or no training step), so nothing was exported.")
    figures: dict[str, dict[str, Any]] = {}
    to_load = best  # best.ckpt is read once: what comes later finds its weights in the model
    for section, wanted, evaluate in (("val", cli.validated, trainer.validate), ("test", cli.tested, trainer.test)):
        figures[section] = {}
        if wanted:
            run_trainer(cli, evaluate, cli.model, datamodule=cli.datamodule, ckpt_path=to_load, verbose=False)
            figures[section], to_load = metrics_of(cli), None
    if not trainer.is_global_zero:
        return
    measured: dict[str, Any] = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    measured |= cli.throughput.figures(time.perf_counter() - began)
    runs.update_results(run_dir, {**environment(trainer), **measured, **figures})
    if best is not None:
        model, crop = cli.model, getattr(cli.datamodule, "crop", None)
        if to_load is not None or isinstance(trainer.strategy, FSDPStrategy):  # not loaded yet, or a part of it only
            model, _ = load_model(best, type(cli.model))
        shared = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "crop": crop}
        write_weights(shared, run_dir / runs.WEIGHTS)
        for name in formats():
            export = cli.built[f"export.{name}"]
            if export.enabled and not missing(model):
                export.run(model, run_dir, crop)
    results = runs.read_results(run_dir)
    print_closing(run_dir, results, missing(cli.model))
    raise_for(results.get("exports", []), run_dir)


def validate(args: list[str]) -> None:
    """Score a checkpoint on the validation split."""
    score(start("validate", args), "val")


def test(args: list[str]) -> None:
    """Score a checkpoint on the test split."""
    score(start("test", args), "test")


def score(cli: Start, section: str) -> None:
    """Run an evaluation and add its figures to results.json."""
    evaluate = getattr(cli.trainer, cli.command)
    verbose = cli.config.verbose
    with cli.stop.installed():
        run_trainer(cli, evaluate, cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, verbose=verbose)
    if cli.trainer.is_global_zero:
        metrics = metrics_of(cli)
        runs.update_results(cli.run_dir, {**environment(cli.trainer), section: metrics})
        print_metrics(cli.command.capitalize(), {k: v for k, v in metrics.items() if isinstance(v, float)})
        print(f"Written to {cli.run_dir / 'results.json'}")


def run_trainer(cli: Start, step: Callable[..., Any], model: LightningModule, **kwargs: Any) -> Any:
    """Call a method of the trainer; what it raises is told in words, and a Ctrl-C is a KeyboardInterrupt again."""
    try:
        return step(model, weights_only=True, **kwargs)
    except Stopped:
        raise
    except SystemExit:
        if cli.trainer.interrupted:  # Lightning made exit 1 of it
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        told = explain_failure(error, cli.trainer, cli.datamodule)
        if told is None and cli.stop.received:  # the signal went to what this process waited for, such as a compiler
            raise Stopped(cli.stop.received) from error
        if told is None:
            raise
        raise told from error


def claim_directory(cli: Start) -> Path:
    """The run directory: the continued run's, a new one, or for an evaluation the one of its checkpoint."""
    call, name = cli.call, cli.config.name
    if cli.continued is not None:
        runs.enter_run_dir(cli.continued)
        return cli.continued
    if cli.command == "fit":
        return runs.claim_run_dir(call.run_dir, name, call.resume)
    if call.run_dir is not None:
        path = Path(call.run_dir).absolute()
    else:
        path = runs.run_of_checkpoint(Path(str(cli.ckpt_path))) or runs.claim_run_dir(None, name)
    runs.make_results_dir(path)
    runs.check_space(path)
    return path


def has(cli: Start, split: str, step: str) -> bool:
    """Whether there is a split to score, and the model has the step that scores it."""
    rows = getattr(cli.datamodule, "rows", None)
    there = len(rows[split]) > 0 if rows is not None else is_overridden(f"{split}_dataloader", cli.datamodule)
    return there and is_overridden(step, cli.model)


def rows_to_keep(cli: Start) -> int | None:
    """Rows of metrics.csv that a run goes on after; None: all, also those of the evaluation at the end of its training."""
    if cli.continued is None and cli.call.resume:
        return 0
    if cli.continued is None or cli.checkpoint is None:
        return None
    results, limits = runs.read_results(cli.run_dir), cli.config.trainer
    ended = results.get("steps") == cli.checkpoint["global_step"]
    # That evaluation comes again, and its rows would stand there twice.
    nothing_left = limits.max_epochs == results.get("epochs") or limits.max_steps == results.get("steps")
    return None if ended and not nothing_left else cli.checkpoint.get("metrics_rows")


def limit_of(trainer: Trainer) -> str:
    """What to do about the limit that ended this run."""
    if trainer.global_step == trainer.max_steps:
        return f"set --trainer.max_steps above {trainer.max_steps}"
    if trainer.current_epoch == trainer.max_epochs:
        return f"set --trainer.max_epochs above {trainer.max_epochs}"
    return "give more --trainer.max_time; it counts the run from its start"


def metrics_of(cli: Start) -> dict[str, Any]:
    """The figures of the evaluation that just ran, with its confusion matrix."""
    logged = {name.partition("/")[2] or name: round(float(value), 6) for name, value in cli.trainer.callback_metrics.items()}
    matrix_KK = getattr(cli.model, "confusion_matrix_KK", None)
    return {**logged, "confusion_matrix": matrix_KK.tolist()} if logged and matrix_KK is not None else logged


def report_changes(cli: Start) -> None:
    """Say which settings given now differ from the checkpoint's; they win."""
    if cli.checkpoint is not None and cli.ckpt_path is not None:
        for name, before, after in differences(cli.checkpoint["hyper_parameters"], cli.model.hparams, "model"):
            print(f"{name} is {after} as given, in place of {before} in {Path(cli.ckpt_path).name}.")


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
