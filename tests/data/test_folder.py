"""Folders as people have them, with the mistakes that people make."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lit_guide.data import FolderData, ImageFolderDataset
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos.decode import UnreadableImageError, decode

NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
FIT = ["fit", "--config", "configs/folder.yaml", "--accelerator", "cpu", "--run_dir", "run", *NO_EXPORT]
TINY = ["--model.network", "cnn", "--data.image_size", "32", "--data.num_workers", "0", "--trainer.max_epochs", "1"]


def write_image(path, size=(12, 10)):
    """A small picture that is the same for the same path only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(path.as_posix().encode()))
    Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos("cat/1.png", ...) makes these files in the folder photos, and gives the folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            write_image(tmp_path / "photos" / name)
        return tmp_path / "photos"

    return make


@pytest.fixture
def two_classes(photos):
    return photos(*(f"{name}/{index:02d}.png" for name in ("cat", "dog") for index in range(20)))


def folder_data(root, **kwargs):
    return FolderData(str(root), image_size=8, num_workers=0, **kwargs)


def listed(root):
    """What is in the listing: split (None if the set is not split) -> class name -> paths."""
    listing = folder_data(root).listing
    rows = listing.rows or {None: np.arange(len(listing.paths))}
    found = {split: {} for split in rows}
    for split, indices in rows.items():
        for index in indices.tolist():
            found[split].setdefault(listing.class_names[listing.labels_N[index]], []).append(listing.paths[index])
    assert sum(len(indices) for indices in rows.values()) == len(listing.paths)
    return found


def paths_of(data, split):
    return [data.listing.paths[row] for row in data.rows[split].tolist()]


# --- ImageFolderDataset


def test_a_sample_is_the_decoded_file_and_the_number_of_its_class(photos):
    root = photos("dog/a.png", "cat/b.jpg", "dog/deep/er/c.bmp")
    dataset = ImageFolderDataset(root)
    assert dataset.class_names == ["cat", "dog"]
    assert len(dataset) == 3
    expected = [("cat/b.jpg", 0), ("dog/a.png", 1), ("dog/deep/er/c.bmp", 1)]
    for index, (path, label) in enumerate(expected):
        image_CHW, number = dataset[index]
        assert image_CHW.dtype == torch.uint8
        assert torch.equal(image_CHW, decode(root / path))
        assert number == label
        assert number.dtype == torch.int64
    image_BCHW, label_B = next(iter(DataLoader(dataset, batch_size=3)))
    assert label_B.tolist() == [0, 1, 1]
    assert torch.equal(image_BCHW[2], decode(root / "dog/deep/er/c.bmp"))


