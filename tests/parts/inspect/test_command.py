"""`data check` and `data show`, as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run

FOLDER = ["--config", "configs/folder.yaml", "--data.root", "photos"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty good pictures in two classes, all different."""
    for at in range(40):
        path = tmp_path / "photos" / ("cat", "dog")[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares_HWC = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(squares_HWC.repeat(10, axis=0).repeat(10, axis=1)).save(path)
    return tmp_path / "photos"


def findings() -> dict[str, list[str]]:
    report = json.loads(Path("data_check.json").read_text())
    return {finding["kind"]: finding["items"] for finding in report["findings"]}


def test_a_good_folder_passes(run: Run, photos: Path) -> None:
    outcome = run("data", "check", *FOLDER)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("All findings are in data_check.json\n40 images: nothing must be mended.\n")
    assert "│ cat   │    13 │   3 │    4 │" in outcome.out
    assert json.loads(Path("data_check.json").read_text()) == {
        "ok": True,
        "images": 40,
        "splits": {"train": {"cat": 13, "dog": 13}, "val": {"cat": 3, "dog": 3}, "test": {"cat": 4, "dog": 4}},
        "findings": [],
    }


def test_f13_bad_files_end_with_1_are_moved_away_and_come_back(run: Run, photos: Path) -> None:
    bad = {photos / "cat" / "0.png": b"", photos / "dog" / "notes.txt": b"no image"}
    for path, content in bad.items():
        path.write_bytes(content)
    outcome = run("data", "check", *FOLDER)
    assert outcome.code == 1
    how = "--fix quarantine moves broken files away, --data.on_bad_image skip trains without them."
    assert outcome.err == f"lit-guide: Mend this before you train:\n  can't be used (2)\n{how}\n"
    assert findings() == {"unreadable": ["cat/0.png: empty file", "dog/notes.txt: not an image"]}
    assert all(path.is_file() for path in bad)  # looking changes nothing

    outcome = run("data", "check", *FOLDER, "--fix", "quarantine")
    assert outcome.code == 0, outcome.err
    assert f"Moved 2 of 41 files to {photos}-quarantine" in outcome.out.replace("\n", " ")
    assert outcome.out.endswith("\n39 images: nothing must be mended.\n")
    assert not any(path.exists() for path in bad)
    assert run("data", "check", *FOLDER).code == 0
    assert findings() == {}

    outcome = run("data", "check", *FOLDER, "--fix", "undo")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Put back where they were:\n  ")
    assert {path: path.read_bytes() for path in bad} == bad
    assert run("data", "check", *FOLDER, "--fix", "undo").code == 2


def test_f13_a_class_that_went_into_quarantine_whole_comes_back(run: Run, photos: Path) -> None:
    for path in (photos / "cat").iterdir():
        path.write_bytes(b"")
    assert run("data", "check", *FOLDER, "--fix", "quarantine").code == 1
    assert not list((photos / "cat").iterdir())
    assert run("data", "check", *FOLDER).code == 1
    assert run("data", "check", *FOLDER, "--fix", "undo").code == 0
    assert len(list((photos / "cat").iterdir())) == 20


def test_f26_a_report_that_cannot_be_written_is_said_before_the_check(run: Run, photos: Path) -> None:
    Path("taken").write_text("a file")
    for command in ("check", "show"):
        outcome = run("data", command, *FOLDER, "--output", "taken/here")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == "lit-guide: --output taken/here can't be made: Not a directory.\n"


def test_what_check_decoded_fit_need_not_decode_again(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert run("data", "check", *FOLDER).code == 0
    monkeypatch.setattr("lit_guide.parts.cache.known.examine", lambda *args: pytest.fail("decoded again"))
    assert run("data", "show", *FOLDER).code == 0


def test_f16_a_leak_stays_wrong_when_bad_files_are_moved(run: Run, photos: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (photos / split / name).mkdir(parents=True)
    for at in range(0, 40, 2):
        (photos / "cat" / f"{at}.png").rename(photos / "train" / "cat" / f"{at}.png")
        (photos / "dog" / f"{at + 1}.png").rename(photos / "train" / "dog" / f"{at}.png")
    for name in ("cat", "dog"):
        (photos / name).rmdir()
        (photos / "test" / name / "again.png").write_bytes((photos / "train" / name / "0.png").read_bytes())
    (photos / "train" / "cat" / "2.png").write_bytes(b"")
    outcome = run("data", "check", *FOLDER, "--fix", "quarantine", "--data.val_fraction", "0.2")
    assert outcome.code == 1
    assert "can't be used" not in outcome.err
    assert "  the same image in more than one split (a leak): scores on it mean nothing (2)\n" in outcome.err
    assert len(findings()["equal_across_splits"]) == 2


def test_the_report_goes_where_it_is_asked_for(run: Run, photos: Path) -> None:
    assert run("data", "check", *FOLDER, "--output", "reports/today").code == 0
    assert json.loads(Path("reports/today/data_check.json").read_text())["ok"] is True
    assert not Path("data_check.json").exists()


def test_show_draws_three_pictures_and_builds_no_cache(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    outcome = run("data", "show", *FOLDER, "--data.cache", "disk", "--samples", "5", "--data.cutmix", "1")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [f"Drew {Path('data_show', name)}" for name in ("batch.png", "raw.png", "classes.png")]
    for name in ("batch", "raw", "classes"):
        with Image.open(f"data_show/{name}.png") as image:
            assert min(image.size) > 100
    assert not list(Path("cache").rglob("images.bin"))


def test_digits_are_checked_and_shown(run: Run) -> None:
    assert run("data", "check", "--config", "configs/digits.yaml").code == 0
    assert run("data", "show", "--config", "configs/digits.yaml").code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data", "shw"], "There is no command 'data shw'. Did you mean data show?"),
        (["data", "check"], "No data were chosen: give a recipe"),
        (["data", "check", "--data.root", "photos"], "No data were chosen: give a recipe"),
        (["data", "check", "photos"], "Then type: data check --config configs/folder.yaml --data.root photos"),
        (["data", "check", *FOLDER, "--data.group_pattern", "x"], "must have one group in brackets"),
        (["data", "show", *FOLDER, "--data.batch_size", "0"], "data.batch_size is 0: expected int above 0."),
        (["data", "check", *FOLDER, "--fix", "delete"], "fix"),
        (["data", "check", *FOLDER, "--fx", "undo"], "fx"),
        (["data", "check", "--config", "configs/digits.yaml", "--fix", "quarantine"], "these data are no folder"),
        (["data", "check", "--config", "configs/folder.yaml", "--data.root", "gone"], "There is no folder gone."),
        (["data", "check", *FOLDER, "--data.image_sise", "3"], "Did you mean data.image_size?"),
        (["data", "show", *FOLDER, "--samples", "0"], "--samples is 0; it must be 1 or more."),
        (["data", "check", *FOLDER, "--near_bits", "11"], "--near_bits is 11; it must be from 0 to 10."),
        (
            ["data", "check", "--config", "configs/table.yaml", "--data.table", "t.csv", "--fix", "undo"],
            "these data are no folder",
        ),
    ],
)
def test_wrong_words_end_with_2_and_the_next_step(run: Run, photos: Path, args: list[str], words: str) -> None:
    outcome = run(*args)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert not Path("data_check.json").exists()


def test_help_says_what_there_is(run: Run) -> None:
    for args, code in ((["data"], 2), (["data", "--help"], 0)):
        outcome = run(*args)
        assert outcome.code == code
        assert "data check --config configs/folder.yaml --data.root DIR" in outcome.out
    assert "--near_bits" in run("data", "check", "--help").out
    assert "--samples" in run("data", "show", "--help").out
