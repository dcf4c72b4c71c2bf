"""What a run shows when it ends: tables of figures and exports, where everything is, and what to type next."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lit_guide.engine.machine import command, short


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; without headings where all of them are empty. A cell is a Text or anything else in plain words, None a dash."""
    columns = [Column(heading, overflow="fold") for heading in headings]
    table = Table(*columns, title=title, title_justify="left", show_header=any(headings))
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else "-" if cell is None else str(cell) for cell in row))
    Console(markup=False, emoji=False).print(table)


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
        print("\nThe model is trained. For export and predict it still lacks:")
        print("\n".join(f"  {piece}" for piece in missing))
    here = short(run_dir)
    names = ("config.yaml", "metrics.csv", "checkpoints/", "export/", "results.json", "confusion_val.csv", "confusion_test.csv")
    files = [name for name in names if (run_dir / name).exists()]
    print(f"\nEverything is in {here}: {', '.join(files)}")
    further = (("predict", "--images", "FILE_OR_FOLDER"), ("export", "--formats", "onnx"))
    test = (("test",),) if results.get("test", True) else ()
    if following := [command(name, "--run", here, *more) for name, *more in (*test, *(() if missing else further))]:
        print("\n  ".join(["\nNext:", *following]))


def print_exports(exports: Iterable[Mapping[str, Any]]) -> None:
    """A table of export entries: those written with size and difference, those that failed with the reason."""
    rows: list[tuple[Any, ...]] = []
    for entry in exports:
        if "error" in entry:
            rows.append((entry["format"], None, None, Text(entry["error"], "red")))
        else:
            rows.append((entry["format"], entry["path"], f"{entry['bytes'] / 1e3:.0f} kB", f"{entry['max_abs_diff']:.1e}"))
    print_table("Exports", ("format", "file", "size", "max abs difference"), rows)