def test_the_transform_gets_the_image_and_its_result_is_the_sample(photos):
    dataset = ImageFolderDataset(photos("cat/a.png", "dog/b.png"), transform=lambda image_CHW: image_CHW[:, :2, :3] // 2)
    assert torch.equal(dataset[1][0], decode(Path("photos/dog/b.png"))[:, :2, :3] // 2)


def test_a_dataset_needs_class_folders_with_files(photos):
    root = photos("1.png")
    with pytest.raises(UserError, match=r"holds no class folders.*photos/cat/1\.jpg"):
        ImageFolderDataset(root)
    (root / "cat").mkdir()
    with pytest.raises(UserError, match="There are no images in the folders of"):
        ImageFolderDataset(root)


def test_a_file_that_is_no_image_says_so_when_it_is_read(photos):
    root = photos("cat/a.png", "dog/b.png")
    (root / "cat" / "notes.txt").write_text("my cats")
    with pytest.raises(UnreadableImageError, match="not an image"):
        ImageFolderDataset(root)[1]


# --- which files are taken, and as what


def test_classes_are_numbered_in_the_order_of_their_names(photos):
    names = ["10", "9", "Zebra", "ape", "black cat", "été", "猫"]
    root = photos(*(f"{name}/1.png" for name in reversed(names)))
    listing = folder_data(root).listing
    assert listing.class_names == names
    assert list(listing.paths) == [f"{name}/1.png" for name in names]
    assert listing.labels_N.tolist() == list(range(7))
    assert listing.labels_N.dtype == np.int64


def test_files_of_a_class_come_in_order_from_every_depth(photos):
    root = photos("cat/b.png", "cat/a.png", "cat/persian/z.png", "cat/persian/old/1.png", "cat/manx/2.png", "dog/1.png")
    cats = ["cat/a.png", "cat/b.png", "cat/manx/2.png", "cat/persian/z.png", "cat/persian/old/1.png"]
    assert listed(root) == {None: {"cat": cats, "dog": ["dog/1.png"]}}


def test_suffixes_may_be_of_any_case_and_kind(photos):
    root = photos("cat/1.JPG", "cat/2.Jpeg", "dog/3.PNG", "dog/4.tif")
    write_image(root / "dog" / "5.webp")
    (root / "dog" / "5.webp").rename(root / "dog" / "without")
    data = folder_data(root, val_fraction=0, test_fraction=0.5)
    assert sorted(paths_of(data, "train") + paths_of(data, "test")) == [
        "cat/1.JPG",
        "cat/2.Jpeg",
        "dog/3.PNG",
        "dog/4.tif",
        "dog/without",
    ]


@pytest.mark.parametrize("split", ["", "train/"])
def test_what_the_system_leaves_in_folders_is_not_taken(photos, capsys, split):
    root = photos(f"{split}cat/1.png", f"{split}dog/1.png")
    leftovers = ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", ".hidden/x.png", "__MACOSX/x.png", "@eaDir/1.png/x.jpg"]
    for folder in ("", split, f"{split}cat/"):
        for name in leftovers:
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(b"\0\1\2")
    data = folder_data(root)
    assert list(data.listing.paths) == [f"{split}cat/1.png", f"{split}dog/1.png"]
    assert not data.listing.notes


def test_a_class_may_begin_with_underscores(photos):
    assert list(listed(photos("__background__/1.png", "cat/1.png"))[None]) == ["__background__", "cat"]


def test_files_beside_the_class_folders_are_said_and_not_used(two_classes, capsys):
    for name in ("5.png", "labels.csv"):
        write_image(two_classes / name) if name.endswith("png") else (two_classes / name).write_text("a")
    data = folder_data(two_classes)
    assert len(data.source.labels_N) == 40
    assert f"files in {two_classes} outside the class folders are not used:\n  5.png\n  labels.csv" in capsys.readouterr().err


def test_links_to_files_and_folders_are_followed(photos, tmp_path):
    root = photos("cat/1.png", "dog/1.png")
    write_image(tmp_path / "elsewhere" / "2.png")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "link.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "emu").symlink_to(tmp_path / "elsewhere")
    assert listed(root)[None] == {
        "cat": ["cat/1.png", "cat/more/2.png"],
        "dog": ["dog/1.png", "dog/link.png"],
        "emu": ["emu/2.png"],
    }


def test_links_that_go_round_are_walked_once(photos):
    root = photos("cat/deep/1.png", "dog/1.png")
    (root / "cat" / "deep" / "up").symlink_to(root / "cat")
    (root / "cat" / "self").symlink_to(".")
    (root / "cat" / "deep" / "aside").symlink_to(root / "dog")
    (root / "dog" / "back").symlink_to(root / "cat" / "deep")
    found = listed(root)[None]
    assert found["cat"] == ["cat/deep/1.png", "cat/deep/aside/1.png"]
    assert found["dog"] == ["dog/1.png", "dog/back/1.png"]


def test_a_link_to_nowhere_is_a_bad_file(two_classes):
    (two_classes / "cat" / "gone.png").symlink_to(two_classes / "nowhere.png")
    with pytest.raises(UserError, match=r"1 of 41 files can't be used:\n.*photos/cat/gone\.png: no such file"):
        folder_data(two_classes).source  # noqa: B018


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything can be read by this user")
def test_a_folder_that_can_not_be_read_is_an_error(two_classes):
    secret = two_classes / "cat" / "secret"
    secret.mkdir(mode=0)
    with pytest.raises(UserError, match=r"cat/secret can't be read: Permission denied"):
        folder_data(two_classes).listing  # noqa: B018
    secret.chmod(0o700)


# --- folders for the splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "validation", "Test"), ("TRAIN", "dev", "TEST")],
)
def test_folders_for_the_splits_are_used_as_they_are(photos, train, val, test):
    names = [f"{split}/{name}/{index}.png" for split in (train, val, test) for name in ("cat", "dog") for index in range(3)]
    data = folder_data(photos(*names), val_fraction=0.3, test_fraction=0.3)
    for split, folder in (("train", train), ("val", val), ("test", test)):
        assert paths_of(data, split) == [name for name in names if name.startswith(folder + "/")]
        assert data.class_counts(split) == [3, 3]
    assert data.class_names == ["cat", "dog"]
    assert data.source.labels_N.tolist() == [0, 0, 0, 1, 1, 1] * 3


@pytest.mark.parametrize(
    ("there", "cut", "counts"),
    [
        (["train", "test"], ["val"], {"train": 8, "val": 2, "test": 10}),
        (["train", "val"], ["test"], {"train": 7, "val": 10, "test": 3}),
        (["train"], ["val", "test"], {"train": 5, "val": 2, "test": 3}),
    ],
)
def test_a_split_that_is_missing_is_cut_from_train(photos, there, cut, counts):
    root = photos(*(f"{split}/{name}/{index}.png" for split in there for name in ("cat", "dog") for index in range(10)))
    data = folder_data(root, val_fraction=0.2, test_fraction=0.3)
    assert {split: data.class_counts(split) for split in counts} == {split: [count] * 2 for split, count in counts.items()}
    for split in data.rows:
        assert {path.split("/")[0] for path in paths_of(data, split)} == {"train" if split in cut else split}
    assert len({*paths_of(data, "train"), *paths_of(data, "val"), *paths_of(data, "test")}) == 20 * len(there)


def test_a_split_whose_class_folders_are_empty_is_missing_too(photos, capsys):
    root = photos(*(f"train/{name}/{index}.png" for name in ("cat", "dog") for index in range(20)))
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir(parents=True)
    data = folder_data(root)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 26, "val": 6, "test": 8}
    assert f"folders without an image are left out:\n  {root}/val/cat\n  {root}/val/dog" in capsys.readouterr().err


