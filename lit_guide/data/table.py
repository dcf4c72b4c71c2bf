"""A table of image files: path, label and optionally split, as CSV or Parquet."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_guide.engine.data.source import SPLIT_NAMES, SPLITS, named_split
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import expanded
from lit_guide.engine.photos.dataset import Listing, Paths, shown
from lit_guide.engine.photos.module import PhotoData

Columns = dict[str, list[str]]
NOTHING = ("", "nan", "<na>")  # no label, as programs write it; other words for it, such as None, are classes somewhere


class TableData(PhotoData):
    """Photos listed in a CSV or Parquet file, one row an image.

    Labels may be text or numbers: the classes are their different values, in order. With a split column each row says train,
    val or test; a split that is missing is cut from train. Without one the rows are divided here, stratified and seeded.

    Args:
        table: the `.csv` (with a heading) or `.parquet` file.
        root: the folder that paths are relative to; the table's own if null.
        path_column: heading of the column of paths.
        label_column: heading of the column of labels.
        split_column: heading of the column of splits; `split` need not be there. null: the rows are divided here.
    """

    def __init__(
        self,
        table: str,
        root: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str | None = "split",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table, self.root = table, root
        self.columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}

    def scan(self) -> Listing:
        """Read the table; that the files are there is found when they are decoded.

        Raises:
            ConfigError: there is no such table, or it lacks a column.
            UserError: it has no rows, a cell is empty, or no row is for training, or one names no split.
        """
        table = Path(expanded(self.table))
        if not table.is_file():
            raise ConfigError(f"There is no file {table}. Give your table with --data.table FILE.")
        wanted = {key: name for key, name in self.columns.items() if name is not None}
        read = read_parquet if table.suffix.lower() in (".parquet", ".pq") else read_csv
        columns = read(table, wanted.values())
        if wanted.get("split_column") == "split" and "split" not in columns:
            del wanted["split_column"]
        cells: Columns = {}
        for key, name in wanted.items():
            if name not in columns:
                have = ", ".join(columns) or "none at all"
                raise ConfigError(f"{table} has no column {name!r}; it has {have}. Name the right one with --data.{key} NAME.")
            cells[key] = columns[name]
            empty, fault = (("",), "empty") if key == "path_column" else (NOTHING, "empty or NaN")
            _raise_for([cell.lower() in empty for cell in cells[key]], f"{table}: {name} is {fault}")
        if not cells["path_column"]:
            raise UserError(f"{table} has a heading but no rows.")
        class_names, labels_N = _numbered(cells["label_column"])
        rows = _by_split(cells["split_column"], table) if "split_column" in cells else None
        root = Path(expanded(self.root)) if self.root else table.parent
        return Listing(root, Paths(cells["path_column"]), labels_N, class_names, rows)


def read_csv(path: Path, wanted: Collection[str]) -> Columns:
    """Heading -> cells; none of columns that are not wanted. A comma, semicolon or tab parts them, whichever the heading has.

    Empty lines are left out.

    Raises:
        UserError: it is no text, a wanted heading is there twice, or a row has more or fewer cells than the heading.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=heading.count), strict=True)
            names = [name.strip() for name in next(rows, [])]
            columns: Columns = {name: [] for name in names}
            if double := [name for name in wanted if names.count(name) > 1]:
                raise UserError(f"{path} has more than one column {double[0]!r}.")
            taken = [(at, columns[name]) for at, name in enumerate(names) if name in wanted]
            for row in rows:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(names):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} cells under {len(names)} headings.")
                for at, column in taken:
                    column.append(row[at].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}. Save it as CSV UTF-8.") from None
    return columns


def read_parquet(path: Path, wanted: Collection[str]) -> Columns:
    """Heading -> cells as text; none of columns that are not wanted.

    Raises:
        UserError: pyarrow is not installed, or can't read the file, or a column holds no plain values.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"Reading {path} needs pyarrow: pip install pyarrow. A .csv needs nothing.") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read([name for name in wanted if name in names])
        cells = {name: table[name].cast("string").fill_null("").to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, KeyError) as error:  # two columns of one name
        raise UserError(f"{path} can't be read as Parquet: {' '.join(str(error).split())}") from None
    return {name: [cell.strip() for cell in cells.get(name, [])] for name in names}


def _by_split(names: list[str], table: Path) -> dict[str, NDArray[np.int64]]:
    """Split name -> rows, of the splits that have any."""
    split_of = {variant: split for split, variants in SPLIT_NAMES.items() for variant in variants}
    splits = [split_of.get(name.lower(), "") for name in names]
    if strange := sorted({name for name, split in zip(names, splits, strict=True) if not split}):
        raise UserError(f"{table} names splits that there are not; use {', '.join(SPLITS)}:\n{shown(strange)}")
    rows = named_split(splits, SPLITS)
    if not len(rows["train"]):
        raise UserError(f"{table} has no row for train.")
    return {split: indices for split, indices in rows.items() if len(indices)}


def _numbered(labels: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Class names in order, as numbers where all of them are (2 before 10), and the index of each label."""
    names = sorted(set(labels))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    number = {name: index for index, name in enumerate(names)}
    return names, np.fromiter((number[label] for label in labels), dtype=np.int64, count=len(labels))


def _raise_for(bad: list[bool], fault: str) -> None:
    if rows := [str(row) for row, is_bad in enumerate(bad, start=1) if is_bad]:
        more = ", ..." if len(rows) > 10 else ""
        raise UserError(
            f"{fault} in {len(rows)} of {len(bad)} rows, counted from 1 below the heading: {', '.join(rows[:10])}{more}."
        )
