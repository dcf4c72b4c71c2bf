"""Tables on the screen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lit_guide.engine.errors import printable


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
