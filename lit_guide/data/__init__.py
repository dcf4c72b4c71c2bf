"""Where training data come from: one file per source, on one base DataModule."""

from lit_guide.data.arrays import ArrayDataset, ArraysData
from lit_guide.data.digits import DigitsData
from lit_guide.data.folder import FolderData, ImageFolderDataset
from lit_guide.data.table import TableData
from lit_guide.data.torchvision_set import TorchvisionData
from lit_guide.engine.data.base import ImageDataModule
from lit_guide.engine.data.module import DataModule, Source
from lit_guide.engine.photos.module import PhotoData

__all__ = [
    "ArrayDataset",
    "ArraysData",
    "DataModule",
    "DigitsData",
    "FolderData",
    "ImageDataModule",
    "ImageFolderDataset",
    "PhotoData",
    "Source",
    "TableData",
    "TorchvisionData",
]
