import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lit_guide.engine.photos.crops import (
    EvalTransform,
    TrainTransform,
    random_box,
    resize,
    resize_shorter,
)


@pytest.fixture(scope="module", name="photo_CHW")
def a_real_photo(photos):
    return torch.from_numpy(photos["china.jpg"][1].copy()).permute(2, 0, 1).contiguous()


def some_image(height, width, channels=3):
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_close(actual_CHW, expected_CHW, atol=1):
    assert actual_CHW.dtype == torch.uint8
    assert actual_CHW.shape == expected_CHW.shape
    assert (actual_CHW.int() - expected_CHW.int()).abs().max() <= atol


def of_torchvision(image_CHW, size, crop):
    """Evaluation as torchvision writes it, and as its published weights were evaluated."""
    return v2.Compose([v2.Resize(round(size / crop), antialias=True), v2.CenterCrop(size)])(image_CHW.contiguous())


# --- resize


@pytest.mark.parametrize("size", [(224, 224), (100, 37), (427, 300), (500, 900), (1, 1), (3, 640)])
def test_photos_are_resized_as_pillow_does_it(photo_CHW, size):
    height, width = size
    photo = Image.fromarray(photo_CHW.permute(1, 2, 0).numpy())
    expected_HWC = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    assert_close(resize(photo_CHW, height, width), torch.from_numpy(expected_HWC.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels_and_any_memory_layout_give_the_same(channels):
    image_CHW = some_image(37, 53, channels)
    small_CHW = resize(image_CHW, 20, 31)
    assert small_CHW.shape == (channels, 20, 31)
    strided_CHW = image_CHW.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(resize(strided_CHW, 20, 31), small_CHW)
    assert torch.equal(resize(torch.cat([image_CHW, image_CHW], dim=2)[:, :, :53], 20, 31), small_CHW)
    for channel in range(channels):
        assert_close(resize(image_CHW[channel : channel + 1], 20, 31), small_CHW[channel : channel + 1])


def test_fine_stripes_become_grey_and_no_pattern():
    stripes_CHW = torch.zeros(3, 200, 200, dtype=torch.uint8)
    stripes_CHW[:, :, ::2] = 255
    small_CHW = resize(stripes_CHW, 50, 50)
    assert_close(small_CHW[:, :, 1:-1], torch.full_like(small_CHW, 127)[:, :, 1:-1], atol=2)


@pytest.mark.parametrize(
    ("height", "width", "side", "expected"),
    [
        (427, 640, 256, (256, 383)),  # 383.7: torchvision rounds down
        (640, 427, 256, (383, 256)),
        (100, 100, 64, (64, 64)),
        (20, 30, 40, (40, 60)),
        (1, 5, 3, (3, 15)),
    ],
)
def test_the_shorter_side_gets_the_size_and_the_longer_one_torchvisions(height, width, side, expected):
    image_CHW = some_image(height, width)
    assert resize_shorter(image_CHW, side).shape[1:] == expected
    assert_close(resize_shorter(image_CHW, side), TF.resize(image_CHW, [side], antialias=True))


def test_small_images_are_enlarged_only_on_request():
    image_CHW = some_image(20, 30)
    assert resize_shorter(image_CHW, 40, enlarge=False) is image_CHW
    assert resize_shorter(image_CHW, 20) is image_CHW
    assert resize_shorter(image_CHW, 10, enlarge=False).shape == (3, 10, 15)


# --- EvalTransform


@pytest.mark.parametrize(("size", "crop"), [(224, 0.875), (224, 224 / 232), (96, 1.0), (64, 0.5), (225, 0.9), (500, 0.875)])
def test_evaluation_equals_torchvisions_resize_and_centre_crop(photo_CHW, size, crop):
    for image_CHW in (photo_CHW, photo_CHW.transpose(1, 2), photo_CHW[:, :426, :555]):
        actual_CHW = EvalTransform(size, crop)(image_CHW)
        assert actual_CHW.shape == (3, size, size)
        assert_close(actual_CHW, of_torchvision(image_CHW, size, crop))


def test_evaluation_equals_torchvisions_for_all_small_shapes():
    image_CHW = some_image(14, 14)
    for height in range(1, 15):
        for width in range(1, 15):
            part_CHW = image_CHW[:, :height, :width]
            for size, crop in ((6, 0.875), (7, 0.6)):
                assert_close(EvalTransform(size, crop)(part_CHW), of_torchvision(part_CHW, size, crop))


def test_evaluation_is_the_same_every_time_and_leaves_the_image_alone(photo_CHW):
    before_CHW = photo_CHW.clone()
    transform = EvalTransform(64, 0.875)
    assert torch.equal(transform(photo_CHW), transform(photo_CHW))
    assert torch.equal(photo_CHW, before_CHW)


@pytest.mark.parametrize(("height", "width"), [(1, 1000), (1000, 1), (1, 999), (2, 1001), (1, 16), (1, 17)])
def test_of_a_very_long_image_the_middle_is_taken_as_torchvision_does_it(height, width):
    steps = (torch.arange(max(height, width)) * 37 % 256).to(torch.uint8)
    image_CHW = steps.view(1, -1, 1).expand(3, -1, width) if height > width else steps.view(1, 1, -1).expand(3, height, -1)
    actual_CHW = EvalTransform(28, 0.875)(image_CHW)
    assert actual_CHW.shape == (3, 28, 28)
    assert_close(actual_CHW, of_torchvision(image_CHW, 28, 0.875), atol=2)


def test_a_very_long_image_costs_no_more_memory_than_its_middle(monkeypatch):
    scaled = []
    monkeypatch.setattr(
        "torch.nn.functional.interpolate", lambda image, size, **_: scaled.append(size) or image.new_zeros(1, 3, *size)
    )
    EvalTransform(224, 0.875)(torch.zeros(3, 1, 60_000, dtype=torch.uint8))
    assert scaled == [(256, 16 * 256)]


# --- random_box


def drawn(height, width, min_area, count):
    torch.manual_seed(0)
    return torch.tensor([random_box(height, width, min_area) for _ in range(count)])


@pytest.mark.parametrize("min_area", [0.001, 0.08, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (1, 1), (1, 1000), (1000, 1), (3, 5), (2, 2), (100, 134)])
def test_random_boxes_lie_inside_the_image(height, width, min_area):
    top_N, left_N, height_N, width_N = drawn(height, width, min_area, 300).T
    assert min(top_N.min(), left_N.min()) >= 0
    assert min(height_N.min(), width_N.min()) >= 1
    assert (top_N + height_N).max() <= height
    assert (left_N + width_N).max() <= width


def test_random_boxes_reach_every_edge():
    boxes_N4 = drawn(20, 20, 0.3, 500)
    top_N, left_N, height_N, width_N = boxes_N4[(boxes_N4[:, 2:] < 20).all(1)].T
    assert (top_N.min(), left_N.min()) == (0, 0)
    assert ((top_N + height_N).max(), (left_N + width_N).max()) == (20, 20)


@pytest.mark.parametrize(
    ("height", "width", "min_area"),
    [(427, 640, 0.08), (640, 427, 0.08), (200, 200, 0.3), (100, 300, 0.08), (100, 180, 0.8)],
)
def test_areas_shapes_and_places_are_spread_as_torchvisions(height, width, min_area):
    count = 4000
    ours_N4 = drawn(height, width, min_area, count)
    image_CHW = torch.empty(3, height, width, device="meta")
    crop = v2.RandomResizedCrop(1, scale=(min_area, 1.0), ratio=(3 / 4, 4 / 3))
    torch.manual_seed(1)
    rows = [crop.make_params([image_CHW]) for _ in range(count)]
    theirs_N4 = torch.tensor([[row[k] for k in ("top", "left", "height", "width")] for row in rows])
    for measure in (
        lambda top, left, h, w: h * w / (height * width),
        lambda top, left, h, w: (w / h).log() / math.log(4 / 3) / 2,
        lambda top, left, h, w: (top + h / 2) / height,
        lambda top, left, h, w: (left + w / 2) / width,
    ):
        ours_N, theirs_N = (measure(*boxes_N4.double().T) for boxes_N4 in (ours_N4, theirs_N4))
        # Kolmogorov and Smirnov: the largest distance of the two distribution functions; 0.055 is 1 in 90,000 for equal ones.
        both = torch.cat([ours_N, theirs_N]).unique()
        distances = [torch.searchsorted(values.sort()[0], both, right=True) / count for values in (ours_N, theirs_N)]
        assert (distances[0] - distances[1]).abs().max() < 0.055


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (1, 1000, (0, 499, 1, 1)),
        (1000, 1, (499, 0, 1, 1)),
        (30, 3000, (0, 1480, 30, 40)),
        (3000, 30, (1480, 0, 40, 30)),
    ],
)
def test_of_a_very_long_image_the_middle_with_allowed_sides_is_cut_out(height, width, box):
    assert random_box(height, width, 1.0) == box
    image_CHW = torch.empty(3, height, width, device="meta")
    params = v2.RandomResizedCrop(1, scale=(1.0, 1.0)).make_params([image_CHW])
    assert box == tuple(params[k] for k in ("top", "left", "height", "width"))


