"""What each command does, in which order."""

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import distributed

from lit_guide.engine.config.arguments import last_value
from lit_guide.engine.config.parser import ClassifierCLI, Parser
from lit_guide.engine.errors import ConfigError, Stopped, UserError
from lit_guide.engine.photos.images import UNREADABLE, ImagesToPredict
from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import load_classifier, read_checkpoint
from lit_guide.engine.run.screen import print_closing, print_exports, print_metrics
from lit_guide.engine.run.weights import write_weights
from lit_guide.engine.train.checkpoints import best_checkpoint
from lit_guide.engine.train.failures import explain_failure
from lit_guide.engine.train.metrics import Throughput, environment
from lit_guide.export.callback import EXPORTS, Export
from lit_guide.parts.inspect.command import data
from lit_guide.predict import Gather, print_predictions, write_predictions


def fit(args: list[str]) -> None:
    """Train, export the best checkpoint, test it, and leave everything in the run directory."""
    cli = ClassifierCLI("fit", args)
    _report_changes(cli)
    trainer, model, run_dir = cli.trainer, cli.model, cli.run_dir
    if trainer.is_global_zero:
        # Weights and two Adam moments in best, last and the one being written; best.safetensors, three exports; 4 bytes each.
        runs.check_space(run_dir, needed=4 * (3 * 3 + 1 + 3) * sum(p.numel() for p in model.parameters()))
        (run_dir / runs.WEIGHTS).unlink(missing_ok=True)  # of a best model that this training may surpass
        cli.save_config()
        print(f"Run directory: {run_dir}")
    try:
        with cli.stop.installed():
            _fit(cli)
    except (KeyboardInterrupt, Stopped):
        if trainer.is_global_zero and (go_on := runs.how_to_go_on(run_dir)):
            print(f"Saved {runs.LAST.name}. {go_on}")
        raise
    finally:
        runs.leave_run_dir()


def _fit(cli: ClassifierCLI) -> None:
    """Train, and what comes after."""
    trainer, run_dir, started = cli.trainer, cli.run_dir, time.perf_counter()
    _run(cli, trainer.fit)
    if trainer.is_global_zero and cli.checkpoint is not None and trainer.global_step == cli.checkpoint["global_step"]:
        print(f"Nothing was left to train. To train on, {_limit(trainer)}.")
    best = trainer.strategy.broadcast(best_checkpoint(trainer))  # one process writes it: the others would not see it yet
    if best is None and trainer.is_global_zero:
        print("No checkpoint was saved (fast_dev_run, or no training step), so nothing was exported.")
    val: dict[str, Any] = {}
    if cli.validated:
        _run(cli, trainer.validate, ckpt_path=best, verbose=False)
        val = _metrics(cli)
    test: dict[str, Any] = {}
    if len(cli.datamodule.rows["test"]):
        _run(cli, trainer.test, ckpt_path=best, verbose=False)
        test = _metrics(cli)
    if not trainer.is_global_zero:
        return
    if trainer.world_size > 1:
        for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
            if isinstance(callback, Export):
                callback.export_best(trainer)
    throughput = next(callback for callback in cli.callbacks if isinstance(callback, Throughput))
    results = runs.update_results(
        run_dir,
        {
            **environment(trainer),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            **throughput.figures(time.perf_counter() - started),
            "val": val,
            "test": test,
        },
    )
    if best is not None:
        write_weights(read_checkpoint(best), run_dir / runs.WEIGHTS)
    print_closing(run_dir, results)
    _raise_for_exports(results.get("exports", []), run_dir)


def _limit(trainer: Trainer) -> str:
    """What to do about the limit that ended this run."""
    if trainer.global_step == trainer.max_steps:
        return f"set --trainer.max_steps above {trainer.max_steps}"
    if trainer.current_epoch == trainer.max_epochs:
        return f"set --trainer.max_epochs above {trainer.max_epochs}"
    return "give more --trainer.max_time; it counts the run from its start"


