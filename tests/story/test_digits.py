"""The digits: what is in the set, how it is divided, and what training does to an image."""

import numpy as np
import torch

from lit_guide.data import DigitsData


def test_each_of_1797_scans_is_in_one_split():
    data = DigitsData()
    images, rows = data.source.dataset.images, data.rows
    assert (images.dtype, images.shape, data.class_names) == (np.uint8, (1797, 1, 8, 8), list("0123456789"))
    assert np.bincount(data.source.labels_N).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert {name: len(indices) for name, indices in rows.items()} == {"train": 1168, "val": 270, "test": 359}
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(1797))
    pixels = images[rows["train"]] / 255
    np.testing.assert_allclose([*data.mean, *data.std], [pixels.mean(), pixels.std()], rtol=1e-6)


def test_training_images_are_shifted_and_turned_and_the_others_are_not():
    data = DigitsData()
    image_BCHW, label_B = next(iter(data.test_dataloader()))
    torch.manual_seed(0)
    changed_BCHW, plain_BCHW = (data.to_model(image_BCHW, label_B, training)[0] for training in (True, False))
    assert torch.equal(plain_BCHW, image_BCHW.float() / 255)
    assert ((changed_BCHW - plain_BCHW).abs().amax(dim=(1, 2, 3)) > 0.05).float().mean() > 0.9
