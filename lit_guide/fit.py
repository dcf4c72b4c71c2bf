"""`fit`, `validate` and `test`: the whole run, in order, from what `start` makes of a command to the exported files."""

import time
from typing import Any

from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.strategies import FSDPStrategy

import lit_guide.data  # noqa: F401  # a source that is imported goes by its short name: --data DigitsData
from lit_guide.engine import tables
from lit_guide.engine.config.started import Started
from lit_guide.engine.errors import Stopped, UserError, say
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_model, read_checkpoint, reading_of
from lit_guide.engine.run.screen import print_metrics
from lit_guide.engine.train import checkpoints
from lit_guide.engine.train.metrics import MetricsCSV, Throughput, environment
from lit_guide.engine.train.progress import NoProfiler, ProgressBar, Summary, leave_out_empty_hooks
from lit_guide.engine.train.stop import Stop
from lit_guide.engine.train.writer import CheckpointWriter
from lit_guide.export.classifier import missing
from lit_guide.export.closing import ending, limit_of, print_closing
from lit_guide.export.command import formats, raise_for
from lit_guide.export.weights import write_weights
from lit_guide.model import LitClassifier

# Callbacks of parts: the key of their flags -> their class, there while the part's folder is.
CALLBACKS = {
    "guards": "lit_guide.parts.guards.callback:Guards",
    "slow_data": "lit_guide.parts.slow_data.callback:SlowData",
    "threads": "lit_guide.parts.threads.callback:Threads",
}


def flags() -> dict[str, type]:
    """Key -> the class whose arguments are flags below it: exports, and callbacks of parts."""
    return {**{f"export.{name}": cls for name, cls in formats().items()}, **tables.load(CALLBACKS)}


def start(command: str, args: list[str]) -> Started:
    """Settings, data, model, run directory, callbacks and trainer of a command, in this order."""
    cli = Started(command, args, LitClassifier, flags(), tables.gone(CALLBACKS))
    training, settings, going_on = command == "fit", cli.config.trainer, cli.continued is not None
    cli.build("trainer" if cli.call.images else None)
    if cli.checkpoint is not None and hasattr(cli.datamodule, "least_side"):
        cli.datamodule.least_side = cli.checkpoint["least_side"]  # as it was trained: in 0.1, on all pixels of a photo
    getattr(cli.datamodule, "rows", None)  # what is wrong with the data is said before there is a run directory
    if training and isinstance(cli.model, LitClassifier):
        cli.model.weigh(cli.datamodule)
    cli.validated = training and settings.limit_val_batches != 0 and cli.has("val", "validation_step")
    cli.tested = training and cli.has("test", "test_step")
    cli.check_offers()
    cli.run_dir = cli.claim_directory()
    try:
        cli.stop, cli.throughput, cli.best = Stop(), Throughput(), None
        callbacks: list[Callback] = [cli.stop, cli.throughput]
        given = {key: listed(cli.config_init.trainer.get(key)) for key in ("callbacks", "logger")}
        if settings.enable_progress_bar is not False and not any(isinstance(one, AnyProgressBar) for one in given["callbacks"]):
            callbacks.append(ProgressBar())
        if training:
            if settings.enable_model_summary is not False:
                callbacks.append(Summary())
            callbacks += [LearningRateMonitor("epoch"), *(cli.built[key] for key in tables.load(CALLBACKS))]
        if training and settings.enable_checkpointing is not False:
            begun = int((cli.checkpoint or {}).get("global_step", 0))
            cli.best = checkpoints.BestCheckpoint(cli.run_dir, going_on, "val/loss" if cli.validated else "train/loss")
            last = checkpoints.LastCheckpoint(cli.run_dir, cli.stop, cli.config.checkpoint.every_n_steps, begun, cli.validated)
            callbacks += [cli.best, last]
        cli.trainer = cli.make_trainer(
            callbacks,
            plugins=[CheckpointWriter(cli.run_dir / "checkpoints")],
            logger=[MetricsCSV(cli.run_dir, cli.rows_to_keep()), *given["logger"]] if training else False,
            profiler=cli.config_init.trainer.get("profiler") or NoProfiler(),
        )
        if training:
            checkpoints.check_callbacks(cli.trainer, cli.run_dir / "checkpoints")
    except UserError:
        if training and not going_on:
            runs.release_run_dir(cli.run_dir)
        raise
    if not training:
        checkpoints.leave_averaging(cli.trainer)
    if not cli.call.images:
        leave_out_empty_hooks(cli.trainer, cli.model)
    return cli


def listed(given: Any) -> list[Any]:
    """What a key of the trainer gives, which may be one object, several, or none."""
    return [] if given in (None, True, False) else given if isinstance(given, list) else [given]


