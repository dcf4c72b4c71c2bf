import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.data.module import random_affine, random_crop_flip
from lit_guide.engine.data.source import to_float


def distinct_images(B, C, H, W):
    return torch.randint(1, 256, (B, C, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def all_crops(image_CHW, pad_h, pad_w):
    H, W = image_CHW.shape[1:]
    padded = TF.pad(image_CHW, [pad_w, pad_h, pad_w, pad_h])
    crops = {}
    for top in range(2 * pad_h + 1):
        for left in range(2 * pad_w + 1):
            crop = TF.crop(padded, top, left, H, W)
            crops[top, left, False], crops[top, left, True] = crop, TF.horizontal_flip(crop)
    return crops


def find_draws(image_BCHW, result_BCHW, pad_h, pad_w):
    draws = []
    for image_CHW, result_CHW in zip(image_BCHW, result_BCHW, strict=True):
        crops = all_crops(image_CHW, pad_h, pad_w)
        found = [draw for draw, crop in crops.items() if torch.equal(crop, result_CHW)]
        assert len(found) == 1, f"{len(found)} crops of torchvision equal the result"
        draws += found
    return draws


@pytest.mark.parametrize(
    ("shape", "shift", "pads"), [((3, 16, 16), 0.125, (2, 2)), ((1, 8, 24), 0.125, (1, 3)), ((2, 9, 5), 0.3, (3, 2))]
)
def test_each_image_is_one_of_torchvisions_padded_crops(shape, shift, pads):
    torch.manual_seed(0)
    image_BCHW = distinct_images(64, *shape)
    draws = find_draws(image_BCHW, random_crop_flip(image_BCHW, shift, flip=True), *pads)
    tops, lefts, mirrored = (set(column) for column in zip(*draws, strict=True))
    assert tops == set(range(2 * pads[0] + 1))
    assert lefts == set(range(2 * pads[1] + 1))
    assert mirrored == {False, True}


def test_every_image_of_a_batch_has_its_own_crop():
    torch.manual_seed(0)
    image_1CHW = distinct_images(1, 3, 16, 16)
    result_BCHW = random_crop_flip(image_1CHW.expand(200, -1, -1, -1), 0.125, flip=True)
    draws = find_draws(image_1CHW.expand(200, -1, -1, -1), result_BCHW, 2, 2)
    assert len(set(draws)) >= 40  # of 50 there are
    # Rows, columns and the mirror are drawn apart from one another.
    correlation = np.corrcoef(np.array(draws, dtype=float).T)
    assert np.abs(correlation[~np.eye(3, dtype=bool)]).max() < 0.2


def test_channels_of_an_image_move_together():
    plane_B1HW = distinct_images(20, 1, 12, 12)
    result_BCHW = random_crop_flip(plane_B1HW.expand(-1, 3, -1, -1), 0.25, flip=True)
    assert torch.equal(result_BCHW[:, 0], result_BCHW[:, 1])
    assert torch.equal(result_BCHW[:, 0], result_BCHW[:, 2])


def test_about_half_of_the_images_are_exact_mirrors():
    torch.manual_seed(0)
    image_BCHW = distinct_images(2000, 1, 4, 6)
    result_BCHW = random_crop_flip(image_BCHW, shift=0.0, flip=True)
    same_B = (result_BCHW == image_BCHW).flatten(1).all(1)
    mirror_B = (result_BCHW == image_BCHW.flip(3)).flatten(1).all(1)
    assert (same_B ^ mirror_B).all()
    assert abs(mirror_B.float().mean() - 0.5) < 4 * math.sqrt(0.25 / 2000)


def test_nothing_is_mirrored_without_flip():
    torch.manual_seed(0)
    image_BCHW = distinct_images(200, 1, 8, 8)
    draws = find_draws(image_BCHW, random_crop_flip(image_BCHW, 0.125, flip=False), 1, 1)
    assert not any(mirrored for _, _, mirrored in draws)
    assert torch.equal(random_crop_flip(image_BCHW, 0.0, flip=False), image_BCHW)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.int64])
