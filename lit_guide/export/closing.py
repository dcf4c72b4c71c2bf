"""The end of a run: why it ended, figures and exported files in tables, where everything is, and what to type next."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.text import Text

from lit_guide.engine.errors import printable, say
from lit_guide.engine.machine import command, short
from lit_guide.engine.run.checkpoint import read_checkpoint
from lit_guide.engine.run.screen import print_metrics, print_table
from lit_guide.engine.train.checkpoints import BestCheckpoint


def ending(trainer: Trainer, best: BestCheckpoint | None) -> str:
    """How long a training was, why it ended, and which of its epochs is the best."""
    early = [one.stopping_reason_message for one in trainer.early_stopping_callbacks if trainer.should_stop]
    why = next(filter(None, early), f"to train on, {limit_of(trainer)}.").removesuffix(" Signaling Trainer to stop.")
    told = f"Trained {trainer.current_epoch} epochs, {trainer.global_step} steps: {why}"
    if best is None or best.best_model_score is None or not Path(best.best_model_path).is_file():
        return told
    epoch = min(read_checkpoint(best.best_model_path, "meta")["epoch"] + 1, trainer.current_epoch)
    return f"{told}\nThe best is epoch {epoch} of {trainer.current_epoch}, by its {best.monitor} of {best.best_model_score:.4f}."


def limit_of(trainer: Trainer) -> str:
    """What to do about the limit that ended this run."""
    reached = (
        (bool(trainer.fast_dev_run), "leave out --trainer.fast_dev_run"),  # type: ignore[attr-defined]  # Lightning sets it
        (trainer.global_step == trainer.max_steps, f"set --trainer.max_steps above {trainer.max_steps}"),
        (trainer.max_epochs in range(trainer.current_epoch + 1), f"set --trainer.max_epochs above {trainer.max_epochs}"),
        (trainer.global_step == 0, "let there be batches: --trainer.limit_train_batches or the data leave none"),
    )
    return next((what for is_so, what in reached if is_so), "give more --trainer.max_time; it counts the run from its start")


def print_closing(run_dir: Path, results: Mapping[str, Any], missing: Sequence[str] = ()) -> None:
    """The end of `fit`: test metrics and exports of results.json, where everything is, and what to type next.

    `missing` is what the model lacks for exports and predictions, and how to add it.
    """
    if results.get("test"):
        print_metrics("Test", {k: v for k, v in results["test"].items() if isinstance(v, float)})
    if results.get("exports"):
        print_exports(results["exports"])
    if missing:
        say("\n  ".join(["\nThe model is trained. For export and predict it still lacks:", *missing]))
    here = short(run_dir)
    names = ("config.yaml", "metrics.csv", "checkpoints/", "export/", "results.json", "confusion_val.csv", "confusion_test.csv")
    say(f"\nEverything is in {here}: {', '.join(name for name in names if (run_dir / name).exists())}")
    further = () if missing else (("predict", "--images", "FILE_OR_FOLDER"), ("export", "--formats", "onnx"))
    test = (("test",),) if results.get("test", True) else ()
    if offers := [command(n, "--run", here, *m) for n, *m in (*test, *further) if (run_dir / "checkpoints/best.ckpt").is_file()]:
        say("\n  ".join(["\nNext:", *offers]))


def print_exports(exports: Iterable[Mapping[str, Any]]) -> None:
    """A table of export entries: those written with size and difference, those that failed with the reason."""
    rows = [
        (one["format"], None, None, Text(printable(one["error"], keep="\n"), "red"))
        if "error" in one
        else (one["format"], one["path"], f"{one['bytes'] / 1e3:.0f} kB", f"{one['max_abs_diff']:.1e}")
        for one in exports
    ]
    print_table("Exports", ("format", "file", "size", "max abs difference"), rows)
