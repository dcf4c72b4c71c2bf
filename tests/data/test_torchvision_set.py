"""Every set is written by hand as it lies on disk: three images of each of the first classes, for each part that it has.

An image has one colour, which says of which part and class it is.
"""

import bz2
import csv
import inspect
import json
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Imagenette

from lit_guide.data import TorchvisionData
from lit_guide.data.torchvision_set import NO_DOWNLOAD, SETS
from lit_guide.engine.errors import ConfigError, UserError

FIT = ["fit", "--config", "configs/torchvision.yaml", "--accelerator", "cpu", "--run_dir", "run", "--trainer.max_epochs", "1"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
SPLITS = ("train", "val", "test")
NAMES = ["Abyssinian", "Bengal", "Chausie"]
WNIDS = ["n01440764", "n02102040", "n02979186"]


def items(split, classes=3):
    """(class, grey level) of the images of a part; the classes take turns."""
    return [(k, 20 + 70 * k + 20 * SPLITS.index(split) + 4 * copy) for copy in range(3) for k in range(classes)]


MEANING = {level: (split, k) for split in SPLITS for k, level in items(split)}


def meaning(image_CHW):
    """(part, class) that an image was drawn for."""
    assert image_CHW.shape[0] == 3
    assert image_CHW.dtype == torch.uint8
    level = image_CHW.float().mean().item()
    assert image_CHW.float().std() <= 1
    nearest = min(MEANING, key=lambda known: abs(known - level))
    assert abs(nearest - level) <= 1.5
    return MEANING[nearest]


def squares(split, side, classes=3):
    """The images (N, side, side) and labels (N,) of a part."""
    labels, levels = zip(*items(split, classes), strict=True)
    return np.array(levels, dtype=np.uint8)[:, None, None].repeat(side, 1).repeat(side, 2), np.array(labels)


def draw(path, level, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (10, 8), level if mode == "L" else (level,) * 3).save(path)


def draw_folders(folder, split, names, suffix=".jpg"):
    """A folder for each class, as torchvision's ImageFolder reads them."""
    for number, (k, level) in enumerate(items(split, len(names))):
        draw(folder / names[k] / f"{number:04d}{suffix}", level)


def write_text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {np.dtype(np.uint8): 8, np.dtype(">i4"): 12}[array.dtype]
    path.write_bytes(bytes([0, 0, kind, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes())


# --- how each set lies on disk; each function gives the names of the classes


def mnist(root, name, names):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = squares(split, 28)
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))
    return names


def emnist(root):
    for split in ("train", "test"):
        images, labels = squares(split, 28)
        write_idx(root / f"EMNIST/raw/emnist-balanced-{split}-images-idx3-ubyte", images)
        write_idx(root / f"EMNIST/raw/emnist-balanced-{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return ["0", "1", "2"]


def qmnist(root):
    for split in ("train", "test"):
        images, labels = squares(split, 28)
        write_idx(root / f"QMNIST/raw/qmnist-{split}-images-idx3-ubyte", images)
        columns = np.column_stack([labels, *[np.full(len(labels), 77)] * 7])
        write_idx(root / f"QMNIST/raw/qmnist-{split}-labels-idx2-int", columns.astype(">i4"))
    return ["0 - zero", "1 - one", "2 - two"]


def cifar(root, folder, files, label_key, meta_file, meta_key):
    (root / folder).mkdir(parents=True)
    for split, names in files.items():
        images, labels = squares(split, 32)
        data = images.reshape(len(images), 1, -1).repeat(3, 1).reshape(len(images), -1)
        for name, part in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            (root / folder / name).write_bytes(pickle.dumps({"data": data[part], label_key: labels[part].tolist()}))
    (root / folder / meta_file).write_bytes(pickle.dumps({meta_key: NAMES}))
    return NAMES


def usps(root):
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        images, labels = squares(split, 16)
        values = images.reshape(len(images), -1) / 255 * 2 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{n}:{v:.6f}" for n, v in enumerate(row, 1))
            for label, row in zip(labels, values, strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    return ["0", "1", "2"]


def caltech101(root):
    for name in ("BACKGROUND_Google", *NAMES):
        (root / "caltech101/101_ObjectCategories" / name).mkdir(parents=True)
    for number, (k, level) in enumerate(items("train")):
        draw(root / "caltech101/101_ObjectCategories" / NAMES[k] / f"image_{number // 3 + 1:04d}.jpg", level)
    return NAMES


def caltech256(root):
    names = ["001.ak47", "002.american-flag", "003.backpack"]
    for number, (k, level) in enumerate(items("train")):
        draw(root / "caltech256/256_ObjectCategories" / names[k] / f"{k + 1:03d}_{number // 3 + 1:04d}.jpg", level, "L")
    return names


def eurosat(root):
    draw_folders(root / "eurosat/2750", "train", NAMES)
    return NAMES


def semeion(root):
    images, labels = squares("train", 16)
    np.savetxt(root / "semeion.data", np.hstack([images.reshape(len(images), -1) / 255, np.eye(10)[labels]]))
    return ["0", "1", "2"]


def sun397(root):
    names = ["abbey", "airport_terminal", "balcony/exterior"]
    write_text(root / "SUN397/ClassName.txt", *(f"/{name[0]}/{name}" for name in names))
    for number, (k, level) in enumerate(items("train")):
        draw(root / "SUN397" / names[k][0] / names[k] / f"sun_{number}.jpg", level)
    return names


def fer2013(root):
    (root / "fer2013").mkdir()
    with (root / "fer2013/fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for split, usage in (("train", "Training"), ("test", "PublicTest")):
            for k, level in items(split):
                writer.writerow([k, " ".join([str(level)] * 48 * 48), usage])
    return ["0", "1", "2"]


def food101(root):
    for split in ("train", "test"):
        listed = {name: [] for name in NAMES}
        for number, (k, level) in enumerate(items(split)):
            listed[NAMES[k]].append(f"{NAMES[k]}/{split}{number}")
            draw(root / "food-101/images" / f"{NAMES[k]}/{split}{number}.jpg", level)
        write_text(root / f"food-101/meta/{split}.json", json.dumps(listed))
    return NAMES


def gtsrb(root):
    draw_folders(root / "gtsrb/GTSRB/Training", "train", ["00000", "00001", "00002"], ".ppm")
    lines = ["Filename;Width;ClassId"]
    for number, (k, level) in enumerate(items("test")):
        draw(root / f"gtsrb/GTSRB/Final_Test/Images/{number:05d}.ppm", level)
        lines.append(f"{number:05d}.ppm;10;{k}")
    write_text(root / "gtsrb/GT-final_test.csv", *lines)
    return ["0", "1", "2"]


def stl10(root):
    folder = root / "stl10_binary"
    write_text(folder / "class_names.txt", *NAMES)
    (folder / "unlabeled_X.bin").write_bytes(b"\0")
    for split in ("train", "test"):
        images, labels = squares(split, 96)
        (folder / f"{split}_X.bin").write_bytes(images[:, None].repeat(3, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    return NAMES


def stanford_cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(NAMES, dtype=object)})
    for split, name in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(f"{number:05d}.jpg", k + 1) for number, (k, _) in enumerate(items(split))]
        savemat(folder / name, {"annotations": np.array(rows, dtype=[("fname", object), ("class", object)])})
        for number, (_, level) in enumerate(items(split)):
            draw(folder / f"cars_{split}/{number:05d}.jpg", level)
    return NAMES


def svhn(root):
    for split in ("train", "test"):
        images, labels = squares(split, 32)
        pixels_HWCN = images[:, :, :, None].repeat(3, 3).transpose(1, 2, 3, 0)
        savemat(root / f"{split}_32x32.mat", {"X": pixels_HWCN, "y": np.where(labels == 0, 10, labels)[:, None]})
    return ["0", "1", "2"]


def oxford_pets(root):
    for split, name in (("train", "trainval"), ("test", "test")):
        lines = []
        for number, (k, level) in enumerate(items(split)):
            image = f"{NAMES[k]}_{number + (100 if split == 'test' else 0)}"
            draw(root / f"oxford-iiit-pet/images/{image}.jpg", level)
            lines.append(f"{image} {k + 1} 1 1")
        write_text(root / f"oxford-iiit-pet/annotations/{name}.txt", *lines)
    return NAMES


def imagenette(root):
    for split in ("train", "val"):
        draw_folders(root / "imagenette2" / split, split, WNIDS, ".jpeg")
    assert all(wnid in Imagenette._WNID_TO_CLASS for wnid in WNIDS)
    return ["tench, Tinca tinca", "English springer, English springer spaniel", "cassette player"]


def imagenet(root):
    words = {"n01440764": ("tench", "Tinca tinca"), "n02102040": ("English springer",), "n02979186": ("cassette player",)}
    torch.save((words, WNIDS), root / "meta.bin")
    for split in ("train", "val"):
        draw_folders(root / split, split, WNIDS, ".JPEG")
    return ["tench, Tinca tinca", "English springer", "cassette player"]


def places365(root):
    names = ["/a/airfield", "/a/airplane_cabin", "/b/balcony/exterior"]
    write_text(root / "categories_places365.txt", *(f"{name} {k}" for k, name in enumerate(names)))
    train, val = [], []
    for number, (k, level) in enumerate(items("train")):
        train.append(f"{names[k]}/{number:08d}.jpg {k}")
        draw(root / f"data_large_standard{names[k]}/{number:08d}.jpg", level)
    for number, (k, level) in enumerate(items("val")):
        val.append(f"Places365_val_{number:08d}.jpg {k}")
        draw(root / f"val_large/Places365_val_{number:08d}.jpg", level)
    write_text(root / "places365_train_standard.txt", *train)
    write_text(root / "places365_val.txt", *val)
    return names


def dtd(root):
    for split in SPLITS:
        lines = [f"{NAMES[k]}/{split}_{number}.jpg" for number, (k, _) in enumerate(items(split))]
        write_text(root / f"dtd/dtd/labels/{split}1.txt", *lines)
        for line, (_, level) in zip(lines, items(split), strict=True):
            draw(root / "dtd/dtd/images" / line, level)
    return NAMES


def fgvc_aircraft(root):
    names = ["707-320", "A300 B4", "Yak-42"]
    write_text(root / "fgvc-aircraft-2013b/data/variants.txt", *names)
    for split in SPLITS:
        numbers = [f"{SPLITS.index(split)}{number:06d}" for number in range(9)]
        lines = [f"{number} {names[k]}" for number, (k, _) in zip(numbers, items(split), strict=True)]
        write_text(root / f"fgvc-aircraft-2013b/data/images_variant_{split}.txt", *lines)
        for number, (_, level) in zip(numbers, items(split), strict=True):
            draw(root / f"fgvc-aircraft-2013b/data/images/{number}.jpg", level)
    return names


def flowers102(root):
    ids, labels = {}, []
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        ids[key] = np.arange(len(labels) + 1, len(labels) + 10)
        for number, (k, level) in zip(ids[key], items(split), strict=True):
            draw(root / f"flowers-102/jpg/image_{number:05d}.jpg", level)
            labels.append(k + 1)
    savemat(root / "flowers-102/setid.mat", ids)
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array(labels)})
    return None


def rendered_sst2(root):
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        draw_folders(root / "rendered-sst2" / folder, split, ["negative", "positive"], ".png")
    return ["negative", "positive"]


def country211(root):
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        draw_folders(root / "country211" / folder, split, ["AD", "AE", "AF"])
    return ["AD", "AE", "AF"]


DIGIT_WORDS = ["0 - zero", "1 - one", "2 - two"]
CIFAR10 = ("cifar-10-batches-py", {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]})
WRITERS = {
    "MNIST": lambda root: mnist(root, "MNIST", DIGIT_WORDS),
    "FashionMNIST": lambda root: mnist(root, "FashionMNIST", ["T-shirt/top", "Trouser", "Pullover"]),
    "KMNIST": lambda root: mnist(root, "KMNIST", ["o", "ki", "su"]),
    "EMNIST": emnist,
    "QMNIST": qmnist,
    "CIFAR10": lambda root: cifar(root, *CIFAR10, "labels", "batches.meta", "label_names"),
    "CIFAR100": lambda root: cifar(
        root, "cifar-100-python", {"train": ["train"], "test": ["test"]}, "fine_labels", "meta", "fine_label_names"
    ),
    "USPS": usps,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "EuroSAT": eurosat,
    "SEMEION": semeion,
    "SUN397": sun397,
    "FER2013": fer2013,
    "Food101": food101,
    "GTSRB": gtsrb,
    "STL10": stl10,
    "StanfordCars": stanford_cars,
    "SVHN": svhn,
    "OxfordIIITPet": oxford_pets,
    "Imagenette": imagenette,
    "ImageNet": imagenet,
    "Places365": places365,
    "DTD": dtd,
    "FGVCAircraft": fgvc_aircraft,
    "Flowers102": flowers102,
    "RenderedSST2": rendered_sst2,
    "Country211": country211,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches for the network, and the sums of the real files are not asked for."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda path, md5: True)


def test_every_set_is_one_of_torchvision_and_takes_these_arguments():
    assert {*WRITERS, "PCAM"} == set(SETS)  # PCAM needs h5py
    for name, parts in SETS.items():
        assert name in torchvision.datasets.__all__
        assert "train" in parts
        assert set(parts) <= set(SPLITS)
        signature = inspect.signature(getattr(torchvision.datasets, name))
        for choice in parts.values():
            signature.bind(root="x", **choice, **({} if name in NO_DOWNLOAD else {"download": True}))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_images_labels_and_parts_of_a_set_are_its_own(tmp_path, name):
    class_names = WRITERS[name](tmp_path)
    data = TorchvisionData(name, str(tmp_path), image_size=8, num_workers=0, val_fraction=1 / 3, test_fraction=1 / 3)
    source = data.source
    if class_names is not None:
        assert data.class_names[: len(class_names)] == class_names
    classes = len(class_names or NAMES)
    assert source.labels_N.dtype == np.int64
    assert source.labels_N.shape == (3 * classes * len(SETS[name]),)
    own = {split: split if split in SETS[name] else "train" for split in SPLITS}
    for split, rows in data.rows.items():
        for row in rows.tolist():
            image_CHW, label = source.dataset[row]
            assert label == source.labels_N[row]
            assert meaning(image_CHW) == (own[split], label)
            assert data.listing.paths[row].startswith(f"{own[split]} ")
        cut = len(SPLITS) - len(SETS[name])
        copies = 1 if split not in SETS[name] else 3 - cut if split == "train" else 3
        assert data.class_counts(split)[:classes] == [copies] * classes
    assert sum(map(len, data.rows.values())) == len(source.labels_N)
    assert len({row for rows in data.rows.values() for row in rows.tolist()}) == len(source.labels_N)


@pytest.mark.parametrize("name", ["DTD", "FGVCAircraft", "Food101", "GTSRB", "ImageNet", "OxfordIIITPet", "StanfordCars"])
def test_labels_are_had_without_decoding_every_image(tmp_path, monkeypatch, name):
    WRITERS[name](tmp_path)
    opened = []
    really_open = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: opened.append(args) or really_open(*args, **kwargs))
    TorchvisionData(name, str(tmp_path)).source  # noqa: B018
    assert len(opened) == len(SETS[name])  # the first of each part