def test_crop_keeps_dtype_and_shape_and_leaves_the_input_alone(dtype):
    image_BCHW = distinct_images(8, 3, 10, 14).to(dtype)
    before = image_BCHW.clone()
    result_BCHW = random_crop_flip(image_BCHW, 0.2, flip=True)
    assert result_BCHW.dtype == dtype
    assert result_BCHW.shape == image_BCHW.shape
    assert torch.equal(image_BCHW, before)
    assert result_BCHW.data_ptr() != image_BCHW.data_ptr()


@pytest.mark.parametrize("function", [random_crop_flip, random_affine])
def test_a_batch_that_is_not_contiguous_gives_the_same(function):
    image_BCHW = distinct_images(16, 3, 8, 12).float()
    channels_last_BCHW = image_BCHW.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not channels_last_BCHW.is_contiguous()
    rest = (0.25, True) if function is random_crop_flip else (0.25, 20.0, True)
    torch.manual_seed(4)
    expected_BCHW = function(image_BCHW, *rest)
    torch.manual_seed(4)
    torch.testing.assert_close(function(channels_last_BCHW, *rest), expected_BCHW)


def draw_only(monkeypatch, value):
    """Make every uniform draw this value: 1 is the upper end of a range, 0 the lower one, 0.5 the middle."""
    monkeypatch.setattr(torch, "rand", lambda *size, **like: torch.full(size, value, **like))


def test_affine_without_shift_and_turn_is_the_identity():
    image_BCHW = torch.rand(6, 3, 9, 13)
    torch.testing.assert_close(random_affine(image_BCHW, 0.0, 0.0, flip=False), image_BCHW, atol=1e-5, rtol=0)


def test_affine_without_shift_and_turn_mirrors_half_of_the_images_exactly():
    torch.manual_seed(0)
    image_BCHW = torch.rand(1000, 1, 4, 6)
    result_BCHW = random_affine(image_BCHW, 0.0, 0.0, flip=True)
    same_B = ((result_BCHW - image_BCHW).abs() < 1e-5).flatten(1).all(1)
    mirror_B = ((result_BCHW - image_BCHW.flip(3)).abs() < 1e-5).flatten(1).all(1)
    assert (same_B ^ mirror_B).all()
    assert abs(mirror_B.float().mean() - 0.5) < 4 * math.sqrt(0.25 / 1000)


@pytest.mark.parametrize(("draw", "angle"), [(1.0, 30.0), (0.0, -30.0), (0.75, 15.0), (0.5, 0.0)])
@pytest.mark.parametrize("size", [(16, 16), (12, 31), (31, 12)])
def test_turn_equals_torchvisions_rotate_whatever_the_aspect_ratio(monkeypatch, draw, angle, size):
    image_BCHW = torch.rand(2, 3, *size)
    draw_only(monkeypatch, draw)
    expected_BCHW = TF.rotate(image_BCHW, angle, InterpolationMode.BILINEAR)
    torch.testing.assert_close(random_affine(image_BCHW, 0.0, 30.0, flip=False), expected_BCHW, atol=1e-4, rtol=0)


def test_quarter_turn_is_exact(monkeypatch):
    image_BCHW = torch.rand(2, 1, 8, 8)
    draw_only(monkeypatch, 1.0)
    expected_BCHW = torch.rot90(image_BCHW, 1, (2, 3))
    torch.testing.assert_close(random_affine(image_BCHW, 0.0, 90.0, flip=False), expected_BCHW, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("draw", "sign"), [(1.0, -1), (0.0, 1)])