def test_boxes_follow_the_seed():
    assert torch.equal(drawn(427, 640, 0.08, 50), drawn(427, 640, 0.08, 50))
    assert len(set(map(tuple, drawn(427, 640, 0.08, 50).tolist()))) == 50


# --- TrainTransform


def test_a_training_image_is_the_box_drawn_resized_and_mirrored_by_chance(photo_CHW):
    transform = TrainTransform(32, 0.08, flip=True)
    mirrored = 0
    for seed in range(40):
        torch.manual_seed(seed)
        actual_CHW = transform(photo_CHW)
        torch.manual_seed(seed)
        box = random_box(427, 640, 0.08)
        flip = bool(torch.rand(()) < 0.5)
        expected_CHW = TF.resized_crop(photo_CHW, *box, [32, 32], antialias=True)
        assert_close(actual_CHW, expected_CHW.flip(2) if flip else expected_CHW)
        mirrored += flip
    assert 10 <= mirrored <= 30


def test_without_flip_no_training_image_is_mirrored():
    ramp_CHW = torch.arange(200, dtype=torch.uint8).view(1, 1, 200).expand(3, 150, 200)
    right = dict.fromkeys((False, True), 0)
    for flip in right:
        torch.manual_seed(0)
        for _ in range(60):
            image_CHW = TrainTransform(16, 0.3, flip=flip)(ramp_CHW).int()
            right[flip] += int((image_CHW[:, :, -1] > image_CHW[:, :, 0]).all())
    assert right[False] == 60
    assert 15 <= right[True] <= 45


