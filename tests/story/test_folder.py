# needs: data folder
"""Photos in class folders: which files are taken, as what, and a training on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_guide.data import FolderData, ImageFolderDataset
from lit_guide.engine.errors import UserError

from .conftest import NO_EXPORT, fit, results_of

PIXELS_NHWC = np.random.default_rng(0).integers(0, 256, (20, 10, 12, 3), dtype=np.uint8)


def photos(*parts):
    """The folder photos with ten cats and ten dogs; the first three of each in the first of these parts, if there are any."""
    for index, pixels_HWC in enumerate(PIXELS_NHWC):
        folder = Path("photos", *parts[index % 10 >= 3 :][:1], "cat" if index < 10 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(folder / f"{index:02d}.png")
    return Path("photos")


def test_a_sample_is_the_file_and_the_number_of_its_folder_and_a_broken_file_is_named():
    dataset = ImageFolderDataset(photos())
    image_CHW, label = dataset[13]
    assert (dataset.class_names, len(dataset), label) == (["cat", "dog"], 20, 1)
    assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), PIXELS_NHWC[13])
    Path("photos/dog/broken.png").write_bytes(Path("photos/dog/13.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"dog/broken\.png"):
        FolderData("photos", image_size=8, num_workers=0).source  # noqa: B018


@pytest.mark.parametrize(("parts", "count"), [((), 2), (("test", "train"), 3)])
def test_fit_trains_on_them_divided_here_or_by_folders(run, parts, count):
    small = ["--model.network", "cnn", "--data.image_size", "16", "--data.num_workers", "0", *NO_EXPORT]
    code, _, err = run(*fit("folder"), "--data.root", photos(*parts), *small)
    assert code == 0, err
    assert np.sum(results_of(Path("r"))["test"]["confusion_matrix"], axis=1).tolist() == [count, count]
    assert run("predict", "--run", "r", "--images", "photos")[0] == 0
