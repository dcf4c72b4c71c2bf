from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF

from lit_guide.data.images import (
    UNKNOWN,
    UNREADABLE,
    ImageFiles,
    ImagesToPredict,
    decode,
    find_images,
)
from lit_guide.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, what Pillow converts to grey with


@pytest.fixture(scope="module")
def photos():
    """name -> (path, pixels_HWC) of two real photos, 427 x 640."""
    with as_file(files("sklearn.datasets.images")) as folder:
        sample = load_sample_images()
        names = [Path(name).name for name in sample.filenames]
        yield {name: (folder / name, pixels) for name, pixels in zip(names, sample.images, strict=True)}


@pytest.fixture(name="rgb_HWC")
def small_picture():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def as_array(image_CHW):
    assert image_CHW.dtype == torch.uint8
    return image_CHW.permute(1, 2, 0).numpy()


# --- decode


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photos_are_decoded_as_scikit_learn_does(photos, name):
    path, pixels_HWC = photos[name]
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), pixels_HWC)
    grey_HW = pixels_HWC @ LUMA
    assert np.abs(as_array(decode(path, "L"))[:, :, 0] - grey_HW).max() <= 1


def test_rgb_stays_exact_and_gets_an_opaque_fourth_channel(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC))
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), rgb_HWC)
    rgba_HWC = as_array(decode(path, "RGBA"))
    np.testing.assert_array_equal(rgba_HWC[:, :, :3], rgb_HWC)
    assert (rgba_HWC[:, :, 3] == 255).all()


def test_grey_is_repeated_in_every_colour(tmp_path, rgb_HWC):
    path = saved(tmp_path, Image.fromarray(rgb_HWC[:, :, 0]))
    grey_1HW = decode(path, "L")
    assert grey_1HW.shape == (1, 5, 7)
    np.testing.assert_array_equal(grey_1HW[0].numpy(), rgb_HWC[:, :, 0])
    assert torch.equal(decode(path, "RGB"), grey_1HW.expand(3, -1, -1))


def test_alpha_is_dropped_for_colour_and_kept_for_four_channels(tmp_path, rgb_HWC):
    rgba_HWC = np.dstack([rgb_HWC, np.full((5, 7), 200, dtype=np.uint8)])
    path = saved(tmp_path, Image.fromarray(rgba_HWC))
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), rgb_HWC)
    np.testing.assert_array_equal(as_array(decode(path, "RGBA")), rgba_HWC)


def test_palette_indices_become_their_colours(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([2, 0, 1])
    path = saved(tmp_path, image)
    assert as_array(decode(path, "RGB")).tolist() == [[[10, 20, 30], [255, 0, 0], [0, 255, 0]]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    path = saved(tmp_path, image, "image.jpg", quality=100)
    rgb_HWC = as_array(decode(path, "RGB"))
    assert rgb_HWC.shape == (16, 16, 3)
    assert np.abs(rgb_HWC.astype(int) - [255, 0, 0]).max() <= 2


def test_one_bit_is_black_and_white(tmp_path):
    image = Image.new("1", (3, 1))
    image.putdata([0, 255, 0])
    path = saved(tmp_path, image)
    assert decode(path, "L").tolist() == [[[0, 255, 0]]]
    assert as_array(decode(path, "RGB")).tolist() == [[[0] * 3, [255] * 3, [0] * 3]]


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    pixels_HW = np.array([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(pixels_HW), name)
    with Image.open(path) as file:
        assert file.mode.startswith("I")
    np.testing.assert_array_equal(decode(path, "L")[0].numpy(), pixels_HW // 256)
    np.testing.assert_array_equal(decode(path, "RGB")[2].numpy(), pixels_HW // 256)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, rgb_HWC, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(rgb_HWC), exif=exif)
    np.testing.assert_array_equal(as_array(decode(path, "RGB")), upright(rgb_HWC))


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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = saved(tmp_path, Image.fromarray(rgb_HWC))  # 35 pixels, over twice the limit
    assert ImageFiles([path], (3, 8, 8))[0][1] == UNREADABLE


def test_channels_that_no_image_file_has_are_refused():
    with pytest.raises(ConfigError, match=r"takes 2 channels; image files can give 1, 3 or 4"):
        ImageFiles([], (2, 8, 8))


# --- find_images


@pytest.fixture
def album(tmp_path, rgb_HWC):
    image = Image.fromarray(rgb_HWC)
    folder = tmp_path / "album"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "none").mkdir()
    for name in ("z.png", "a.JPG", "b/deep/c.webp"):
        image.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "none" / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    return folder


def test_a_folder_stands_for_the_images_at_any_depth_in_order(album):
    assert find_images([str(album)]) == ([album / "a.JPG", album / "b/deep/c.webp", album / "z.png"], {})


def test_files_keep_the_order_they_are_given_in(album):
    given = [str(album / "z.png"), str(album / "b"), str(album / "a.JPG")]
    assert find_images(given)[0] == [album / "z.png", album / "b/deep/c.webp", album / "a.JPG"]


def test_a_file_given_by_name_is_taken_whatever_it_is_called(album):
    assert find_images([str(album / "notes.txt")]) == ([album / "notes.txt"], {})


def test_missing_paths_and_folders_without_images_are_told_with_the_reason(album):
    files_, missing = find_images([str(album / "gone.png"), str(album / "none"), str(album / "z.png")])
    assert files_ == [album / "z.png"]
    assert missing == {
        str(album / "gone.png"): "no such file or folder",
        str(album / "none"): "no image files in this folder",
    }


# --- ImagesToPredict


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
