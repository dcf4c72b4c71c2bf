"""Where training data come from: one file per source, on one base DataModule."""

from lit_guide.data.arrays import ArrayDataset, ArraysData
from lit_guide.data.base import DataModule, Source
from lit_guide.data.digits import DigitsData

__all__ = ["ArrayDataset", "ArraysData", "DataModule", "DigitsData", "Source"]