def validate(args: list[str]) -> None:
    """Score a checkpoint on the validation split."""
    _evaluate("validate", "val", args)


def test(args: list[str]) -> None:
    """Score a checkpoint on the test split."""
    _evaluate("test", "test", args)


def predict(args: list[str]) -> None:
    """Classify images, or the test split, and write predictions.csv and predictions.json."""
    cli = ClassifierCLI("predict", args)
    gather = Gather()
    cli.trainer.callbacks.append(gather)  # type: ignore[attr-defined]  # Lightning sets it
    with cli.stop.installed():
        _run(cli, cli.trainer.predict, ckpt_path=cli.ckpt_path, return_predictions=False)
    if not cli.trainer.is_global_zero:
        return
    names, classes = cli.datamodule.sample_names("test"), cli.datamodule.class_names
    rows: list[dict[str, Any]] = []
    bad: dict[str, str] = dict(cli.datamodule.missing) if isinstance(cli.datamodule, ImagesToPredict) else {}
    for name, probability_K, label in zip(names, gather.probability_NK, gather.label_N, strict=False):
        if label == UNREADABLE:
            bad[name] = "not a readable image"
            continue
        top = probability_K.topk(min(3, len(classes)))
        ranked = [(classes[int(k)], round(float(p), 6)) for p, k in zip(top.values, top.indices, strict=True)]
        truth = {"label": classes[int(label)]} if label >= 0 else {}
        rows.append({"file": name, "class": ranked[0][0], "probability": ranked[0][1], **truth, "top": ranked})
    write_predictions(cli.run_dir, rows)
    print_predictions(cli.run_dir, rows)
    if bad:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in bad.items())
        raise UserError(f"{len(rows)} images were predicted, {len(bad)} were not:\n{listed}")


def export(args: list[str]) -> None:
    """Write TorchScript, ONNX and torch.export files from a run's best checkpoint."""
    parser = Parser(
        prog="lit-guide export",
        usage="lit-guide export --run DIR|latest [--formats onnx,torchscript,pt2]",
        description="Export a run's best checkpoint; every file is loaded again and compared with the model.",
    )
    parser.add_argument("--run", type=str | None, default=None, help="The run's directory, or latest.")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="A checkpoint, instead of the run's best one.")
    parser.add_argument("--run_dir", type=str | None, default=None, help="Where export/ goes: the run, if not given.")
    parser.add_argument(
        "--formats", type=str | None, default=None, help="Some of onnx,torchscript,pt2; by default the enabled ones."
    )
    for name, callback in EXPORTS.items():
        parser.add_lightning_class_args(callback, f"export.{name}")
    run_dir = None
    run = last_value(args, "--run")
    if run is not None and not {"-h", "--help"} & set(args):
        run_dir = runs.find_run(run)
        parser.set_defaults(_export_settings(run_dir / "config.yaml"))
    config = parser.parse_args(args)
    if config.ckpt_path is not None:
        checkpoint = Path(config.ckpt_path)
    elif run_dir is not None:
        checkpoint = run_dir / runs.BEST
    else:
        raise ConfigError("export needs a trained model: give --run latest, --run DIR or --ckpt_path FILE.")
    callbacks = parser.instantiate(config).export
    wanted = (
        [name.strip() for name in config.formats.split(",")] if config.formats else [n for n in EXPORTS if callbacks[n].enabled]
    )
    unknown = [name for name in wanted if name not in EXPORTS]
    if unknown:
        raise ConfigError(f"--formats: there is no format {unknown[0]!r}. Use {', '.join(EXPORTS)}.")
    model = load_classifier(checkpoint)
    target = Path(config.run_dir).absolute() if config.run_dir else run_dir or runs.run_of_checkpoint(checkpoint)
    if target is None:
        raise ConfigError(f"{checkpoint} lies in no run directory: say where export/ goes with --run_dir DIR.")
    runs.make_results_dir(target)
    runs.check_space(target, needed=4 * 3 * sum(p.numel() for p in model.parameters()))
    entries = [callbacks[name].run(model, target) for name in wanted]
    print_exports(entries)
    print(f"Written below {target / 'export'}")
    _raise_for_exports(entries, target)


