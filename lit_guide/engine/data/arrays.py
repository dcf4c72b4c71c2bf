"""Images in memory: the Dataset over arrays, and reading them from `.npz` and `.npy` without running anything."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.errors import ConfigError, UserError

Array = NDArray[Any] | Tensor


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels that are already in memory, NumPy or torch; nothing is copied.

    The DataModules fetch a whole batch through `batch`, by one index operation on each array.

    Args:
        images: (N, C, H, W), uint8 or floating point from 0 to 1.
        labels: (N,), integers.

    Raises:
        ValueError: the arrays differ in length, or the images have no four axes.
    """

    def __init__(self, images: Array, labels: Array) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
        self.images = images
        self.labels = labels

    def __getstate__(self) -> dict[str, Any]:
        # A process that is sent this maps the file itself: a mapping would be sent as a copy of its content.
        images = self.images
        if not (isinstance(images, np.memmap) and images.filename and images.mode == "r"):
            return self.__dict__
        whole: Any = images
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        offset = whole.offset + images.ctypes.data - whole.ctypes.data
        return self.__dict__ | {"images": None, "mapped": (images.filename, images.shape, images.dtype, offset, images.strides)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if "mapped" in state:
            path, shape, dtype, offset, strides = self.__dict__.pop("mapped")
            self.images = np.ndarray(shape, dtype, np.memmap(path, np.uint8, "r"), offset, strides)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Sample `index`: (image_CHW, label)."""
        image_1CHW, label_1 = self.batch([index])
        return image_1CHW[0], label_1[0]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples: (image_BCHW, label_B)."""
        return torch.as_tensor(self.images[indices]), torch.as_tensor(self.labels[indices], dtype=torch.int64)


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
        raise UserError(f"{path} is not a readable .npz of plain arrays ({error}). Write it with numpy.savez.") from None
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
            raise UserError(f"{path} is not a readable .npy of a plain array ({error}). Write it with numpy.save.") from None
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
