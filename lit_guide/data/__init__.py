"""Where training data come from: one file per source. Besides the digits a project carries those that it asked for."""

from importlib.util import find_spec

from lit_guide.data.digits import DigitsData as DigitsData
from lit_guide.engine.data.base import ImageDataModule as ImageDataModule
from lit_guide.engine.data.module import ArrayDataset as ArrayDataset
from lit_guide.engine.data.module import DataModule as DataModule
from lit_guide.engine.data.module import Source as Source
from lit_guide.engine.photos.module import PhotoData as PhotoData

# Where decoded photos are kept: (root, paths, side, folder, reading) -> what is bad or equal, what reads photo i.
CACHES = {
    "ram": "lit_guide.parts.cache.copies:in_memory",
    "disk": "lit_guide.parts.cache.copies:on_disk",
}
PhotoData.caches = CACHES
# What remembers which files are good: (root, paths, folder, white_level, anew, look) -> what is bad or equal.
PhotoData.checked = {"checked": "lit_guide.parts.cache.known:examine_once"}
# What `data check` sees in files beside that: (content, image) -> bits, and (names, bits) -> findings.
LOOKS = {
    "signs": "lit_guide.parts.look.content:signs",
    "told": "lit_guide.parts.look.content:told",
}

if find_spec("lit_guide.data.arrays"):
    from lit_guide.data.arrays import ArraysData as ArraysData
if find_spec("lit_guide.data.folder"):
    from lit_guide.data.folder import FolderData as FolderData
    from lit_guide.data.folder import ImageFolderDataset as ImageFolderDataset
if find_spec("lit_guide.data.table"):
    from lit_guide.data.table import TableData as TableData
if find_spec("lit_guide.data.torchvision_set"):
    from lit_guide.data.torchvision_set import TorchvisionData as TorchvisionData
