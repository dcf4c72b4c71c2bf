"""What a run shows when it ends: tables of figures and exports, where everything is, and what to type next."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_guide.engine.machine import command, short


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """A two-column table of figures."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def print_closing(run_dir: Path, results: Mapping[str, Any]) -> None:
    """The table at the end of `fit`: test metrics, exports, where everything is, and what to type next."""
    if results.get("test"):
        print_metrics("Test", {k: v for k, v in results["test"].items() if isinstance(v, float)})
    if results.get("exports"):
        print_exports(results["exports"])
    here = short(run_dir)
    names = ("config.yaml", "metrics.csv", "checkpoints/", "export/", "results.json")
    files = [name for name in names if (run_dir / name).exists()]
    print(f"\nEverything is in {here}: {', '.join(files)}\n\nNext:")
    for name, *more in (("predict", "--images", "FILE_OR_FOLDER"), ("test",), ("export", "--formats", "onnx")):
        print(f"  {command(name, '--run', here, *more)}")


def print_exports(exports: Iterable[Mapping[str, Any]]) -> None:
    """A table of export entries: those written with size and difference, those that failed with the reason."""
    table = Table(title="Exports", title_justify="left")
    for heading in ("format", "file", "size", "max abs difference"):
        table.add_column(heading, overflow="fold")
    for entry in exports:
        if "error" in entry:
            table.add_row(entry["format"], "-", "-", f"[red]{escape(entry['error'])}[/red]")
        else:
            size = f"{entry['bytes'] / 1e3:.0f} kB"
            table.add_row(entry["format"], escape(entry["path"]), size, f"{entry['max_abs_diff']:.1e}")
    Console().print(table)
