# needs: data arrays
"""Arrays of your own: every layout, their own split and names, faults by row, and a training on them."""

import numpy as np
import pytest

from lit_guide.data import ArraysData
from lit_guide.engine.errors import UserError

from .conftest import NO_EXPORT, fit

IMAGES_NHW, LABELS_N = np.random.default_rng(0).integers(0, 256, (30, 6, 9), dtype=np.uint8), np.arange(30) % 3


def arrays(**changed):
    np.savez("mine.npz", **({"images": IMAGES_NHW, "labels": LABELS_N} | changed))
    return ArraysData("mine.npz")


@pytest.mark.parametrize(("axes", "channels"), [("NHW", 1), ("NHWC", 3), ("NCHW", 3)])
def test_images_of_every_layout_are_the_same(axes, channels):
    data = arrays(images=np.stack([IMAGES_NHW] * 3, axis=axes.index("C")) if "C" in axes else IMAGES_NHW)
    image_CHW, label = data.source.dataset[7]
    assert (data.input_shape, data.class_names, label) == ((channels, 6, 9), ["0", "1", "2"], 1)
    assert (image_CHW.numpy() == IMAGES_NHW[7]).all()


def test_fit_trains_on_their_own_names_and_split(run):
    data = arrays(class_names=np.array(["x", "y", "z"]), split=np.repeat(["train", "val", "test"], [20, 6, 4]))
    rows = [indices.tolist() for indices in data.rows.values()]
    assert (data.class_names, rows) == (["x", "y", "z"], [[*range(20)], [*range(20, 26)], [*range(26, 30)]])
    code, _, err = run(*fit("arrays"), "--data.path", "mine.npz", *NO_EXPORT)
    assert code == 0, err


def test_faults_are_named_by_row():
    with pytest.raises(UserError, match="labels hold a value under 0, in 2 of 30 rows: 28, 29"):
        arrays(labels=np.r_[LABELS_N[:28], -1, -7]).source  # noqa: B018
