import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.errors import ConfigError
from lit_guide.engine.machine import usable_cores
from lit_guide.engine.photos import decode as decode_module
from lit_guide.engine.photos import images as images_module
from lit_guide.engine.photos.crops import EvalTransform
from lit_guide.engine.photos.decode import decode
from lit_guide.engine.photos.images import UNKNOWN, UNREADABLE, ImageFiles, ImagesToPredict


@pytest.fixture(name="rgb_HWC")
def small_picture():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def as_array(image_CHW):
    assert image_CHW.dtype == torch.uint8
    return image_CHW.permute(1, 2, 0).numpy()


# --- ImageFiles


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_squeezed_to_the_models_shape(photos, channels, mode):
    path, _ = photos["flower.jpg"]
    image_CHW, label = ImageFiles([path], (channels, 24, 40))[0]
    assert image_CHW.shape == (channels, 24, 40)
    assert image_CHW.dtype == torch.uint8
    assert label == UNKNOWN
    assert torch.equal(image_CHW, TF.resize(decode(path, mode), [24, 40], antialias=True))
    # The whole picture is there: each quarter has the mean of the same quarter of the photo.
    for small, large in zip(image_CHW.float().chunk(2, 1), decode(path, mode).float().chunk(2, 1), strict=True):
        for part, whole in zip(small.chunk(2, 2), large.chunk(2, 2), strict=True):
            torch.testing.assert_close(part.mean((1, 2)), whole.mean((1, 2)), atol=2.0, rtol=0)


def test_an_image_of_the_models_size_is_not_changed(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))
    np.testing.assert_array_equal(as_array(ImageFiles([path], (3, 5, 7))[0][0]), rgb_HWC)


def test_for_a_model_of_photos_the_centre_is_cut_out_as_in_its_evaluation(photos):
    path, _ = photos["china.jpg"]
    image_CHW, label = ImageFiles([path], (3, 64, 64), crop=0.8)[0]
    assert label == UNKNOWN
    assert torch.equal(image_CHW, EvalTransform(64, 0.8)(decode(path)))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder", "gone"])
def test_an_unreadable_file_is_marked_and_the_others_stay_right(tmp_path, photos, damage):
    good = [photos[name][0] for name in ("china.jpg", "flower.jpg")]
    bad = tmp_path / "bad.jpg"
    if damage == "folder":
        bad.mkdir()
    elif damage != "gone":
        content = {"text": b"no image", "empty": b"", "truncated": good[0].read_bytes()[:40000]}
        bad.write_bytes(content[damage])
    dataset = ImageFiles([good[0], bad, good[1]], (3, 8, 8))
    image_BCHW, label_B = next(iter(DataLoader(dataset, batch_size=3)))
    assert label_B.tolist() == [UNKNOWN, UNREADABLE, UNKNOWN]
    assert (image_BCHW[1] == 0).all()
    alone = ImageFiles(good, (3, 8, 8))
    assert torch.equal(image_BCHW[0], alone[0][0])
    assert torch.equal(image_BCHW[2], alone[1][0])


def test_an_image_too_large_to_be_honest_is_unreadable(tmp_path, monkeypatch, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))  # 35 pixels
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 35)
    assert ImageFiles([path], (3, 8, 8))[0][1] == UNKNOWN
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 34)
    assert ImageFiles([path], (3, 8, 8))[0][1] == UNREADABLE


def test_channels_that_no_image_file_has_are_refused():
    with pytest.raises(ConfigError, match=r"takes 2 channels; image files can give 1, 3 or 4"):
        ImageFiles([], (2, 8, 8))


# --- ImagesToPredict


@pytest.fixture
def album(tmp_path, rgb_HWC):
    folder = tmp_path / "album"
    (folder / "none").mkdir(parents=True)
    (folder / "none" / "notes.txt").write_text("no image")
    return saved(folder, Image.fromarray(rgb_HWC), "z.png").parent


def to_predict(paths, **kwargs):
    return ImagesToPredict(
        [str(path) for path in paths],
        ["cat", "dog"],
        input_shape=[3, 12, 16],
        mean=[0.1, 0.2, 0.3],
        std=[1.0, 2.0, 3.0],
        **kwargs,
    )


def test_predict_loader_gives_all_files_in_order_with_the_models_values(photos):
    paths = [photos[name][0] for name in ("flower.jpg", "china.jpg", "flower.jpg")]
    data = to_predict(paths, batch_size=2)
    batches = list(data.predict_dataloader())
    assert [label_B.tolist() for _, label_B in batches] == [[UNKNOWN] * 2, [UNKNOWN]]
    image_NCHW = torch.cat([image_BCHW for image_BCHW, _ in batches])
    assert torch.equal(image_NCHW[0], ImageFiles(paths, (3, 12, 16))[0][0])
    assert torch.equal(image_NCHW[1], ImageFiles(paths, (3, 12, 16))[1][0])
    assert torch.equal(image_NCHW[2], image_NCHW[0])
    assert data.sample_names("test") == [str(path) for path in paths]
    assert data.class_names == ["cat", "dog"]
    assert data.input_shape == (3, 12, 16)
    assert (data.mean, data.std) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])


def test_nothing_to_predict_is_an_error_of_the_command_with_every_reason(album):
    with pytest.raises(ConfigError) as caught:
        to_predict([album / "gone.png", album / "none"])
    assert f"--images: {album / 'gone.png'}: no such file or folder; {album / 'none'}: no image" in str(caught.value)


def test_what_is_missing_is_kept_beside_what_is_there(album):
    data = to_predict([album / "gone.png", album / "z.png"])
    assert data.files == [album / "z.png"]
    assert data.missing == {str(album / "gone.png"): "no such file or folder"}


def test_the_crop_of_the_models_data_reaches_the_images(photos):
    path, _ = photos["china.jpg"]
    data = ImagesToPredict([str(path)], ["cat", "dog"], [3, 16, 16], [0.5] * 3, [0.2] * 3, crop=0.5)
    image_1CHW, _ = next(iter(data.predict_dataloader()))
    assert torch.equal(image_1CHW[0], EvalTransform(16, 0.5)(decode(path)))


def test_loader_processes_start_only_where_there_are_many_files(photos, monkeypatch):
    data = to_predict([photos["china.jpg"][0]] * 3)
    assert data.auto_workers() == 0
    monkeypatch.setattr(images_module, "WORTH_WORKERS", 2)
    assert data.auto_workers() == usable_cores()