# --- what goes wrong


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Cifar10", r"torchvision has no classification set 'Cifar10'\. Did you mean CIFAR10\?"),
        ("mnist", r"Did you mean MNIST\?"),
        ("Flowers", r"Did you mean Flowers102\?"),
        ("CocoDetection", r"no classification set 'CocoDetection'"),
        ("FakeData", r"no classification set 'FakeData'"),
        ("xyz", r"There are CIFAR10, CIFAR100, Caltech101, .*, USPS\."),
    ],
)
def test_an_unknown_set_is_an_error_of_the_configuration_with_the_nearest(name, words):
    with pytest.raises(ConfigError, match=words):
        TorchvisionData(name)


@pytest.mark.parametrize("argument", [{"cache": "ram"}, {"cache": "disk"}, {"group_pattern": "(a)"}, {"white_level": 4095}])
def test_options_for_image_files_are_refused(argument):
    with pytest.raises(ConfigError, match=r"data\.cache, data\.group_pattern and data\.white_level are for image files"):
        TorchvisionData("MNIST", **argument)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "EuroSAT", "USPS"])
def test_without_a_connection_the_error_says_where_the_files_should_be(run, tmp_path, name):
    outcome = run(*FIT, "--data.dataset", name, "--data.root", "sets")
    assert outcome.code == 1
    assert f": {name} is not complete in {tmp_path / 'sets'} and could not be had: " in outcome.err
    assert "Name or service not known" in outcome.err
    assert outcome.err.endswith("Check the connection and try again, or put its files there by hand.\n")
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["MNIST", "ImageNet", "StanfordCars", "FER2013", "Food101"])
def test_a_set_that_is_not_there_and_may_not_be_downloaded_is_an_error(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise AssertionError("it was asked for on the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match=f"{name} is not complete in {tmp_path}") as caught:
        TorchvisionData(name, str(tmp_path), download=False).source  # noqa: B018
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("name", "module"), [("Caltech101", "scipy.io"), ("SVHN", "scipy.io"), ("PCAM", "h5py")])
def test_a_package_that_is_missing_is_named_before_training(tmp_path, monkeypatch, name, module):
    if name in WRITERS:
        WRITERS[name](tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=module):
        TorchvisionData(name, str(tmp_path)).source  # noqa: B018


def test_images_that_are_missing_are_found_before_training(tmp_path):
    dtd(tmp_path)
    (tmp_path / "dtd/dtd/images" / NAMES[0] / "test_0.jpg").unlink()
    with pytest.raises(UserError, match=r"DTD is not complete in .*test_0\.jpg"):
        TorchvisionData("DTD", str(tmp_path)).source  # noqa: B018


def test_a_test_part_without_labels_is_an_error(tmp_path):
    pixels = " ".join(["7"] * 48 * 48)
    write_text(tmp_path / "fer2013/train.csv", "emotion,pixels", f"0,{pixels}", f"1,{pixels}")
    write_text(tmp_path / "fer2013/test.csv", "pixels", pixels)
    with pytest.raises(UserError, match=r"FER2013 in .* comes without the labels of its test images"):
        TorchvisionData("FER2013", str(tmp_path)).source  # noqa: B018


# --- in use


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    gtsrb(tmp_path / "sets")
    assert len(TorchvisionData("GTSRB", "~/sets").source.labels_N) == 18


def test_loader_processes_give_the_same_images(tmp_path):
    country211(tmp_path)
    alone, helped = (TorchvisionData("Country211", str(tmp_path), image_size=8, num_workers=n).test_dataloader() for n in (0, 2))
    for (image_BCHW, label_B), (other_BCHW, other_B) in zip(alone, helped, strict=True):
        assert torch.equal(image_BCHW, other_BCHW)
        assert torch.equal(label_B, other_B)
        assert [meaning(image_CHW)[1] for image_CHW in image_BCHW] == label_B.tolist()


def test_fit_trains_on_a_set_and_the_run_finds_it_from_elsewhere(run, tmp_path, monkeypatch):
    WRITERS["MNIST"](tmp_path / "sets")
    args = ["--data.dataset", "MNIST", "--data.root", "sets", "--data.flip", "false", "--data.val_fraction", "0.34"]
    outcome = run(*FIT, *NO_EXPORT, *args, "--data.num_workers", "0")
    assert outcome.code == 0, outcome.err
    results = json.loads(Path("run/results.json").read_text())
    assert np.sum(results["val"]["confusion_matrix"], axis=1).tolist() == [1, 1, 1] + [0] * 7
    assert np.sum(results["test"]["confusion_matrix"], axis=1).tolist() == [3, 3, 3] + [0] * 7
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    outcome = run("test", "--run", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "run/results.json").read_text())["test"] == results["test"]