def test_largest_shift_is_the_given_fraction_of_each_side(monkeypatch, draw, sign):
    image_BCHW = torch.rand(2, 3, 8, 16)
    draw_only(monkeypatch, draw)
    result_BCHW = random_affine(image_BCHW, 0.25, 0.0, flip=False)
    expected_BCHW = TF.affine(image_BCHW, 0.0, [sign * 4, sign * 2], 1.0, [0.0, 0.0])  # a quarter of W 16 and of H 8
    torch.testing.assert_close(result_BCHW, expected_BCHW, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (12, 31)])
def test_turn_with_mirror_is_the_mirror_of_torchvisions_rotate(monkeypatch, size):
    image_BCHW = torch.rand(2, 3, *size)
    draw_only(monkeypatch, 0.25)  # minus half of the largest turn, and a mirror
    result_BCHW = random_affine(image_BCHW, 0.0, 40.0, flip=True)
    expected_BCHW = TF.horizontal_flip(TF.rotate(image_BCHW, -20.0, InterpolationMode.BILINEAR))
    torch.testing.assert_close(result_BCHW, expected_BCHW, atol=1e-4, rtol=0)


def test_every_image_of_a_batch_is_turned_and_shifted_by_its_own_amount():
    torch.manual_seed(0)
    spot_BCHW = torch.zeros(300, 1, 33, 33)
    spot_BCHW[:, :, 16, 24] = 1.0  # 8 pixels right of the centre
    turned_BCHW = random_affine(spot_BCHW, 0.0, 45.0, flip=False)
    axis = torch.arange(33.0) - 16
    mass_B = turned_BCHW.sum((1, 2, 3))
    x_B = (turned_BCHW.sum((1, 2)) * axis).sum(1) / mass_B
    y_B = (turned_BCHW.sum((1, 3)) * axis).sum(1) / mass_B
    angle_B = torch.rad2deg(torch.atan2(-y_B, x_B))
    assert angle_B.abs().max() < 45 + 6  # sampling moves the centre of mass by less than a pixel
    assert angle_B.min() < -35
    assert angle_B.max() > 35
    assert abs(angle_B.mean()) < 4 * 45 / math.sqrt(3 * 300)
    shifted_BCHW = random_affine(spot_BCHW, 0.1, 0.0, flip=False)
    dx_B = (shifted_BCHW.sum((1, 2)) * axis).sum(1) / shifted_BCHW.sum((1, 2, 3)) - 8
    dy_B = (shifted_BCHW.sum((1, 3)) * axis).sum(1) / shifted_BCHW.sum((1, 2, 3))
    for moved_B in (dx_B, dy_B):
        assert moved_B.abs().max() <= 3.31  # a tenth of 33
        assert moved_B.min() < -3
        assert moved_B.max() > 3
    assert abs(np.corrcoef(dx_B, dy_B)[0, 1]) < 0.2


def test_pixels_that_come_from_outside_are_zero(monkeypatch):
    draw_only(monkeypatch, 0.0)
    result_BCHW = random_affine(torch.ones(1, 1, 8, 8), 0.5, 0.0, flip=False)
    torch.testing.assert_close(result_BCHW[0, 0], torch.block_diag(torch.zeros(4, 4), torch.ones(4, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_affine_keeps_dtype_and_shape(dtype):
    result_BCHW = random_affine(torch.rand(3, 2, 8, 10, dtype=dtype), 0.1, 10.0, flip=True)
    assert result_BCHW.dtype == dtype
    assert result_BCHW.shape == (3, 2, 8, 10)


def test_to_float_divides_bytes_by_255_and_nothing_else():
    every_byte = torch.arange(256, dtype=torch.uint8)
    expected = torch.from_numpy(np.arange(256) / 255).float()
    assert to_float(every_byte).dtype == torch.float32
    torch.testing.assert_close(to_float(every_byte), expected, atol=1e-7, rtol=0)
    for dtype in (torch.float16, torch.float32, torch.float64):
        kept = to_float(torch.tensor([0.0, 0.25, 1.0], dtype=dtype))
        assert kept.dtype == torch.float32
        assert kept.tolist() == [0.0, 0.25, 1.0]
