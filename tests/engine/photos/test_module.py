"""What every source of photos shares: transforms, splits, sampling, statistics, caches, and a run from start to end."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.utils.class_weight import compute_class_weight
from torchvision.transforms import v2

from lit_guide import LitClassifier, load_classifier
from lit_guide.cli import main
from lit_guide.data import FolderData, TableData
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos import module as photos
from lit_guide.engine.photos.decode import decode
from lit_guide.engine.run.checkpoint import read_checkpoint

NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
FIT = ["fit", "--config", "configs/folder.yaml", "--accelerator", "cpu"]
TINY = ["--model.network", "cnn", "--data.image_size", "32", "--data.batch_size", "4"]
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (240, 10, 60)}


def folder_of(root, counts, draw):
    """root/<class>/<number>.png for so many images a class; draw(class, number) gives the pixels."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(name, number)).save(root / name / f"{number:03d}.png")
    return root


def plain(name, number):
    """One colour for each class; the size tells the images apart."""
    return np.full((24 + number % 7, 30 + number // 7, 3), COLOURS[name], dtype=np.uint8)


def patches(sizes):
    """Pieces of two real photos, of the given (height, width) in turn."""
    china, flower = load_sample_images().images

    def draw(name, number):
        height, width = sizes[number % len(sizes)]
        photo = {"china": china, "flower": flower}[name]
        top, left = 7 * number % (427 - height), 13 * number % (640 - width)
        return photo[top : top + height, left : left + width]

    return draw


def folder_data(root, **kwargs):
    return FolderData(str(root), **{"image_size": 16, "num_workers": 0} | kwargs)


def batches_of(loader, seed):
    torch.manual_seed(seed)
    return [(image_BCHW.clone(), label_B) for image_BCHW, label_B in loader]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


# --- transforms


def test_evaluation_scales_the_shorter_side_and_cuts_the_centre_out(tmp_path):
    root = folder_of(tmp_path / "set", {"china": 4, "flower": 4}, patches([(200, 300), (300, 200), (64, 64), (20, 40)]))
    data = folder_data(root, image_size=56, crop=0.875, val_fraction=0, test_fraction=0)
    reference = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])
    samples = data.samples(training=False)
    for row, path in enumerate(data.sample_names("train")):
        image_CHW, label = samples[row]
        assert image_CHW.dtype == torch.uint8
        assert image_CHW.shape == (3, 56, 56) == data.input_shape
        assert label == ("flower" in path)
        assert (image_CHW.int() - reference(decode(path)).int()).abs().max() <= 1


def test_crop_1_keeps_the_whole_of_a_square_image(tmp_path):
    root = folder_of(tmp_path / "set", {"china": 8, "flower": 8}, patches([(16, 16)]))
    data = folder_data(root, crop=1.0)
    for row, path in zip(data.rows["test"].tolist(), data.sample_names("test"), strict=True):
        assert torch.equal(data.samples(training=False)[row][0], decode(path))


@pytest.fixture
def gradient(tmp_path):
    """White images whose red falls to the right and whose green falls downwards, so a cut-out says where it is from."""
    red_W, green_H = np.linspace(240, 20, 96), np.linspace(240, 20, 96)

    def draw(name, number):
        pixels_HWC = np.full((96, 96, 3), 255, dtype=np.uint8)
        pixels_HWC[:, :, 0], pixels_HWC[:, :, 1] = red_W[None], green_H[:, None]
        pixels_HWC[0, 0] = number  # no two are equal
        return pixels_HWC

    return folder_of(tmp_path / "set", {"a": 10, "b": 10}, draw)


def drawn(data, count=200):
    torch.manual_seed(0)
    samples, rows = data.samples(training=True), data.rows["train"]
    return torch.stack([samples[int(rows[index % len(rows)])][0] for index in range(count)])


