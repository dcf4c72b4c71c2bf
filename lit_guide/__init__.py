"""lit-guide: train, check and export image classifiers with PyTorch Lightning.

Public names are imported on first use (PEP 562), so `import lit_guide` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lit_guide.engine.moved import remember_earlier_names

__version__ = "0.2.0"

_HOME = {
    "ArrayDataset": "lit_guide.data",
    "ArraysData": "lit_guide.data",
    "CNN": "lit_guide.networks",
    "DataModule": "lit_guide.data",
    "DigitsData": "lit_guide.data",
    "FolderData": "lit_guide.data",
    "ImageFolderDataset": "lit_guide.data",
    "LitClassifier": "lit_guide.model",
    "Predictor": "lit_guide.predict",
    "TableData": "lit_guide.data",
    "TorchvisionData": "lit_guide.data",
    "build_network": "lit_guide.networks",
    "load_classifier": "lit_guide.model",
}
__all__ = ["__version__", *_HOME]
remember_earlier_names()

if TYPE_CHECKING:
    from lit_guide.data import ArrayDataset as ArrayDataset
    from lit_guide.data import ArraysData as ArraysData
    from lit_guide.data import DataModule as DataModule
    from lit_guide.data import DigitsData as DigitsData
    from lit_guide.data import FolderData as FolderData
    from lit_guide.data import ImageFolderDataset as ImageFolderDataset
    from lit_guide.data import TableData as TableData
    from lit_guide.data import TorchvisionData as TorchvisionData
    from lit_guide.model import LitClassifier as LitClassifier
    from lit_guide.model import load_classifier as load_classifier
    from lit_guide.networks import CNN as CNN
    from lit_guide.networks import build_network as build_network
    from lit_guide.predict import Predictor as Predictor


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
