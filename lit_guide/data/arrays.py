"""Images that you have as arrays: your own `.npz`, or `.npy` files in a folder."""

import zlib
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lit_guide.engine.data.module import ArrayDataset, DataModule, Source
from lit_guide.engine.data.source import SPLITS, named_split
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import expanded

NUMPYS = "Object arrays cannot be loaded when allow_pickle=False"
OURS = "labels or images are Python objects: None for a label that is missing, or text among numbers; drop these rows"


class ArraysData(DataModule):
    """Your own `.npz`: `images`, `labels`, and optionally `class_names` and `split`; or the same as `.npy` files in a folder.

    A folder's `images.npy` is mapped, not read: the set may be larger than memory.

    `images` are uint8, or floating point from 0 to 1, shaped (N, H, W), (N, H, W, C) or (N, C, H, W). `labels` are class
    indices from 0. `class_names` names them. `split` says train, val or test for every row; without it the rows are split
    here, stratified and seeded.

    Args:
        path: the `.npz` file, or the folder with `images.npy` and `labels.npy`.
        layout: the order of the axes; auto takes the axis of 1, 3 or 4 as the channels, the last one if both could be.
    """

    def __init__(self, path: str, layout: Literal["auto", "NHWC", "NCHW"] = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = expanded(path)
        self.layout = layout

    def load(self) -> Source:
        """Open the file and check every value; the first fault found is an error with its row numbers."""
        arrays = read_npy_folder(Path(self.path)) if Path(self.path).is_dir() else read_npz(self.path)
        images = _with_channels(arrays["images"], self.layout, self.path)
        labels = _checked_labels(arrays["labels"], self.path)
        _check_images(images, self.path)
        if not images.dtype.isnative:  # torch has no foreign byte order
            images = images.astype(images.dtype.newbyteorder("="))
        names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
        if names is None:
            _raise_for(labels >= len(labels), "labels hold a value that no class index of so few rows can have", self.path)
        count = len(names) if names is not None else int(labels.max()) + 1
        _raise_for(labels >= count, f"labels hold a value over {count - 1}, the last of {count} class_names", self.path)
        rows = None
        if "split" in arrays:
            try:
                rows = named_split(arrays["split"], SPLITS)
            except ValueError as error:
                raise UserError(f"{self.path}: {error}.") from None
        return Source(ArrayDataset(images, labels), labels, names or [str(k) for k in range(count)], rows)


def read_npz(path: str) -> dict[str, NDArray[Any]]:
    """Read a `.npz` without running anything that is pickled in it; `images` and `labels` must be there.

    Raises:
        ConfigError: there is no such file.
        UserError: it is not a `.npz`, holds pickled objects, or lacks an array.
    """
    if not Path(path).is_file():
        raise ConfigError(f"There is no file {path}. Give your .npz, or a folder of .npy files, with --data.path PATH.")
    if Path(path).suffix == ".npy":
        raise ConfigError(
            f"{path} is one array: give the folder that holds images.npy and labels.npy, --data.path {Path(path).parent}."
        )
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile, AttributeError, TypeError, zlib.error) as error:
        reason = str(error).replace(NUMPYS, OURS)
        raise UserError(f"{path} is not a readable .npz of plain arrays ({reason}). Write it with numpy.savez.") from None
    _check_columns(arrays, path)
    return arrays


def read_npy_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Open `images.npy`, `labels.npy`, and `class_names.npy` and `split.npy` if they are there; the images are mapped.

    Raises:
        UserError: an array is missing, is no plain array, or the lengths differ.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("images", "labels", "class_names", "split"):
        path = folder / f"{name}.npy"
        if not path.is_file():
            continue
        try:
            arrays[name] = np.load(path, allow_pickle=False, mmap_mode="r" if name == "images" else None)
        except (ValueError, OSError, EOFError) as error:
            reason = str(error).replace(NUMPYS, OURS)
            raise UserError(f"{path} is not a readable .npy of a plain array ({reason}). Write it with numpy.save.") from None
    _check_columns(arrays, str(folder))
    return arrays


def _check_columns(arrays: dict[str, NDArray[Any]], path: str) -> None:
    missing = [name for name in ("images", "labels") if name not in arrays]
    if not arrays:
        raise UserError(f"{path} holds no images.npy and no labels.npy. Photos are read with --config configs/folder.yaml.")
    if missing:
        raise UserError(f"{path} holds {sorted(arrays)} but no {' and no '.join(missing)}.")
    for name in {"images", "labels", "class_names", "split"} & set(arrays):
        if arrays[name].ndim == 0:
            raise UserError(f"{path}: {name} is a single value, not a column.")
    count = len(arrays["images"])
    for name in {"labels", "split"} & set(arrays):
        if len(arrays[name]) != count:
            raise UserError(f"{path}: images has {count} rows, {name} has {len(arrays[name])}. Make them equal.")
    if not arrays["images"].size:
        raise UserError(f"{path}: images is empty.")


def _with_channels(images: NDArray[Any], layout: str, path: str) -> NDArray[Any]:
    """A view of the images as (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise UserError(f"{path}: images has shape {images.shape}; use (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if layout == "auto":
        layout = "NHWC" if images.shape[3] in (1, 3, 4) else "NCHW"
    return images.transpose(0, 3, 1, 2) if layout == "NHWC" else images


def _checked_labels(labels: NDArray[Any], path: str) -> NDArray[np.int64]:
    """The labels as int64, once they are known to be whole numbers from 0."""
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras stores CIFAR
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise UserError(f"{path}: labels must be one column of class indices, got {labels.dtype} {labels.shape}.")
    if labels.dtype.kind == "f":
        _raise_for(~np.isfinite(labels), "labels hold NaN or Inf", path)
        _raise_for(labels != np.floor(labels), "labels hold fractions", path)
    _raise_for(labels.astype(np.int64) < 0, "labels hold a value under 0", path)
    return labels.astype(np.int64, copy=False)


def _check_images(images: NDArray[Any], path: str) -> None:
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f" or images.dtype.itemsize > 8:
        raise UserError(f"{path}: images are {images.dtype}. Store them as uint8, or as floats from 0 to 1: images / 4095.")
    # By parts: a mapped array need not fit into memory.
    low_N, high_N = np.empty(len(images)), np.empty(len(images))
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].reshape(len(images[start : start + 1024]), -1)
        low_N[start : start + 1024], high_N[start : start + 1024] = part.min(axis=1), part.max(axis=1)
    # NaN spreads through min and max; Inf is one of them.
    _raise_for(~np.isfinite(low_N) | ~np.isfinite(high_N), "images hold NaN or Inf", path)
    _raise_for((low_N < 0) | (high_N > 1), "float images leave the range 0 to 1 (of 0 to 255: divide them)", path)


def _raise_for(bad_N: NDArray[np.bool_], fault: str, path: str) -> None:
    rows = np.flatnonzero(bad_N)
    if len(rows):
        shown = ", ".join(str(row) for row in rows[:10]) + (" and more" if len(rows) > 10 else "")
        raise UserError(f"{path}: {fault}, in {len(rows)} of {len(bad_N)} rows: {shown}. Mend or drop these rows.")
