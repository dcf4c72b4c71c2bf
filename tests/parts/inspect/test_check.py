from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from lit_guide.data import (
    ArrayDataset,
    ArraysData,
    DataModule,
    DigitsData,
    FolderData,
    Source,
    TableData,
)
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.photos.examine import examine
from lit_guide.parts.inspect.check import Finding, Report, check, print_report

WEB_PAGE = "a web page in place of the image: get the file again"


@pytest.fixture(name="pixels_HWC")
def photo(photos):
    return photos["china.jpg"][1]


def picture(number):
    """Coloured squares, 100 x 140, others for every number."""
    squares_HWC = np.random.default_rng(number).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    return squares_HWC.repeat(10, axis=0).repeat(10, axis=1)


@pytest.fixture
def folder(tmp_path):
    """Two classes in three splits, 4 + 1 + 1 pictures each, nothing wrong with them."""
    for at in range(12):
        split = ("train", "train", "train", "train", "val", "test")[at % 6]
        path = tmp_path / "photos" / split / ("cat", "dog")[at // 6] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, picture(at))
    return tmp_path / "photos"


def report_of(root, **kwargs):
    return check(FolderData(str(root), image_size=64, **kwargs))


def found(report):
    return {finding.kind: finding.items for finding in report.findings}


def put(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)


def test_a_good_set_has_no_findings(folder):
    report = report_of(folder)
    assert report.findings == []
    assert (report.images, report.class_names) == (12, ["cat", "dog"])
    assert report.splits == {"train": [4, 4], "val": [1, 1], "test": [1, 1]}
    assert report.as_dict() == {
        "ok": True,
        "images": 12,
        "splits": {"train": {"cat": 4, "dog": 4}, "val": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}},
        "findings": [],
    }