def test_training_cuts_parts_of_every_place_and_size_and_mirrors_half_of_them(gradient):
    image_NCHW = drawn(folder_data(gradient)).float()
    assert image_NCHW.shape == (200, 3, 16, 16)
    fall_N = image_NCHW[:, 0, :, 0].mean(1) - image_NCHW[:, 0, :, -1].mean(1)  # of the red, over the width
    assert 70 <= (fall_N < 0).sum() <= 130
    # The sides that were cut out: of 0.08 to 1 of the area, so most are smaller than the image.
    width_N = fall_N.abs() / 220 * 16 / 15
    assert width_N.min() < 0.35
    assert width_N.max() > 0.9
    centre_N = image_NCHW[:, 1].mean((1, 2))
    assert centre_N.min() < 90
    assert centre_N.max() > 170


def test_nothing_is_mirrored_where_flip_is_off(gradient):
    image_NCHW = drawn(folder_data(gradient, flip=False)).float()
    assert (image_NCHW[:, 0, :, 0].mean(1) > image_NCHW[:, 0, :, -1].mean(1)).all()


def test_min_area_1_keeps_nearly_all_of_the_image(gradient):
    image_NCHW = drawn(folder_data(gradient, flip=False, min_area=1.0)).float()
    assert (image_NCHW[:, 0, :, 0].mean(1) - image_NCHW[:, 0, :, -1].mean(1)).min() > 150


def test_without_augment_training_sees_what_evaluation_sees(gradient):
    data = folder_data(gradient, augment=False, erasing=1.0, auto_augment="trivialaugment")
    for row in range(4):
        assert torch.equal(data.samples(training=True)[row][0], data.samples(training=False)[row][0])


def test_erasing_blacks_one_rectangle_out_and_only_in_training(gradient):
    image_NCHW = drawn(folder_data(gradient, erasing=1.0))
    black_NHW = (image_NCHW == 0).all(dim=1)
    for black_HW in black_NHW:
        rows, columns = black_HW.any(1).nonzero().flatten(), black_HW.any(0).nonzero().flatten()
        assert black_HW.sum() == len(rows) * len(columns) > 0
        assert rows[-1] - rows[0] + 1 == len(rows)
    half_N = (drawn(folder_data(gradient, erasing=0.5)) == 0).all(dim=1).any(-1).any(-1)
    assert 70 <= half_N.sum() <= 130
    assert not (drawn(folder_data(gradient)) == 0).all(dim=1).any()
    evaluated = folder_data(gradient, erasing=1.0).samples(training=False)
    assert not (evaluated[0][0] == 0).all(dim=0).any()


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_auto_augment_changes_colours_and_shapes(gradient, policy):
    calm, changed = (folder_data(gradient, flip=False, min_area=1.0, auto_augment=kind) for kind in ("none", policy))
    calm_NHW, changed_NHW = (drawn(data, 60)[:, 2] for data in (calm, changed))  # blue: 255 all over, if nothing is done
    assert calm_NHW.dtype == changed_NHW.dtype == torch.uint8
    assert ((calm_NHW != 255).float().mean((1, 2)) < 0.05).all()
    assert ((changed_NHW != 255).float().mean((1, 2)) > 0.05).float().mean() > 0.4


# --- what training gets


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("uneven") / "set", {"blue": 90, "green": 30, "red": 10}, plain)


def test_labels_belong_to_the_images_of_their_batch(uneven):
    data = folder_data(uneven, batch_size=8, auto_augment="none")
    colour_KC = torch.tensor([COLOURS[name] for name in data.class_names])
    for loader, count in ((data.train_dataloader(), 84), (data.val_dataloader(), 20), (data.test_dataloader(), 26)):
        seen = 0
        for image_BCHW, label_B in loader:
            assert image_BCHW.dtype == torch.uint8
            assert torch.equal(image_BCHW, colour_KC[label_B].to(torch.uint8)[:, :, None, None].expand(-1, -1, 16, 16))
            seen += len(label_B)
        assert seen == count


def test_shuffle_shows_every_image_once_an_epoch_and_balanced_every_class_equally_often(uneven):
    shuffled = folder_data(uneven, batch_size=8)
    for seed in range(3):
        labels = torch.cat([label_B for _, label_B in batches_of(shuffled.train_dataloader(), seed)])
        assert torch.bincount(labels).tolist() == shuffled.class_counts() == [58, 20, 6]
    balanced = folder_data(uneven, batch_size=8, sampler="balanced")
    counts_K = torch.zeros(3)
    for seed in range(20):
        labels = torch.cat([label_B for _, label_B in batches_of(balanced.train_dataloader(), seed)])
        assert len(labels) == 84
        counts_K += torch.bincount(labels, minlength=3)
    draws = 20 * 84
    spread = math.sqrt(draws * (1 / 3) * (2 / 3))
    assert ((counts_K - draws / 3).abs() < 4 * spread).all()
    assert torch.cat([label_B for _, label_B in balanced.val_dataloader()]).bincount().tolist() == shuffled.class_counts("val")


