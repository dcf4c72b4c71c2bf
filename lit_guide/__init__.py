"""lit-guide: train, check and export image classifiers with PyTorch Lightning.

Public names are imported on first use (PEP 562), so `import lit_guide` costs no torch import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lit_guide.engine.tables import load

if TYPE_CHECKING:
    from lit_guide.data import (
        ArrayDataset,
        ArraysData,
        DataModule,
        DigitsData,
        FolderData,
        ImageFolderDataset,
        TableData,
        TorchvisionData,
    )
    from lit_guide.model import LitClassifier, load_classifier
    from lit_guide.networks import CNN, build_network
    from lit_guide.predict import Predictor

__version__ = "0.2.0"
__all__ = ["CNN", "ArrayDataset", "ArraysData", "DataModule", "DigitsData", "FolderData", "ImageFolderDataset", "LitClassifier"]
__all__ += ["Predictor", "TableData", "TorchvisionData", "__version__", "build_network", "load_classifier"]
for remember in load({"earlier": "lit_guide.parts.earlier.names:remember"}).values():
    remember()


def __getattr__(name: str) -> object:
    for module in ("data", "networks", "model", "predict") if name in __all__ else ():
        if hasattr(home := import_module(f"{__name__}.{module}"), name):
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
