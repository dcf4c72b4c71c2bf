"""A command on screens of few characters, with names that no screen can show: what it found is kept, and told."""

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_guide.cli import main
from tests.conftest import Outcome, Run

ODD = os.fsdecode(b"caf\xe9 \xff.png")
NAMES = ["plain.png", "żółw.png", "猫 🖼.png", *([ODD] if sys.platform == "linux" else [])]


class Screen(io.TextIOWrapper):
    """A screen, or a pipe, of one encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def type(self, *words: str) -> int:
        """Run a command on it."""
        with redirect_stdout(self), redirect_stderr(self):
            return main(list(words))

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.fixture(params=["ascii", "cp1252", "latin-1", "utf-8"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Screen:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return Screen(request.param)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for split in ("żaba", "cat"):
        for at, name in enumerate(NAMES):
            (tmp_path / "album" / split).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 16 * at + 3 * len(split)).save(tmp_path / "album" / split / name, "PNG")
    return tmp_path / "album"


def test_f46_predictions_are_written_whole_and_shown(screen: Screen, album: Path, trained: Path) -> None:
    assert screen.type("predict", "--run", str(trained), "--images", "album/cat", "--run_dir", "out") == 0
    files = [str(path) for path in sorted(Path("album/cat").iterdir())]
    assert [row["file"] for row in json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))] == files
    with Path("out/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["file"] for row in csv.DictReader(file)]
    assert rows == [name.encode("utf-8", "backslashreplace").decode() for name in files]
    for name in files:
        as_shown = name.encode("utf-8", "backslashreplace").decode().encode(screen.encoding, "backslashreplace")
        assert as_shown.decode(screen.encoding) in screen.shown()
    # No cell is wider than its column.
    table = [line for line in screen.shown().splitlines() if line[:1] in "|│" and "--" not in line]
    assert len({line.count("|") + line.count("│") for line in table}) == 1
    assert screen.encoding == "utf-8" or len({len(line) for line in table}) == 1


def test_f46_a_report_is_written_and_shown(screen: Screen, album: Path) -> None:
    (album / "cat" / NAMES[-1]).write_bytes(b"")
    assert screen.type("data", "check", "--config", "configs/folder.yaml", "--data.root", "album") == 1
    report = json.loads(Path("data_check.json").read_text(encoding="utf-8"))
    assert report["findings"][0]["items"] == [f"cat/{NAMES[-1]}: empty file"]
    assert report["splits"]["train"].keys() == {"cat", "żaba"}
    shown = screen.shown()
    assert ("żaba" if screen.encoding == "utf-8" else r"\u017caba") in shown
    assert "Mend this before you train" in shown


def test_f46_messages_reach_every_screen(screen: Screen) -> None:
    assert screen.type("data", "check", "--config", "configs/folder.yaml", "--data.root", "żółw") == 2
    assert "There is no folder" in screen.shown()


def test_f46_a_setting_that_yaml_cannot_hold_is_refused_in_words(screen: Screen) -> None:
    for words in (["--data.root", "caf\udce9"], ["--data.root=caf\udce9"]):
        assert screen.type("data", "check", "--config", "configs/folder.yaml", *words) == 2
    told = r"caf\udce9 is no UTF-8, and a setting must be: rename what it names, or make a link to it."
    assert screen.shown() == f"lit-guide: {told}\nlit-guide: --data.root={told}\n"


def test_f46_a_stream_that_is_no_text_file_serves_too() -> None:
    notebook = io.StringIO()
    with redirect_stdout(notebook):
        assert main(["--version"]) == 0
    assert notebook.getvalue().startswith("lit-guide ")


# --- names that act on a screen

NASTY = ["\x1b[2Jcat", "dog\r\x1b]0;title\x07", "eel\n\u202elit-guide: done", "\x9b31mfox"]
READABLE = [r"\x1b[2Jcat", r"dog\r\x1b]0;title\x07", r"eel\n\u202elit-guide: done", r"\x9b31mfox"]
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")


def is_harmless(outcome: Outcome) -> bool:
    return all(letter == "\n" or (letter.isprintable() and letter != "\u202e") for letter in outcome.out + outcome.err)


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """Photos in classes of such names, one of them broken."""
    for at in range(80):
        name = NASTY[at % 4]
        path = tmp_path / "nasty" / name / f"{name}{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "nasty" / NASTY[0] / f"{NASTY[2]}.png").write_bytes(b"")
    return tmp_path / "nasty"


@on_posix
def test_f37_names_of_files_and_classes_are_readable_in_tables_and_errors(run: Run, nasty: Path, trained: Path) -> None:
    folder = ["--config", "configs/folder.yaml", "--data.root", "nasty"]
    outcome = run("data", "check", *folder)
    assert is_harmless(outcome), outcome
    assert all(name in outcome.out for name in READABLE)
    outcome = run("data", "check", *folder, "--fix", "quarantine")
    assert is_harmless(outcome), outcome
    outcome = run("data", "check", *folder, "--fix", "undo")
    assert is_harmless(outcome), outcome
    assert f"{READABLE[2]}.png" in outcome.out
    outcome = run("fit", *folder)  # stops at the broken file
    assert (outcome.code, is_harmless(outcome)) == (1, True), outcome
    assert f"{READABLE[0]}/{READABLE[2]}.png: empty file" in outcome.err
    outcome = run("predict", "--run", trained, "--images", "nasty", "--run_dir", "out")
    assert (outcome.code, is_harmless(outcome)) == (1, True), outcome
    assert f"nasty/{READABLE[0]}/{READABLE[2]}.png: empty file" in outcome.err
    rows = json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))
    assert {Path(row["file"]).parent.name for row in rows} == set(NASTY)


@pytest.mark.slow
@on_posix
def test_f37_a_run_with_such_classes_is_trained_shown_and_told_apart(run: Run, nasty: Path) -> None:
    words = ["--config", "configs/folder.yaml", "--data.root", "nasty", "--data.on_bad_image", "skip", "--data.image_size", "8"]
    quick = ["--model.network", "cnn", "--trainer.max_epochs", "1", "--accelerator", "cpu", "--export.pt2.enabled", "false"]
    outcome = run("fit", *words, *quick, "--run_dir", "run\x1b[7m")
    assert (outcome.code, is_harmless(outcome)) == (0, True), outcome
    assert r"Everything is in run\x1b[7m: " in outcome.out
    outcome = run("predict", "--run", "run\x1b[7m")
    assert (outcome.code, is_harmless(outcome)) == (0, True), outcome
    assert any(name in outcome.out for name in READABLE)
    (nasty / NASTY[3]).rename(nasty / "\x1bhen")
    outcome = run("test", "--run", "run\x1b[7m")
    assert (outcome.code, is_harmless(outcome)) == (1, True), outcome
    assert f"checkpoint (4): {', '.join(sorted(READABLE, key=lambda name: NASTY[READABLE.index(name)]))}\n" in outcome.err
    outcome = run("data", "show", *words)
    assert (outcome.code, is_harmless(outcome)) == (0, True), outcome


def test_f37_what_is_typed_and_what_a_file_says_is_readable(run: Run) -> None:
    Path("mine.yaml").write_text('name: "\\e[2Jx/y"\ntrainer: {precision: "\\e[31m"}\n')
    for words in (
        ["\x1b[2Jfit"],
        ["fit", "--\x1b]0;x\x07", "1"],
        ["fit", "--config", "\x1b[2J.yaml"],
        ["fit", "--config", "configs/digits.yaml", "--config", "mine.yaml"],
        ["fit", "--config", "configs/digits.yaml", "--name", "\x1b[2J/x"],
        ["test", "--run", "\x9b2J"],
        ["predict", "--ckpt_path", "\x1bc"],
    ):
        outcome = run(*words)
        assert (outcome.code, is_harmless(outcome)) == (2, True), outcome


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are Unicode")
def test_f46_where_names_of_files_are_ascii_they_are_found_all_the_same(album: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lit_guide", "data", "check", "--config", "configs/folder.yaml", "--data.root", "album"]
    names = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={**names, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "data_check.json").read_text(encoding="utf-8"))
    assert (report["ok"], report["images"]) == (True, 2 * len(NAMES))