def test_training_draws_follow_the_seed(photo_CHW):
    transform = TrainTransform(24, 0.08, flip=True, extra=[v2.RandAugment(), v2.RandomErasing(0.5)])
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.stack([transform(photo_CHW) for _ in range(6)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len({tuple(image_CHW.flatten().tolist()) for image_CHW in runs[0]}) == 6


def test_extra_transforms_come_after_cutting_in_their_order(photo_CHW):
    seen = []

    def extra(image_CHW):
        seen.append(image_CHW.clone())
        return 255 - image_CHW

    def erase(image_CHW):
        return image_CHW // 2

    torch.manual_seed(3)
    actual_CHW = TrainTransform(20, 0.5, flip=True, extra=[extra, erase])(photo_CHW)
    torch.manual_seed(3)
    plain_CHW = TrainTransform(20, 0.5, flip=True)(photo_CHW)
    assert torch.equal(seen[0], plain_CHW)
    assert torch.equal(actual_CHW, (255 - plain_CHW) // 2)


def test_erasing_blacks_out_one_rectangle(photo_CHW):
    torch.manual_seed(0)
    bright_CHW = photo_CHW.clamp(min=1)
    image_CHW = TrainTransform(64, 0.08, flip=False, extra=[v2.RandomErasing(1.0)])(bright_CHW)
    black_HW = (image_CHW == 0).all(0)
    rows, columns = black_HW.any(1).nonzero(), black_HW.any(0).nonzero()
    assert black_HW[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    assert 0.02 <= black_HW.float().mean() <= 0.34


@pytest.mark.parametrize("extra", [v2.RandAugment, v2.TrivialAugmentWide])
def test_torchvisions_policies_keep_size_and_type(photo_CHW, extra):
    torch.manual_seed(0)
    transform = TrainTransform(30, 0.08, flip=True, extra=[extra()])
    for _ in range(40):
        image_CHW = transform(photo_CHW)
        assert image_CHW.shape == (3, 30, 30)
        assert image_CHW.dtype == torch.uint8


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 1000), (1000, 1), (1, 3), (7, 5), (2, 4000)])
def test_images_of_any_shape_become_squares(height, width):
    torch.manual_seed(0)
    image_CHW = some_image(height, width)
    before_CHW = image_CHW.clone()
    for transform in (TrainTransform(17, 0.08, flip=True), TrainTransform(17, 1.0, flip=False), EvalTransform(17, 0.875)):
        for _ in range(10):
            square_CHW = transform(image_CHW)
            assert square_CHW.shape == (3, 17, 17)
            assert square_CHW.dtype == torch.uint8
    assert torch.equal(image_CHW, before_CHW)


def test_with_min_area_1_nearly_the_whole_image_is_seen():
    areas_N = drawn(300, 300, 1.0, 200)[:, 2:].prod(1) / 300**2
    assert areas_N.min() > 0.98
