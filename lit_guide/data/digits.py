"""The digits that ship with the package: what `configs/digits.yaml` trains on, with nothing to download."""

from importlib.resources import as_file, files
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeFloat

from lit_guide.engine.data.module import ArrayDataset, DataModule, Source


class DigitsData(DataModule):
    """1,797 scans of handwritten digits, 1 x 8 x 8 uint8, 10 classes (UCI, CC BY 4.0: digits.LICENSE.txt).

    Small shifts and turns by default; a digit is never mirrored.
    """

    def __init__(self, shift: NonNegativeFloat = 0.125, rotate: NonNegativeFloat = 12.0, **kwargs: Any) -> None:
        super().__init__(shift=shift, rotate=rotate, flip=False, **kwargs)

    def load(self) -> Source:
        """Read the shipped `digits.npz`."""
        with as_file(files("lit_guide.data") / "digits.npz") as path, np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
        return Source(ArrayDataset(images, labels), labels, [str(digit) for digit in range(10)])
