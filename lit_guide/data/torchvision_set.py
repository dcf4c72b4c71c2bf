"""Any classification set of `torchvision.datasets`, by its name."""

import contextlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lit_guide.engine.data.source import Source
from lit_guide.engine.errors import ConfigError, UserError, did_you_mean
from lit_guide.engine.machine import expanded
from lit_guide.engine.photos.dataset import ImageDataset, Listing, Paths
from lit_guide.engine.photos.module import PhotoData

# The classification sets by the parts that they come in, and the arguments that choose these.
PARTS: tuple[tuple[str, dict[str, dict[str, Any]]], ...] = (
    ("CIFAR10 CIFAR100 FashionMNIST KMNIST MNIST QMNIST USPS", {"train": {"train": True}, "test": {"train": False}}),
    ("EMNIST", {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}}),
    ("Caltech101 Caltech256 EuroSAT SEMEION SUN397", {"train": {}}),
    ("FER2013 Food101 GTSRB STL10 StanfordCars SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
    ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    ("Imagenette ImageNet", {"train": {"split": "train"}, "val": {"split": "val"}}),
    ("Places365", {"train": {"split": "train-standard"}, "val": {"split": "val"}}),
    (
        "DTD FGVCAircraft Flowers102 PCAM RenderedSST2",
        {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
    ),
    ("Country211", {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}),
)
# FER2013 and ImageNet do not take the argument; StanfordCars refuses to open what is there when it is asked to download.
NO_DOWNLOAD = ("FER2013", "ImageNet", "StanfordCars")
SETS = {name: parts for names, parts in PARTS for name in names.split()}


class TorchvisionData(PhotoData):
    """A set such as CIFAR10, FashionMNIST, Flowers102 or Food101; it is downloaded when it is not in `root`.

    Where the set has a validation or test part of its own, that is used; otherwise they are cut from its training part.

    Args:
        dataset: the name of a class in torchvision.datasets.
        root: the folder that it is in, or is downloaded to.
        download: whether it may be downloaded.
    """

    on_disk = False  # torchvision's own code reads them

    def __init__(self, dataset: str, root: str = "data", download: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.cache != "none" or self.group_pattern is not None or self.white_level is not None:
            keys = "data.cache, data.group_pattern and data.white_level"
            raise ConfigError(f"{keys} are for image files; torchvision reads its sets in its own way.")
        if dataset not in SETS:
            hint = did_you_mean(dataset, SETS, f"There are {', '.join(sorted(SETS))}.")
            raise ConfigError(f"data.dataset: torchvision has no classification set {dataset!r}. {hint}")
        self.least_side = None  # its own code decodes all pixels
        self.dataset, self.root, self.download = dataset, Path(expanded(root)), download

    def scan(self) -> Listing:
        """Open the parts of the set, one after the other; the paths are names such as `test 12`.

        Raises:
            UserError: the set is not there and can't be downloaded, or what it needs is not installed.
        """
        labels = {name: self._labels(part) for name, part in self.parts.items()}
        ends = np.cumsum([len(part) for part in labels.values()])
        rows = dict(zip(labels, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
        names = Paths(f"{name} {index}" for name, part in labels.items() for index in range(len(part)))
        labels_N = np.concatenate(list(labels.values()))
        train: Any = self.parts["train"]
        classes = getattr(train, "classes", None) or getattr(train, "categories", None) or range(int(labels_N.max()) + 1)
        # ImageNet gives a tuple of synonyms for each class.
        class_names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in classes]
        return Listing(self.root, names, labels_N, class_names, rows)

    def load(self) -> Source:
        """The set keeps checksums of its files, so they are not decoded beforehand; its own code reads the images."""
        listing = self.listing
        read = _Images(list(self.parts.values()))
        dataset = ImageDataset(listing.root, listing.paths, torch.from_numpy(listing.labels_N), read=read)
        return Source(dataset, listing.labels_N, listing.class_names, self.divide())

    @cached_property
    def parts(self) -> dict[str, Dataset[Any]]:
        """Split name -> the set's own Dataset. Downloads on first use."""
        return {name: self._open(choice) for name, choice in SETS[self.dataset].items()}

    def _open(self, choice: dict[str, Any]) -> Dataset[Any]:
        cls = getattr(torchvision.datasets, self.dataset)
        download = {} if self.dataset in NO_DOWNLOAD else {"download": self.download}
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # "Files already downloaded and verified"
                part: Dataset[Any] = cls(root=str(self.root), **choice, **download)
            part[0][0].load()  # some miss SciPy, or their images, only now
        except ImportError as error:  # SciPy, h5py or gdown, which torchvision asks for where a set needs one
            raise UserError(f"{self.dataset} needs a further package: {error}. Install it with pip.") from None
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.dataset} is not complete in {self.root.absolute()} and could not be had: {reason}\n"
                "Check the connection and try again, or put its files there by hand."
            ) from None
        return part

    def _labels(self, part: Any) -> NDArray[np.int64]:
        """The class indices of a part, without decoding its images where the set keeps a list of them."""
        found = next((getattr(part, name) for name in ("targets", "labels", "y", "_labels") if hasattr(part, name)), None)
        if found is None:
            samples = getattr(part, "_samples", part)
            found = [samples[index][1] for index in range(len(samples))]
        try:
            labels = np.asarray(found, dtype=np.int64)
        except TypeError:
            raise UserError(f"{self.dataset} in {self.root.absolute()} comes without the labels of its test images.") from None
        return labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class, and seven things more


class _Images:
    """index -> image (3, H, W) uint8, from several datasets in a row."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __call__(self, index: int) -> Tensor:
        for part in self.parts:
            if index < len(part):
                break
            index -= len(part)
        image: Image.Image = part[index][0]
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