def test_two_folders_for_one_split_are_an_error(photos):
    root = photos("train/cat/1.png", "val/cat/1.png", "validation/cat/1.png")
    with pytest.raises(UserError, match=r"photos has both val and validation: keep one of them"):
        folder_data(root).listing  # noqa: B018


def test_splits_without_train_are_an_error(photos):
    with pytest.raises(UserError, match=r"photos has val and test, but no train"):
        folder_data(photos("val/cat/1.png", "test/cat/1.png")).listing  # noqa: B018


def test_images_right_in_the_folder_of_a_split_are_an_error(photos):
    root = photos("train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png")  # as competitions hand them out
    with pytest.raises(UserError, match=r"photos/test holds no class folders"):
        folder_data(root).listing  # noqa: B018


@pytest.mark.parametrize("name", ["test", "val", "dev", "train"])
def test_a_class_may_be_called_as_a_split_is(photos, name):
    root = photos(f"{name}/1.png", "bus/1.png", "car/1.png")
    assert listed(root) == {None: {"bus": ["bus/1.png"], "car": ["car/1.png"], name: [f"{name}/1.png"]}}


def test_other_folders_beside_the_splits_are_said_and_not_used(photos, capsys):
    root = photos(*(f"train/{name}/{index}.png" for name in ("cat", "dog") for index in range(10)), "old/1.png")
    assert len(folder_data(root).source.labels_N) == 20
    assert f"folders beside train are not used:\n  {root / 'old'}" in capsys.readouterr().err


