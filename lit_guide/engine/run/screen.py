"""What a run shows when it ends: tables of figures and exports, where everything is, and what to type next."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lit_guide.engine.errors import printable, say
from lit_guide.engine.machine import command, short


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; without headings where all of them are empty. A cell is a Text or anything else in plain words, None a dash."""
    console = Console(markup=False, emoji=False)
    columns = [Column(heading, overflow="fold") for heading in headings]
    table = Table(*columns, title=title, title_justify="left", show_header=any(headings))
    for row in rows:
        table.add_row(*(c if isinstance(c, Text) else printable("-" if c is None else str(c), "", console.encoding) for c in row))
    console.print(table)


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """A two-column table of figures."""
    print_table(title, ("", ""), [(name, f"{value:.4f}") for name, value in metrics.items()])


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
    files = [n for n in ("config.yaml", "metrics.csv", "checkpoints/", "export/", "results.json") if (run_dir / n).exists()]
    say(f"\nEverything is in {here}: {', '.join(files)}")
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
