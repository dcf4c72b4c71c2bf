import json

import pytest

from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.parts.inspect.quarantine import UNDO, folder_of, put_back, quarantine


@pytest.fixture
def root(tmp_path):
    """A set of five files, two of them bad."""
    folder = tmp_path / "my photos"
    for name in ("cat/1.jpg", "cat/bad.jpg", "dog/1.jpg", "dog/deep/bad.jpg", "dog/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_bad_files_go_beside_the_set_and_come_back_as_they_were(root, tmp_path):
    before = files_below(tmp_path)
    moved = quarantine(root, [root / "cat/bad.jpg", str(root / "dog/deep/bad.jpg")])
    side = tmp_path / "my photos-quarantine"
    assert folder_of(root) == side
    assert moved == [side / "cat/bad.jpg", side / "dog/deep/bad.jpg"]
    assert files_below(root) == {name: name for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg")}
    assert (side / "cat/bad.jpg").read_text() == "cat/bad.jpg"
    assert sorted(put_back(root)) == [root / "cat/bad.jpg", root / "dog/deep/bad.jpg"]
    assert files_below(tmp_path) == before
    assert not side.exists()


def test_a_second_file_of_the_same_name_replaces_nothing(root):
    quarantine(root, [root / "cat/bad.jpg"])
    (root / "cat/bad.jpg").write_text("another one")
    (moved,) = quarantine(root, [root / "cat/bad.jpg"])
    assert moved.name == "bad-2.jpg"
    assert files_below(folder_of(root))["cat/bad.jpg"] == "cat/bad.jpg"
    assert moved.read_text() == "another one"
    with pytest.raises(UserError, match=r"bad\.jpg is there again"):
        put_back(root)
    assert (root / "cat/bad.jpg").read_text() == "another one"
    assert files_below(folder_of(root))["cat/bad.jpg"] == "cat/bad.jpg"


def test_what_is_not_there_is_left_out(root):
    assert quarantine(root, [root / "cat/gone.jpg"]) == []
    assert put_back(root) == []


def test_files_outside_the_folder_go_by_their_name(root, tmp_path):
    """A table may list absolute paths."""
    other = tmp_path / "elsewhere" / "bad.jpg"
    other.parent.mkdir()
    other.write_text("outside")
    (moved,) = quarantine(root, [other])
    assert moved == folder_of(root) / "bad.jpg"
    assert put_back(root) == [other]
    assert other.read_text() == "outside"


def test_every_move_is_written_down_before_it_is_made(root, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quarantine(root, [root / "cat/bad.jpg"])
    monkeypatch.undo()
    (line,) = (folder_of(root) / UNDO).read_text().splitlines()
    assert json.loads(line) == {"now": "cat/bad.jpg", "was": str(root / "cat/bad.jpg")}
    assert put_back(root) == []  # it was never moved
    assert (root / "cat/bad.jpg").read_text() == "cat/bad.jpg"


def test_half_a_line_of_an_interrupted_list_stops_nothing(root):
    quarantine(root, [root / "cat/bad.jpg"])
    with (folder_of(root) / UNDO).open("a") as undo:
        undo.write('{"now": "dog/ba')
    assert put_back(root) == [root / "cat/bad.jpg"]


def test_a_file_that_cannot_be_moved_ends_it_with_the_count(root, tmp_path):
    (tmp_path / "my photos-quarantine").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"0 files were moved to .*my photos-quarantine, then: File exists"):
        quarantine(root, [root / "cat/bad.jpg"])
    assert (root / "cat/bad.jpg").is_file()


def test_an_empty_class_folder_that_is_gone_is_made_again(root):
    quarantine(root, [root / "dog/deep/bad.jpg"])
    (root / "dog/deep").rmdir()
    assert put_back(root) == [root / "dog/deep/bad.jpg"]


def test_without_a_list_there_is_nothing_to_put_back(root):
    with pytest.raises(ConfigError, match="nothing to put back"):
        put_back(root)