def test_a_set_is_divided_by_its_seed_and_the_splits_have_their_share_of_every_class(photos):
    counts = {"ape": 40, "bee": 20, "cat": 7}
    root = photos(*(f"{name}/{index:02d}.png" for name, count in counts.items() for index in range(count)))
    first, again, other = (folder_data(root, split_seed=seed) for seed in (3, 3, 4))
    for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        assert paths_of(first, split) == paths_of(again, split)
        assert set(paths_of(first, split)) != set(paths_of(other, split))
        for count, total in zip(first.class_counts(split), counts.values(), strict=True):
            assert abs(count - share * total) <= 1
    all_paths = [path for split in first.rows for path in paths_of(first, split)]
    assert sorted(all_paths) == sorted(first.listing.paths)


# --- where the folder is


@pytest.mark.parametrize(("root", "words"), [("gone", "There is no folder gone"), ("file", "file is a file, no folder")])
def test_a_root_that_is_no_folder_is_an_error_of_the_configuration(run, root, words):
    Path("file").write_text("a")
    outcome = run(*FIT, "--data.root", root)
    assert outcome.code == 2
    assert outcome.err.endswith(f": {words}. Give the folder of your class folders with --data.root DIR.\n")
    assert not Path("run").exists()


def test_a_tilde_is_the_home_folder(two_classes, monkeypatch):
    monkeypatch.setenv("HOME", str(two_classes.parent))
    monkeypatch.setenv("USERPROFILE", str(two_classes.parent))
    data = folder_data("~/photos")
    assert data.listing.root == two_classes
    assert torch.equal(data.source.dataset[0][0], decode(two_classes / "cat/00.png"))


# --- F13


@pytest.fixture
def with_bad_files(two_classes):
    """Two classes of 20 images, and four files more that are none."""
    (two_classes / "cat" / "notes.txt").write_text("my cats")
    (two_classes / "cat" / "empty.png").write_bytes(b"")
    whole = (two_classes / "dog" / "01.png").read_bytes()
    (two_classes / "dog" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (two_classes / "dog" / "page.jpg").write_text("<html>404</html>")
    return two_classes


def test_f13_files_that_are_no_images_stop_fit_before_it_starts_and_are_listed(run, with_bad_files):
    outcome = run(*FIT, *TINY, "--data.root", with_bad_files)
    assert outcome.code == 1
    assert "4 of 44 files can't be used" in outcome.err
    for name, reason in (
        ("cat/notes.txt", "not an image"),
        ("cat/empty.png", "empty file"),
        ("dog/truncated.png", ""),
        ("dog/page.jpg", "a web page in place of the image"),
    ):
        assert f"  {with_bad_files / name}: {reason}" in outcome.err
    for way_out in ("data check --fix quarantine", "--data.on_bad_image skip"):
        assert way_out in outcome.err
    assert not Path("run").exists()


def test_f13_skip_trains_on_the_rest_and_says_how_many_were_left_out(run, with_bad_files):
    outcome = run(*FIT, *TINY, "--data.root", with_bad_files, "--data.on_bad_image", "skip")
    assert outcome.code == 0, outcome.err
    assert "left out 4 of 44 files that can't be used:" in outcome.err
    assert f"{with_bad_files / 'cat/notes.txt'}: not an image" in outcome.err
    results = json.loads(Path("run/results.json").read_text())
    scored = sum(np.sum(results[split]["confusion_matrix"]) for split in ("val", "test"))
    assert scored == 14  # 0.35 of the 40 good ones


def test_f13_files_left_out_are_in_no_split(with_bad_files):
    data = folder_data(with_bad_files, on_bad_image="skip")
    good = [f"{name}/{index:02d}.png" for name in ("cat", "dog") for index in range(20)]
    assert sorted(path for split in data.rows for path in paths_of(data, split)) == good
    assert data.class_counts("train") == [13, 13]


def test_f13_a_bad_file_is_found_in_the_folder_of_a_split_too(photos):
    root = photos(*(f"{split}/{name}/{index}.png" for split in ("train", "test") for name in ("a", "b") for index in range(5)))
    (root / "test" / "a" / "2.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1 of 20 files can't be used:\n.*test/a/2\.png: not an image"):
        folder_data(root).source  # noqa: B018
    data = folder_data(root, on_bad_image="skip")
    assert paths_of(data, "test") == [f"test/{name}" for name in ("a/0.png", "a/1.png", "a/3.png", "a/4.png")] + [
        f"test/b/{index}.png" for index in range(5)
    ]


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_f13_a_folder_of_files_of_another_kind_is_an_error_whatever_is_set(photos, on_bad_image):
    root = photos()
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "1.docx").write_text("a letter")
    with pytest.raises(UserError, match=r"None of the 2 files is an image that can be used:\n.*cat/1\.docx: not an image"):
        folder_data(root, on_bad_image=on_bad_image).source  # noqa: B018