def classifier(data, **kwargs):
    return LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network="cnn", **kwargs)


def train_a_step(data, model, tmp_path):
    Trainer(
        accelerator="cpu",
        fast_dev_run=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(model, datamodule=data)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_class_weights_auto_are_those_that_scikit_learn_calls_balanced(uneven, tmp_path):
    data = folder_data(uneven, image_size=8, batch_size=8)
    model = classifier(data, class_weights="auto")
    train_a_step(data, model, tmp_path)
    labels = data.source.labels_N[data.rows["train"]]
    expected_K = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(model.criterion.weight.numpy(), expected_K, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "kwargs",
    [
        {"erasing": 0.5, "auto_augment": "randaugment"},
        {"cache": "ram", "auto_augment": "trivialaugment"},
        {"sampler": "balanced", "mixup": 0.2},
        {"cutmix": 1.0},
    ],
)
def test_a_step_of_training_changes_the_weights_with_each_option(uneven, tmp_path, kwargs):
    data = folder_data(uneven, image_size=8, batch_size=8, **kwargs)
    model = classifier(data)
    before = [parameter.clone() for parameter in model.parameters()]
    train_a_step(data, model, tmp_path)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# --- MixUp and CutMix


def mixed_batches(data, count=40):
    """(image_BCHW, label_BK) as the network gets them, and the labels (B,) that they were made of."""
    torch.manual_seed(0)
    for image_BCHW, label_B in [batch for _ in range(count // 10) for batch in data.train_dataloader()][:count]:
        yield *data.to_model(image_BCHW, label_B, training=True), label_B


def blend(data, label_BK):
    """The colours (B, C) that a blend of the classes in these shares has."""
    return label_BK @ torch.tensor([COLOURS[name] for name in data.class_names], dtype=torch.float32) / 255


def is_mixup(data, image_BCHW, label_BK):
    return torch.allclose(image_BCHW, blend(data, label_BK)[:, :, None, None].expand_as(image_BCHW), atol=1e-5)


def test_mixup_blends_images_as_their_labels_say(uneven):
    data = folder_data(uneven, batch_size=8, mixup=0.8)
    shares = []
    for image_BCHW, label_BK, label_B in mixed_batches(data):
        assert image_BCHW.dtype == label_BK.dtype == torch.float32
        assert label_BK.shape == (len(image_BCHW), 3)
        torch.testing.assert_close(label_BK.sum(dim=1), torch.ones(len(label_BK)))
        assert is_mixup(data, image_BCHW, label_BK)
        # One share for the whole batch: a row holds it, what is left of it, or, of two images of one class, all.
        share = label_BK.gather(1, label_B[:, None])[label_BK.max(dim=1).values < 1 - 1e-6]
        if len(share):
            torch.testing.assert_close(share, share[:1].expand_as(share))
            shares.append(float(share[0]))
    assert len(shares) > 20
    assert min(shares) < 0.2 < 0.8 < max(shares)


def test_cutmix_shares_of_the_label_are_shares_of_the_area(uneven):
    data = folder_data(uneven, batch_size=8, cutmix=1.0)
    colour_KC = torch.tensor([COLOURS[name] for name in data.class_names]) / 255
    cut = 0
    for image_BCHW, label_BK, _ in mixed_batches(data):
        torch.testing.assert_close(label_BK.sum(dim=1), torch.ones(len(label_BK)))
        distance_BKHW = (image_BCHW[:, None] - colour_KC[None, :, :, None, None]).abs().amax(dim=2)
        assert (distance_BKHW.amin(dim=1) < 1e-6).all()  # every pixel has the colour of one class
        area_BK = torch.nn.functional.one_hot(distance_BKHW.argmin(dim=1), 3).float().mean(dim=(1, 2))
        torch.testing.assert_close(area_BK, label_BK, atol=1e-6, rtol=0)
        cut += int((label_BK.max(dim=1).values < 1).sum())
    assert cut > 50


def test_with_both_every_batch_gets_one_of_the_two(uneven):
    data = folder_data(uneven, batch_size=8, mixup=0.8, cutmix=1.0)
    kinds = [
        is_mixup(data, image_BCHW, label_BK)
        for image_BCHW, label_BK, _ in mixed_batches(data, 80)
        if 0.2 < label_BK.max(dim=1).values.min() < 0.8
    ]
    assert 0.25 < np.mean(kinds) < 0.75


@pytest.mark.parametrize("kwargs", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_evaluation_is_never_mixed(uneven, kwargs):
    data = folder_data(uneven, **kwargs)
    image_BCHW, label_B = next(iter(data.val_dataloader()))
    given_BCHW, given_B = data.to_model(image_BCHW, label_B, training=False)
    assert torch.equal(given_BCHW, image_BCHW.float() / 255)
    assert torch.equal(given_B, label_B)


# --- statistics


def test_statistics_are_those_of_the_training_images_as_evaluation_cuts_them(tmp_path):
    root = folder_of(tmp_path / "set", {"china": 40, "flower": 25}, patches([(60, 90), (90, 60), (33, 47)]))
    data = folder_data(root, image_size=28, statistics="compute", batch_size=3)
    samples = data.samples(training=False)
    pixels_NCHW = np.stack([samples[row][0].numpy() for row in data.rows["train"].tolist()]).astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, pixels_NCHW.mean(axis=(0, 2, 3)), rtol=1e-7, atol=0)
    np.testing.assert_allclose(data.std, pixels_NCHW.std(axis=(0, 2, 3)), rtol=1e-7, atol=0)


def test_statistics_of_imagenet_are_the_default(uneven):
    data = folder_data(uneven)
    assert data.mean == [0.485, 0.456, 0.406]
    assert data.std == [0.229, 0.224, 0.225]


def test_without_the_part_that_remembers_every_file_is_looked_at_each_time(tmp_path, monkeypatch):
    uneven = folder_of(tmp_path / "set", {"blue": 9, "green": 3}, plain)
    monkeypatch.setattr(photos.PhotoData, "checked", {"checked": "lit_guide.parts.never.known:examine_once"})
    monkeypatch.setattr("lit_guide.parts.cache.known.examine", lambda *args, **kwargs: pytest.fail("the part was asked"))
    data = folder_data(uneven, on_bad_image="skip")
    (first := next(path for path in uneven.rglob("*") if path.is_file())).write_bytes(b"")
    index = list(data.listing.paths).index(first.relative_to(uneven).as_posix())
    assert data.examined().bad == folder_data(uneven).examined().bad == {index: "empty file"}


# --- what a model is built from


def test_what_a_model_is_built_from_is_known_before_any_file_is_opened(uneven, monkeypatch):
    for name in ("engine.photos.module", "parts.cache.known"):
        monkeypatch.setattr(f"lit_guide.{name}.examine", lambda *args, **kwargs: pytest.fail("files were opened"))
    data = folder_data(uneven, image_size=40)
    assert data.class_names == sorted(path.name for path in uneven.iterdir())
    assert data.input_shape == (3, 40, 40)
    assert (len(data.mean), len(data.std), data.crop) == (3, 3, 0.875)


def test_one_class_is_not_enough_and_known_as_early(tmp_path):
    (tmp_path / "photos.csv").write_text("path,label\na.jpg,cat\nb.jpg,cat\n")
    with pytest.raises(UserError, match="1 class: a classifier needs at least two"):
        _ = TableData(str(tmp_path / "photos.csv")).class_names


# --- loader processes


@pytest.mark.parametrize(
    ("cores", "devices", "batch_size", "workers"), [(8, 1, 2, 8), (8, 4, 2, 2), (64, 1, 2, 16), (4, 8, 2, 1), (16, 1, 50, 3)]
)
def test_auto_takes_the_cores_of_this_process_and_no_more_than_there_are_batches(
    uneven, monkeypatch, cores, devices, batch_size, workers
):
    monkeypatch.setattr("lit_guide.engine.machine.usable_cores", lambda: cores)
    data = folder_data(uneven, num_workers="auto", batch_size=batch_size)
    data.trainer = SimpleNamespace(num_devices=devices) if devices > 1 else None
    assert data.auto_workers() == workers


@pytest.mark.parametrize(("num_workers", "count"), [("auto", 1), (2, 2), (0, 0)])
def test_loaders_have_the_workers_asked_for_and_keep_them(uneven, monkeypatch, num_workers, count):
    monkeypatch.setattr("lit_guide.engine.machine.usable_cores", lambda: 1)
    loader = folder_data(uneven, num_workers=num_workers).train_dataloader()
    assert loader.num_workers == count
    assert loader.persistent_workers == (count > 0)


def test_loader_processes_give_the_same_batches_as_none(uneven):
    alone, helped = (folder_data(uneven, num_workers=count, batch_size=16) for count in (0, 2))
    assert same(batches_of(alone.val_dataloader(), 0), batches_of(helped.val_dataloader(), 0))
    first, second = (batches_of(helped.train_dataloader(), 7) for _ in range(2))
    assert same(first, second)  # with the same seed
    labels = [torch.cat([label_B for _, label_B in batches_of(data.train_dataloader(), 7)]) for data in (alone, helped)]
    assert torch.equal(*labels)  # the order is drawn in the main process


# --- caches


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    small = folder_of(folder / "small", {"china": 20, "flower": 20}, patches([(15, 30), (18, 18)]))
    large = folder_of(folder / "large", {"china": 20, "flower": 20}, patches([(60, 90), (90, 61), (15, 30)]))
    return small, large


@pytest.mark.parametrize("seed", [0, 1])
def test_every_cache_gives_the_same_training_batches_for_the_same_seed(small_and_large, tmp_path, seed):
    small, large = small_and_large
    kinds = {"cache_dir": str(tmp_path), "auto_augment": "trivialaugment", "erasing": 0.3, "batch_size": 7}
    epochs = [
        batches_of(folder_data(small, cache=kind, **kinds).train_dataloader(), seed) for kind in ("none", "ram", "disk", "disk")
    ]
    assert all(same(epochs[0], epoch) for epoch in epochs[1:])
    assert not same(epochs[0], batches_of(folder_data(small, **kinds).train_dataloader(), seed + 5))
    # Of images larger than the cache keeps them, copies of the same size are cut.
    ram, disk = (batches_of(folder_data(large, cache=kind, **kinds).train_dataloader(), seed) for kind in ("ram", "disk"))
    assert same(ram, disk)


def test_evaluation_is_the_same_with_and_without_a_cache(small_and_large, tmp_path):
    for root in small_and_large:
        none, ram, disk = (folder_data(root, cache=kind, cache_dir=str(tmp_path)) for kind in ("none", "ram", "disk"))
        for other in (ram, disk):
            assert same(batches_of(none.val_dataloader(), 0), batches_of(other.val_dataloader(), 0))
            assert same(batches_of(none.test_dataloader(), 0), batches_of(other.test_dataloader(), 0))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_project_without_the_part_says_how_to_go_on(small_and_large, monkeypatch, kind):
    monkeypatch.setattr(photos.PhotoData, "caches", {kind: "lit_guide.parts.never.copies:open"})
    message = f"data.cache {kind} needs the part never, which this project does not have: --data.cache none."
    with pytest.raises(ConfigError, match=f"^{message}$"):
        folder_data(small_and_large[0], cache=kind)
    assert len(folder_data(small_and_large[0]).source.class_names) == 2


def test_a_cache_folder_below_the_home_folder_may_be_given_with_a_tilde(small_and_large, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder_data(small_and_large[0], cache="disk", cache_dir="~/cache").source  # noqa: B018
    assert list(Path("cache").rglob("images.bin"))
    assert not Path("~").exists()


# --- groups


@pytest.fixture
def visits(tmp_path):
    """30 patients with 1 to 4 images; some were seen in both classes."""
    root = tmp_path / "set"
    for patient in range(30):
        for visit in range(1 + patient % 4):
            name = ("blue", "green")[(patient + visit * (patient % 3 == 0)) % 2]
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels_HWC = np.full((9, 9, 3), (patient, visit, 99), dtype=np.uint8)
            Image.fromarray(pixels_HWC).save(root / name / f"patient{patient:02d}_visit{visit}.png")
    return root


def test_images_of_a_group_are_never_on_two_sides(visits):
    def patients(data):
        return {split: {Path(name).name.partition("_")[0] for name in data.sample_names(split)} for split in data.rows}

    grouped = patients(folder_data(visits, group_pattern=r"(patient\d+)_"))
    assert sum(map(len, grouped.values())) == 30
    assert all(grouped.values())
    assert sum(map(len, patients(folder_data(visits)).values())) > 30  # without a pattern they are


def test_splits_of_groups_have_their_shares_and_depend_on_the_seed(visits):
    data = [folder_data(visits, group_pattern=r"(patient\d+)_", split_seed=seed) for seed in (0, 0, 1)]
    total = sum(data[0].class_counts(split)[0] + data[0].class_counts(split)[1] for split in data[0].rows)
    assert total == len(data[0].listing.paths)
    for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        assert abs(sum(data[0].class_counts(split)) - share * total) <= 4
        assert data[0].sample_names(split) == data[1].sample_names(split)
    assert data[0].sample_names("test") != data[2].sample_names("test")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(subject\d+)", r"finds nothing in (blue|green)/patient\d\d_visit\d\.png"),
        (r"patient(x?)", r"finds nothing in (blue|green)/patient\d\d_visit\d\.png"),
        (r"patient|(doctor)", r"finds nothing in (blue|green)/patient\d\d_visit\d\.png"),
        (r"(patient", r"is no regular expression: missing \)"),
        (r"patient\d+", r"must have one group in brackets, such as \(patient\\d\+\)_"),
        (r"(patient)(\d+)", r"must have one group in brackets"),
    ],
)
def test_a_pattern_that_finds_no_group_is_an_error_of_the_configuration(run, visits, pattern, words):
    outcome = run(*FIT, *TINY, "--data.root", visits, "--data.group_pattern", pattern, "--run_dir", "run")
    assert outcome.code == 2
    with pytest.raises(ConfigError, match=f"data.group_pattern .*{words}"):
        raise ConfigError(outcome.err)
    assert not Path("run").exists()


def test_groups_across_given_splits_are_a_warning_that_lists_them(tmp_path, capsys):
    for split, number in (("train", 1), ("train", 2), ("train", 3), ("test", 3), ("test", 4)):
        for name in ("blue", "green"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number, len(split), len(name))).save(folder / f"p{number}_.png")
    folder_data(tmp_path / "set", val_fraction=0, group_pattern=r"(p\d)_").source  # noqa: B018
    assert "1 groups of data.group_pattern are in more than one split:\n  p3\n" in capsys.readouterr().err


# --- a run from start to end


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A short run on 16 photos, started with a relative root; to be read, not changed."""
    home = tmp_path_factory.mktemp("folder_run")
    folder_of(home / "photos", {"china": 8, "flower": 8}, patches([(60, 90), (90, 60), (50, 51)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        args = ["--data.root", "photos", "--data.num_workers", "0", "--trainer.max_epochs", "2", "--run_dir", "run"]
        assert main([*FIT, *TINY, *args, *NO_EXPORT]) == 0
    return home / "run"


def test_a_run_on_16_photos_scores_its_splits_and_keeps_how_photos_are_cut(folder_run):
    results = json.loads((folder_run / "results.json").read_text())
    assert np.sum(results["val"]["confusion_matrix"], axis=1).tolist() == [1, 1]
    assert np.sum(results["test"]["confusion_matrix"], axis=1).tolist() == [2, 2]
    model = load_classifier(folder_run / "checkpoints/best.ckpt")
    assert model.hparams["class_names"] == ["china", "flower"]
    assert model.hparams["input_shape"] == [3, 32, 32]
    assert read_checkpoint(folder_run / "checkpoints/best.ckpt")["crop"] == 0.875
    assert model.hparams["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.slow
def test_16_photos_are_trained_on_tested_and_exported_with_loader_processes(run, folder_run):
    args = [
        "--data.root",
        folder_run.parent / "photos",
        "--data.num_workers",
        "2",
        "--run_dir",
        "run",
        "--trainer.max_epochs",
        "1",
    ]
    outcome = run(*FIT, *TINY, *args)
    assert outcome.code == 0, outcome.err
    results = json.loads(Path("run/results.json").read_text())
    assert np.sum(results["test"]["confusion_matrix"], axis=1).tolist() == [2, 2]
    assert {entry["format"] for entry in results["exports"]} == {"onnx", "torchscript", "pt2"}
    assert all(entry["max_abs_diff"] <= 1e-4 for entry in results["exports"])


def test_its_config_finds_the_photos_from_another_directory(run, folder_run):
    config = yaml.safe_load((folder_run / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(folder_run.parent / "photos")
    outcome = run("test", "--run", folder_run, "--run_dir", "elsewhere")
    assert outcome.code == 0, outcome.err
    before, after = (json.loads((path / "results.json").read_text())["test"] for path in (folder_run, Path("elsewhere")))
    assert after == before


@pytest.mark.slow
def test_its_config_repeats_it_bit_for_bit_from_another_directory(run, folder_run):
    outcome = run("fit", "--config", folder_run / "config.yaml", "--run_dir", "again", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    first, second = (load_classifier(path / "checkpoints/last.ckpt") for path in (folder_run, Path("again")))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_predict_cuts_the_files_it_is_given_as_evaluation_does(run, folder_run):
    assert run("predict", "--run", folder_run, "--run_dir", "split").code == 0
    split = json.loads(Path("split/predictions.json").read_text())
    assert len(split) == 4
    outcome = run("predict", "--run", folder_run, "--run_dir", "files", "--images", *(row["file"] for row in split))
    assert outcome.code == 0, outcome.err
    files = json.loads(Path("files/predictions.json").read_text())
    assert [row["file"] for row in files] == [row["file"] for row in split]
    for mine, theirs in zip(split, files, strict=True):
        assert mine["class"] == theirs["class"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=2e-6)
        assert Path(mine["file"]).parent.name == mine["label"]
    # By hand: the centre, not the whole image squeezed.
    model = load_classifier(folder_run / "checkpoints/best.ckpt").eval()
    cut = v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32)])
    image_BCHW = torch.stack([cut(decode(row["file"])) for row in files]).float() / 255
    with torch.no_grad():
        probability_BK = model(image_BCHW).softmax(dim=1)
    for row, probability_K in zip(files, probability_BK, strict=True):
        assert row["probability"] == pytest.approx(float(probability_K.max()), abs=2e-3)


def test_fit_goes_on_with_the_run(run, folder_run, tmp_path):
    shutil.copytree(folder_run, tmp_path / "own")
    outcome = run("fit", "--run", tmp_path / "own", "--trainer.max_epochs", "3", *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    assert "epoch 3/3" in outcome.out
    assert "epoch 2/3" not in outcome.out
    assert json.loads(Path("own/results.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_training_learns_with_everything_on(run, tmp_path):
    folder_of(tmp_path / "photos", {"china": 100, "flower": 60}, patches([(60, 90), (90, 60), (80, 80)]))
    data = {"root": "photos", "batch_size": 16, "num_workers": 0, "statistics": "compute", "cache": "disk", "cache_dir": "cache"}
    data |= {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.25, "auto_augment": "trivialaugment", "sampler": "balanced"}
    flags = [part for name, value in data.items() for part in (f"--data.{name}", value)]
    args = ["--model.class_weights", "auto", "--trainer.max_epochs", "8", "--run_dir", "run"]
    outcome = run(*FIT, *TINY, *flags, *args, *NO_EXPORT)
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/results.json").read_text())["test"]["accuracy"] >= 0.8


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"crop": 0}, r"data\.crop is 0; it must be from 0\.1 to 1"),
        ({"min_area": 0}, r"data\.min_area is 0; it must be from 0\.001 to 1"),
    ],
)
def test_values_out_of_range_are_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        FolderData("photos", **argument)


def test_a_chance_is_from_0_to_1(run):
    outcome = run(*FIT, "--data.erasing", 1.2)
    assert (outcome.code, outcome.err) == (2, "lit-guide: data.erasing is 1.2: expected float from 0 to 1.\n")