def test_f13_broken_empty_and_other_files_are_listed_with_the_reason(folder):
    whole = (folder / "train/cat/0.png").read_bytes()
    put(folder / "train/cat/cut.png", whole[: len(whole) // 2])
    put(folder / "train/cat/empty.jpg", b"")
    put(folder / "val/dog/page.jpg", b"<html>404</html>")
    report = report_of(folder)
    assert [finding.kind for finding in report.wrong] == ["unreadable"]
    reasons = dict(item.split(": ", 1) for item in report.wrong[0].items)
    assert list(reasons) == ["train/cat/cut.png", "train/cat/empty.jpg", "val/dog/page.jpg"]
    assert "truncated" in reasons["train/cat/cut.png"]
    assert (reasons["train/cat/empty.jpg"], reasons["val/dog/page.jpg"]) == (
        "empty file",
        "a web page in place of the image: get the file again",
    )
    assert report.bad_files == [str(folder / name) for name in reasons]
    assert report.splits["train"] == [4, 4]  # bad ones are not counted
    assert report.images == 15


def test_f14_a_bomb_is_listed_with_its_pixels(folder):
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    put(folder / "train/cat/bomb.png", b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + crc32(header).to_bytes(4, "big") + b"\0\0\0\0IDAT")
    (item,) = found(report_of(folder))["unreadable"]
    assert item.startswith("train/cat/bomb.png: ")
    assert "2500000000 pixels" in item


def test_f16_the_same_file_in_two_splits_is_a_leak(folder):
    put(folder / "test/cat/again.png", (folder / "train/cat/0.png").read_bytes())
    report = report_of(folder)
    assert found(report) == {"equal_across_splits": ["train train/cat/0.png = test test/cat/again.png"]}
    assert len(report.wrong) == 1


def test_f16_the_same_picture_saved_again_smaller_is_a_leak_too(folder):
    with Image.open(folder / "train/dog/6.png") as image:
        image.resize((120, 85)).save(folder / "val/dog/smaller.jpg", quality=70)
    report = report_of(folder)
    assert found(report) == {"near_across_splits": ["train train/dog/6.png ~ val val/dog/smaller.jpg"]}
    assert report.findings[0].wrong


def test_nearly_equal_is_what_near_bits_says(folder):
    pixels_HWC = picture(6).astype(int)
    pixels_HWC[30:60, 40:80] += 60
    put(folder / "val/dog/changed.png", pixels_HWC.clip(0, 255).astype(np.uint8))
    bits = (examine(folder, ["train/dog/6.png", "val/dog/changed.png"]).seen_N["dhash"]).tolist()
    apart = (bits[0] ^ bits[1]).bit_count()
    assert 0 < apart < 10
    data = FolderData(str(folder), image_size=64)
    assert found(check(data, near_bits=apart)) == {"near_across_splits": ["train train/dog/6.png ~ val val/dog/changed.png"]}
    assert found(check(data, near_bits=apart - 1)) == {}


def test_near_duplicates_that_we_divided_ourselves_are_worth_a_look(folder):
    flat = folder.parent / "flat"
    for number in range(20):
        for copy, size in enumerate([(140, 100), (126, 90)]):
            path = flat / ("cat", "dog")[number % 2] / f"{number}-{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).resize(size).save(path)
    report = check(FolderData(str(flat)))
    assert report.wrong == []
    assert len(found(report)["near_across_splits"]) > 1
    together = check(FolderData(str(flat), group_pattern=r"/(\d+)-"))
    assert set(found(together)) == {"near_within_split"}


def test_f16_a_split_that_got_nothing_is_wrong_but_for_validation(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            put(tmp_path / name / f"{number}.png", picture(10 * number + len(name) + (name == "dog")))

    def empty(**fractions):
        findings = check(FolderData(str(tmp_path), **fractions)).findings
        return {finding.what.split()[1]: finding.wrong for finding in findings if finding.kind == "empty_split"}

    assert empty(val_fraction=0.4, test_fraction=0.1) == {"test": True}
    assert empty(val_fraction=0.1, test_fraction=0.4) == {"val": False}
    assert empty(val_fraction=0.5, test_fraction=0.0) == {}


def test_copies_in_one_split_are_worth_a_look_and_in_two_classes_wrong(folder):
    content = (folder / "train/cat/0.png").read_bytes()
    put(folder / "train/cat/copy.png", content)
    report = report_of(folder)
    assert found(report) == {"equal_within_split": ["train train/cat/0.png = train train/cat/copy.png"]}
    assert report.wrong == []
    put(folder / "train/dog/copy.png", content)
    report = report_of(folder)
    group = "train train/cat/0.png = train train/cat/copy.png = train train/dog/copy.png"
    assert found(report) == {"equal_classes": [group]}
    assert [finding.kind for finding in report.wrong] == ["equal_classes"]


def test_sizes_and_modes_that_are_unusual_are_worth_a_look(folder, pixels_HWC, monkeypatch):
    put(folder / "train/cat/tiny.png", pixels_HWC[200:215, 50:200])
    put(folder / "train/dog/large.png", pixels_HWC)
    put(folder / "train/dog/grey.png", pixels_HWC[30:200, 410:500, 0])
    Image.fromarray(pixels_HWC[250:400, 410:500]).convert("CMYK").save(folder / "train/dog/print.jpg")
    monkeypatch.setattr("lit_guide.parts.inspect.check.HUGE", 250_000)
    report = report_of(folder)
    assert found(report) == {
        "tiny": ["train/cat/tiny.png: 150 x 15"],
        "huge": ["train/dog/large.png: 640 x 427"],
        "mode": ["train/dog/grey.png: L", "train/dog/print.jpg: CMYK"],
    }
    assert report.wrong == []


def test_f16_classes_that_a_split_lacks_are_listed(folder):
    (folder / "val/dog/10.png").unlink()
    report = report_of(folder)
    absent = next(finding for finding in report.findings if finding.kind == "absent")
    assert (absent.items, absent.what, absent.wrong) == (["dog"], "classes without an image in val", False)


def test_f16_a_class_of_bad_files_alone_cannot_be_trained(folder):
    for path in (folder / "train/dog").iterdir():
        path.write_bytes(b"")
    absent = next(finding for finding in report_of(folder).wrong if finding.kind == "absent")
    assert (absent.items, absent.what) == (["dog"], "classes without an image in train")


def test_f16_one_class_is_wrong(folder):
    table = folder / "photos.csv"
    table.write_text("path,label\n" + "".join(f"train/cat/{at}.png,cat\n" for at in range(4)))
    report = check(TableData(str(table), val_fraction=0, test_fraction=0))
    assert found(report) == {"one_class": ["cat"]}
    assert len(report.wrong) == 1


def test_f16_no_images_are_one_finding_not_a_traceback(tmp_path):
    (tmp_path / "photos").mkdir()
    report = check(FolderData(str(tmp_path / "photos")))
    assert [finding.kind for finding in report.wrong] == ["unusable"]
    assert "holds no class folders" in report.wrong[0].what


def test_a_folder_that_is_not_there_is_an_error_of_the_command(tmp_path):
    with pytest.raises(ConfigError, match="There is no folder"):
        check(FolderData(str(tmp_path / "gone")))


def test_uneven_classes_are_worth_a_look_with_what_helps(folder):
    for at in range(100, 140):
        put(folder / f"train/cat/{at}.png", picture(at))
    (finding,) = report_of(folder).findings
    assert (finding.kind, finding.wrong) == ("uneven", False)
    assert finding.what.startswith("44 training images in one class, 4 in another: see data.sampler and model.class_weights")


def test_tables_are_checked_like_folders(folder):
    table = folder / "photos.csv"
    table.write_text("path,label\ntrain/cat/0.png,cat\ntrain/dog/6.png,dog\ngone.png,dog\n")
    report = check(TableData(str(table), val_fraction=0, test_fraction=0))
    assert found(report)["unreadable"] == ["gone.png: no such file or directory"]


def test_a_class_of_few_images_is_named(folder):
    (folder / "train/dog/6.png").unlink()
    assert found(report_of(folder)) == {"few": ["dog: 3"]}


def test_arrays_are_checked_by_content(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    images[7] = images[3]
    split = np.array(["train", "val", "test", "train"] * 10)  # every split has rows of both labels
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) // 20, split=split)
    report = check(ArraysData(str(tmp_path / "a.npz")))
    assert found(report) == {"equal_within_split": ["train row 3 = train row 7"]}
    images[9] = images[3]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) // 20, split=split)
    assert found(check(ArraysData(str(tmp_path / "a.npz"))))["equal_across_splits"] == ["train row 3 = train row 7 = val row 9"]


def test_f17_arrays_that_cannot_be_used_are_a_finding_with_the_rows(tmp_path):
    images = np.zeros((6, 8, 8), dtype=np.float32)
    images[4, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6) % 2)
    (finding,) = check(ArraysData(str(tmp_path / "a.npz"))).wrong
    assert finding.kind == "unusable"
    assert "images hold NaN or Inf, in 1 of 6 rows: 4." in finding.what


def test_the_shipped_digits_have_no_findings():
    report = check(DigitsData())
    assert report.findings == []
    assert [sum(counts) for counts in report.splits.values()] == [1168, 270, 359]


class Own(DataModule):
    """What a user may write, with every mistake that a sample can have."""

    def load(self):
        class Samples(Dataset):
            def __getitem__(self, index):
                image_CHW, label = torch.full((1, 8, 8), index, dtype=torch.uint8), torch.tensor(index % 2)
                if index == 2:
                    raise OSError("disk on fire")
                if index == 3:
                    return image_CHW[0], label
                if index == 4:
                    return image_CHW, torch.tensor(5)
                if index == 5:
                    return image_CHW, torch.tensor(0)
                if index == 6:
                    return image_CHW.float(), label
                if index == 7:
                    return torch.full((1, 8, 8), torch.nan), label
                return image_CHW, label

        return Source(Samples(), np.arange(20) % 2, ["even", "odd"])


def test_f17_samples_of_a_users_dataset_are_checked_one_by_one():
    report = check(Own())
    assert found(report)["unreadable"] == [
        "row 2: OSError: disk on fire",
        "row 3: its shape is (8, 8), not (C, H, W)",
        "row 4: its label is 5; there are 2 classes",
        "row 5: its label is 0, but load() says 1",
        "row 6: it is float32 and not from 0 to 1, nor uint8",
        "row 7: it is float32 and not from 0 to 1, nor uint8",
    ]


class Pictures(DataModule):
    def __init__(self, images, **kwargs):
        super().__init__(**kwargs)
        self.images = images

    def load(self):
        labels = np.arange(len(self.images)) % 2
        rows = {"train": np.arange(len(labels) - 1), "val": np.array([len(labels) - 1]), "test": np.empty(0, dtype=np.int64)}
        return Source(ArrayDataset(self.images, labels), labels, ["a", "b"], rows)


def test_near_duplicates_are_found_in_arrays_of_a_size_that_shows_something(pixels_HWC):
    parts = [pixels_HWC[y : y + 64, x : x + 64] for y, x in ((0, 300), (100, 200), (200, 400), (300, 10), (320, 300))]
    slightly_other = (parts[1].astype(int) * 0.9 + 5).astype(np.uint8)
    images = np.stack([*parts, slightly_other]).transpose(0, 3, 1, 2)
    assert found(check(Pictures(images)))["near_across_splits"] == ["train row 1 ~ val row 5"]
    assert "near_across_splits" not in found(check(Pictures(images[:, :, ::4, ::4].copy())))


def test_the_report_on_the_screen_names_classes_splits_and_the_first_items(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    items = [f"cat/[{at}].jpg: empty file" for at in range(7)] + ["cat/\udce9.jpg: empty file"]
    report = Report(
        9, ["cat", "dog"], {"train": [3, 1234], "val": [0, 2]}, [Finding("unreadable", True, "can't be used", items[::-1])]
    )
    print_report(report)
    out = capsys.readouterr().out
    assert "│ dog   │ 1,234 │   2 │" in out
    assert "│ all   │ 1,237 │   2 │" in out
    assert "wrong" in out
    assert "cat/[6].jpg: empty file" in out
    assert "cat/[2].jpg" not in out  # the sixth
    assert "│     8 │" in out
    print_report(Report(2, [], {}, [Finding("near", True, "alike", [" ~ ".join(f"photo{at}" for at in range(500))])]))
    out = capsys.readouterr().out
    assert "photo20" in out
    assert "photo60" not in out
    assert "..." in out
    print_report(Report(class_names=[f"class {k}" for k in range(200)], splits={"train": [1] * 200}))
    assert "... 180 more classes" in capsys.readouterr().out