def test_f13_many_bad_files_are_listed_in_part(two_classes):
    for index in range(30):
        (two_classes / "cat" / f"bad{index:02d}.txt").write_text("a")
    with pytest.raises(UserError) as caught:
        folder_data(two_classes).source  # noqa: B018
    message = str(caught.value)
    assert "30 of 70 files" in message
    assert "bad19.txt" in message
    assert "bad20.txt" not in message
    assert "... and 10 more" in message


# --- F16


def test_f16_an_empty_class_folder_is_said_and_left_out(two_classes, capsys):
    for name in ("bird", "fish"):
        (two_classes / name).mkdir()
    (two_classes / "fish" / ".DS_Store").write_bytes(b"\0")
    data = folder_data(two_classes)
    assert data.class_names == ["cat", "dog"]
    assert data.source.labels_N.tolist() == [0] * 20 + [1] * 20
    names = "\n".join(f"  {two_classes / name}" for name in ("bird", "fish"))
    assert f"folders without an image are left out:\n{names}\n" in capsys.readouterr().err


def test_f16_a_class_that_train_lacks_is_an_error_that_names_it(run, photos):
    root = photos(*(f"{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "dog")), "val/emu/1.png")
    (root / "train" / "emu").mkdir()
    outcome = run(*FIT, *TINY, "--data.root", root)
    assert outcome.code == 1
    assert outcome.err.endswith(f"The val split of {root} has 1 classes that train lacks:\n  emu\n")
    assert not Path("run").exists()


def test_f16_classes_that_a_split_lacks_are_a_warning_that_lists_them(photos, capsys):
    names = [f"train/{name}/{index}.png" for name in ("ape", "bee", "cat") for index in range(4)]
    data = folder_data(photos(*names, "val/bee/1.png", "test/ape/1.png", "test/bee/1.png", "test/cat/1.png"))
    assert data.class_names == ["ape", "bee", "cat"]
    assert data.class_counts("val") == [0, 1, 0]
    warned = capsys.readouterr().err
    assert "the val split has no image of 2 classes:\n  ape\n  cat\n" in warned
    assert "test split" not in warned


def test_f16_an_image_in_two_splits_is_a_warning_that_lists_both(photos, capsys):
    root = photos(
        *(f"{split}/{name}/{index}.png" for split in ("train", "val", "test") for name in ("cat", "dog") for index in range(3))
    )
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/1.png").read_bytes())
    (root / "train/dog/again.png").write_bytes((root / "train/dog/2.png").read_bytes())  # twice in train: no leak
    folder_data(root).source  # noqa: B018
    warned = capsys.readouterr().err
    assert "1 images are in more than one split, so scores on them mean nothing:\n" in warned
    assert "  train/cat/1.png = test/cat/copy.png\n" in warned
    assert "again.png" not in warned


def test_f16_equal_files_are_kept_on_one_side_where_the_set_is_split_here(two_classes, capsys):
    for index in range(20):
        content = (two_classes / f"cat/{index:02d}.png").read_bytes()
        (two_classes / f"cat/{index:02d} copy.png").write_bytes(content)
    data = folder_data(two_classes)
    side = {path: split for split in data.rows for path in paths_of(data, split)}
    assert len(side) == 60
    for index in range(20):
        assert side[f"cat/{index:02d}.png"] == side[f"cat/{index:02d} copy.png"]
    assert [data.class_counts(split) for split in ("train", "val", "test")] == [[26, 13], [6, 3], [8, 4]]
    assert capsys.readouterr().err == ""


def test_f16_an_image_in_two_classes_is_a_warning_that_lists_both(two_classes, capsys):
    (two_classes / "dog/zz.png").write_bytes((two_classes / "cat/05.png").read_bytes())
    folder_data(two_classes).source  # noqa: B018
    assert "1 images are in more than one class:\n  cat/05.png = dog/zz.png\n" in capsys.readouterr().err


def test_f16_a_single_class_is_an_error(run, photos):
    root = photos(*(f"cat/{index}.png" for index in range(5)))
    outcome = run(*FIT, *TINY, "--data.root", root)
    assert outcome.code == 1
    only = root / "cat"
    assert outcome.err.endswith(f": The only class folder with images is {only}: a classifier needs at least two.\n")


@pytest.mark.parametrize("inside", ["", "train/"])
def test_f16_a_folder_too_many_around_the_classes_is_an_error_that_names_the_right_root(photos, inside):
    root = photos(f"photos/{inside}cat/1.png", f"photos/{inside}dog/1.png", "__MACOSX/photos/cat/._1.png")
    with pytest.raises(UserError, match=r"If the folders in it are the classes, give --data\.root .*photos/photos\.$"):
        folder_data(root).listing  # noqa: B018


def test_f16_a_single_class_in_train_is_an_error(photos):
    with pytest.raises(UserError, match=r"only class folder with images is .*photos/train/cat: .* at least two\.$"):
        folder_data(photos("train/cat/1.png", "test/cat/1.png")).listing  # noqa: B018


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no class folders"),
        (["1.png", "2.png"], "holds no class folders"),
        (["cat/", "dog/"], "There are no images in the folders of"),
        (["train/cat/", "train/dog/", "val/"], "photos/val holds no class folders"),
        (["train/cat/", "train/dog/"], "There are no images in the folders of"),
    ],
)
def test_f16_a_folder_without_images_in_classes_is_an_error(run, photos, files, words):
    root = photos(*(name for name in files if not name.endswith("/")))
    root.mkdir(exist_ok=True)
    for name in files:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
    outcome = run(*FIT, *TINY, "--data.root", root)
    assert outcome.code == 1
    assert words in outcome.err
    assert not Path("run").exists()


def test_f16_too_few_images_for_a_test_are_an_error_before_training(photos):
    with pytest.raises(UserError, match=r"The test split got none of the 2 images: add images, or change data\.val_fraction"):
        folder_data(photos("cat/1.png", "dog/1.png")).source  # noqa: B018


def test_f16_too_few_images_for_validation_are_a_warning(photos, capsys):
    data = folder_data(photos(*(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(4))))
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 6, "val": 0, "test": 2}
    assert "the val split got none of the 8 images: there is no validation" in capsys.readouterr().err


def test_an_unknown_option_of_the_folder_is_refused_with_the_nearest(run, two_classes):
    outcome = run(*FIT, "--data.root", two_classes, "--data.on_bad_images", "skip")
    assert outcome.code == 2
    assert "Did you mean data.on_bad_image?" in outcome.err
    with pytest.raises(ConfigError, match=r"data\.crop is 1\.5; it must be from 0\.1 to 1"):
        folder_data(two_classes, crop=1.5)