def leave_group() -> None:
    """Take leave of the other processes of the run: gloo's threads would end a process that is leaving with an error."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "predict": predict,
    "export": export,
    "data": data,
}


def _run(cli: ClassifierCLI, step: Callable[..., Any], **kwargs: Any) -> Any:
    """Call a method of the trainer; a Ctrl-C that Lightning turned into exit 1 is a KeyboardInterrupt again."""
    kwargs.setdefault("ckpt_path", cli.ckpt_path)
    try:
        return step(cli.model, datamodule=cli.datamodule, weights_only=True, **kwargs)
    except Stopped:
        raise
    except SystemExit:
        if cli.trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        told = explain_failure(error, cli.trainer, cli.datamodule)
        if told is None and cli.stop.received:  # the signal went to what this process waited for, such as a compiler
            raise Stopped(cli.stop.received) from error
        if told is None:
            raise
        raise told from error


def _evaluate(command: str, section: str, args: list[str]) -> None:
    cli = ClassifierCLI(command, args)
    with cli.stop.installed():
        _run(cli, getattr(cli.trainer, command), verbose=cli.config.verbose)
    if not cli.trainer.is_global_zero:
        return
    metrics = _metrics(cli)
    runs.update_results(cli.run_dir, {**environment(cli.trainer), section: metrics})
    print_metrics(command.capitalize(), {k: v for k, v in metrics.items() if isinstance(v, float)})
    print(f"Written to {cli.run_dir / 'results.json'}")


def _metrics(cli: ClassifierCLI) -> dict[str, Any]:
    """The figures of the evaluation that just ran, with its confusion matrix."""
    logged = {name.partition("/")[2]: round(float(value), 6) for name, value in cli.trainer.callback_metrics.items()}
    matrix_KK = cli.model.confusion_matrix_KK
    return {**logged, "confusion_matrix": matrix_KK.tolist()} if logged and matrix_KK is not None else {}


def _report_changes(cli: ClassifierCLI) -> None:
    """Say which settings given now differ from the checkpoint's; they win."""
    if cli.checkpoint is not None and cli.ckpt_path is not None and cli.trainer.is_global_zero:
        for name, before, after in _differences(cli.checkpoint["hyper_parameters"], cli.model.hparams, "model"):
            print(f"{name} is {after} as given, in place of {before} in {Path(cli.ckpt_path).name}.")


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key, before in saved.items():
        after = now.get(key)
        if key in ("mean", "std"):  # restored with the weights
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before.get("name") == after.get("name"):
            found += _differences(before, after, f"{prefix}.{key}")
        elif before != after and not (isinstance(before, float) and isinstance(after, float) and math.isclose(before, after)):
            found.append((f"{prefix}.{key}", before, after))
    return found


def _raise_for_exports(exports: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
    failed = [entry for entry in exports if "error" in entry]
    if failed:
        reasons = "\n".join(f"  {entry['format']}: {entry['error']}" for entry in failed)
        formats, where = ",".join(entry["format"] for entry in failed), shlex.quote(str(run_dir))
        raise UserError(
            f"{len(failed)} of {len(exports)} exports failed:\n{reasons}\nThe checkpoint is safe. "
            f"Try again with: lit-guide export --run {where} --formats {formats}"
        )


def _export_settings(config_yaml: Path) -> dict[str, Any]:
    """The `export` section of a run's config.yaml, as defaults of the parser."""
    import yaml

    section = (yaml.safe_load(config_yaml.read_text(encoding="utf-8")) or {}).get("export", {})
    return {f"export.{name}.{key}": value for name, keys in section.items() for key, value in keys.items()}
