# needs: data table
"""A table of photos: its columns, its own split, and a training on it."""

from pathlib import Path

import numpy as np
from PIL import Image

from lit_guide.data import TableData

from .conftest import NO_EXPORT, fit


def test_fit_trains_on_the_rows_as_the_split_column_divides_them(run):
    lines = ["file;species;split"]
    for index in range(12):
        Image.fromarray(np.full((10, 12, 3), 20 * index, dtype=np.uint8)).save(f"{index}.png")
        lines.append(f"{index}.png;{('Hündin', '猫')[index % 2]};{'test' if index >= 8 else 'train'}")
    Path("photos.csv").write_text("\n".join(lines), encoding="utf-8")
    settings = {"path_column": "file", "label_column": "species", "image_size": 16, "num_workers": 0, "val_fraction": 0.25}
    data = TableData("photos.csv", **settings)
    labels, rows = data.source.labels_N.tolist(), data.rows["test"].tolist()
    assert (data.class_names, labels, rows) == (["Hündin", "猫"], [0, 1] * 6, [8, 9, 10, 11])
    assert [data.class_counts(split) for split in ("train", "val")] == [[3, 3], [1, 1]]  # val is cut from the other eight
    flags = [f"--data.{key}={value}" for key, value in settings.items()]
    code, _, err = run(*fit("table"), "--data.table=photos.csv", *flags, "--model.network=cnn", *NO_EXPORT)
    assert code == 0, err
