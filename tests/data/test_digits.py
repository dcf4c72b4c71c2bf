from importlib.resources import files

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lit_guide.data import DigitsData


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_digits_are_scikit_learns_scaled_to_bytes(digits):
    source = DigitsData().source
    images_NCHW = np.asarray(source.dataset.images)
    assert images_NCHW.dtype == np.uint8
    np.testing.assert_array_equal(images_NCHW[:, 0], np.round(digits.images * 255 / 16))
    np.testing.assert_array_equal(source.labels_N, digits.target)
    np.testing.assert_array_equal(source.dataset.labels, digits.target)


def test_there_are_ten_classes_named_by_their_digit():
    data = DigitsData()
    assert data.class_names == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert data.input_shape == (1, 8, 8)
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 1168, "val": 270, "test": 359}


def test_mean_and_std_are_those_of_the_training_digits(digits):
    data = DigitsData()
    pixels = np.round(digits.images[data.rows["train"]] * 255 / 16) / 255
    assert data.mean == [pytest.approx(pixels.mean(), abs=1e-6)]
    assert data.std == [pytest.approx(pixels.std(), abs=1e-6)]


def test_a_digit_is_never_mirrored():
    assert DigitsData().flip is False
    with pytest.raises(TypeError, match="flip"):
        DigitsData(flip=True)


def test_shift_and_turn_can_be_set_beside_the_common_arguments():
    data = DigitsData(shift=0.0, rotate=5.0, batch_size=7, test_fraction=0.5, val_fraction=0.0)
    assert (data.shift, data.rotate, data.batch_size) == (0.0, 5.0, 7)
    assert len(data.rows["val"]) == 0
    assert abs(len(data.rows["test"]) - 1797 / 2) <= 10


def test_the_licence_lies_beside_the_digits_in_the_package():
    folder = files("lit_guide.data")
    assert (folder / "digits.npz").is_file()
    text = (folder / "digits.LICENSE.txt").read_text(encoding="utf-8")
    assert "Creative Commons Attribution 4.0" in text
    assert "https://creativecommons.org/licenses/by/4.0/" in text
    assert "10.24432/C50P49" in text


def test_the_shipped_file_says_what_its_licence_file_says():
    with (files("lit_guide.data") / "digits.npz").open("rb") as stream, np.load(stream) as file:
        arrays = {name: file[name] for name in file.files}
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "images": (np.uint8, (1797, 1, 8, 8)),
        "labels": (np.uint8, (1797,)),
    }
