# needs: data torchvision
"""A set of torchvision: MNIST, written by hand as it lies on disk; nothing is downloaded."""

import numpy as np
import pytest

from lit_guide.data import TorchvisionData
from lit_guide.engine.errors import UserError


def test_images_labels_and_parts_are_the_sets_own(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for prefix, count in (("train", 9), ("t10k", 6)):  # each image has one grey: 20 more than the one before
        greys = (20 * np.arange(count, dtype=np.uint8))[:, None, None].repeat(28, 1).repeat(28, 2)
        for name, array in (("images-idx3", greys), ("labels-idx1", np.arange(count, dtype=np.uint8) % 3)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            (tmp_path / f"MNIST/raw/{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
    data = TorchvisionData("MNIST", str(tmp_path), download=False, image_size=8, num_workers=0, val_fraction=1 / 3)
    assert [data.class_counts(split)[:3] for split in ("train", "val", "test")] == [[2, 2, 2], [1, 1, 1], [2, 2, 2]]
    assert (data.class_names[:2], data.rows["test"].tolist()) == (["0 - zero", "1 - one"], [*range(9, 15)])
    for row in range(15):
        image_CHW, label = data.source.dataset[row]
        assert (image_CHW.shape, label) == ((3, 28, 28), row % 9 % 3)
        assert (image_CHW == 20 * (row % 9)).all()


def test_a_set_that_is_not_there_says_where_it_should_be(tmp_path):
    with pytest.raises(UserError, match="MNIST is not complete in "):
        TorchvisionData("MNIST", str(tmp_path), download=False).source  # noqa: B018
