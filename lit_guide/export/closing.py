"""The end of a run: figures and exported files in tables, where everything is, and what to type next."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from lit_guide.engine.errors import printable, say
from lit_guide.engine.machine import command, short
from lit_guide.engine.run.screen import print_metrics, print_table


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