def fit(args: list[str]) -> None:
    """Train, score the best weights, export them, and leave everything in the run directory."""
    cli = start("fit", args)
    trainer, run_dir, began = cli.trainer, cli.run_dir, time.perf_counter()
    try:
        if trainer.is_global_zero:
            cli.report_changes()
            # Weights and two Adam moments in best, last and the one being written; best.safetensors, three exports; 4 bytes each.
            weights = 4 * sum(p.numel() for p in cli.model.parameters())
            there = sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file())  # of a run that goes on
            needed = max(3 * weights, (3 * 3 + 1 + 3) * weights - there)
            runs.check_space(run_dir, needed, flag="" if cli.continued else "--run_dir")
            cli.save_config()
            say(f"Run directory: {run_dir}")
        with cli.stop.installed():
            cli.run(trainer.fit, cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
            if trainer.is_global_zero and cli.checkpoint is not None and trainer.global_step == cli.checkpoint["global_step"]:
                say(f"Nothing was left to train. To train on, {limit_of(trainer)}.")
            finish(cli, began)
    except (KeyboardInterrupt, Stopped):
        if trainer.is_global_zero and (go_on := runs.how_to_go_on(run_dir)):
            say(f"Saved {runs.LAST.name}. {go_on}")
        raise
    finally:
        if trainer.is_global_zero and not (cli.throughput.images or cli.continued or cli.call.resume):
            runs.release_run_dir(run_dir, written=True)
        runs.leave_run_dir()


def finish(cli: Started, began: float) -> None:
    """What comes after training: figures of the best weights, their files, and the closing table."""
    trainer, run_dir = cli.trainer, cli.run_dir
    best = trainer.strategy.broadcast(checkpoints.best_checkpoint(trainer))  # written by one process, not yet seen by others
    if trainer.is_global_zero:
        say(ending(trainer, cli.best))
    if best is None and trainer.is_global_zero:
        say("No checkpoint was saved (fast_dev_run, or no training step), so nothing was exported.")
    checkpoints.leave_averaging(trainer)
    figures: dict[str, dict[str, Any]] = {}
    to_load = best  # best.ckpt is read once: what comes later finds its weights in the model
    for section, wanted, evaluate in (("val", cli.validated, trainer.validate), ("test", cli.tested, trainer.test)):
        figures[section] = {}
        if wanted and trainer.global_step:  # weights that were not trained have no figures
            cli.run(evaluate, cli.model, datamodule=cli.datamodule, ckpt_path=to_load, verbose=False)
            figures[section], to_load = cli.metrics(section), None
    if not trainer.is_global_zero:
        return
    measured: dict[str, Any] = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    measured |= cli.throughput.figures(time.perf_counter() - began)
    measured |= {} if best is None else {"exports": []}  # those of an earlier part of this run were of other weights
    runs.update_results(run_dir, {**environment(trainer), **measured, **figures})
    if best is not None:
        model, reading = cli.model, reading_of(cli.datamodule)
        if isinstance(trainer.strategy, FSDPStrategy):  # a part of it only
            model, _ = load_model(best, type(cli.model))
        elif to_load is not None:
            model.load_state_dict(read_checkpoint(best)["state_dict"])
        shared = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), **reading}
        write_weights(shared, run_dir / runs.WEIGHTS)
        for name in formats():
            export = cli.built[f"export.{name}"]
            if export.enabled and not missing(model):
                export.run(model, run_dir, reading["crop"])
    results = runs.read_results(run_dir)
    if cli.best is not None and cli.best.monitor is None:
        say(f"best.ckpt is the latest checkpoint: the model logs no {cli.best.wanted} to choose it by.")
    print_closing(run_dir, results, missing(cli.model, later=True))
    raise_for(results.get("exports", []), run_dir)


def validate(args: list[str]) -> None:
    """Score a checkpoint on the validation split."""
    score(start("validate", args), "val")


def test(args: list[str]) -> None:
    """Score a checkpoint on the test split."""
    score(start("test", args), "test")


def score(cli: Started, section: str) -> None:
    """Run an evaluation and add its figures to results.json."""
    evaluate = getattr(cli.trainer, cli.command)
    with cli.stop.installed():
        cli.run(evaluate, cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, verbose=cli.config.verbose)
    if cli.trainer.is_global_zero:
        metrics = cli.metrics(section)
        runs.update_results(cli.run_dir, {**environment(cli.trainer), section: metrics})
        if metrics:
            print_metrics(cli.command.capitalize(), {k: v for k, v in metrics.items() if isinstance(v, float)})
        else:
            say(f"{type(cli.model).__name__} logged nothing: self.log what it is to tell.")
        say(f"Written to {cli.run_dir / 'results.json'}")
