import json
from pathlib import Path

import pytest

import lit_guide.parts.inspect.quarantine as parts
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.photos.moves import UNDO
from lit_guide.parts.inspect.quarantine import folder_of, put_back


@pytest.fixture
def root(tmp_path):
    """A set of five files, two of them bad."""
    folder = tmp_path / "my photos"
    for name in ("cat/1.jpg", "cat/bad.jpg", "dog/1.jpg", "dog/deep/bad.jpg", "dog/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def quarantine(root, files):
    moved, left = parts.quarantine(root, files)
    assert left == []
    return moved


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


def test_files_outside_the_folder_stay_there(root, tmp_path):
    other = tmp_path / "elsewhere" / "bad.jpg"
    other.parent.mkdir()
    other.write_text("outside")
    assert parts.quarantine(root, [other, root / "cat/bad.jpg"]) == ([folder_of(root) / "cat/bad.jpg"], [other])
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


# F34: links that lead out of the set, and lists that were changed


@pytest.fixture
def outside(root, tmp_path):
    """A folder of the user's beside the set, with links to it in the set."""
    folder = tmp_path / "home"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret.jpg").write_text("precious")
    (root / "cat/link.jpg").symlink_to(folder / "secret.jpg")
    (root / "cat/folder").symlink_to(folder)
    return folder


def test_f34_links_and_what_lies_behind_them_are_left(root, outside):
    asked = [root / "cat/link.jpg", root / "cat/folder/secret.jpg", root / "cat/../../home/secret.jpg", root / "cat/bad.jpg"]
    moved, left = parts.quarantine(root, asked)
    assert (moved, left) == ([folder_of(root) / "cat/bad.jpg"], asked[:3])
    assert files_below(outside) == {"secret.jpg": "precious"}
    assert (root / "cat/link.jpg").is_symlink()


def test_f34_a_quarantine_that_is_a_link_or_holds_one_takes_nothing(root, outside):
    folder_of(root).symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        parts.quarantine(root, [root / "cat/bad.jpg"])
    with pytest.raises(UserError, match="is a link"):
        put_back(root)
    (root.parent / f"{root.name}-quarantine").unlink()
    folder_of(root).mkdir()
    (folder_of(root) / "cat").symlink_to(outside)
    assert parts.quarantine(root, [root / "cat/bad.jpg"]) == ([], [root / "cat/bad.jpg"])
    assert files_below(outside) == {"secret.jpg": "precious"}


def test_f34_a_list_that_is_a_link_is_not_written_through(root, outside):
    folder_of(root).mkdir()
    (folder_of(root) / UNDO).symlink_to(outside / "secret.jpg")
    with pytest.raises(UserError, match="0 files were moved"):
        parts.quarantine(root, [root / "cat/bad.jpg"])
    assert (outside / "secret.jpg").read_text() == "precious"


HOME, SET = "{home}/secret.jpg", "{set}/cat/back.jpg"


@pytest.mark.parametrize(
    "line",
    [
        {"now": "../home/secret.jpg", "was": SET},
        {"now": HOME, "was": SET},
        {"now": "into/secret.jpg", "was": SET},
        {"now": "cat/bad.jpg", "was": "{home}/new.jpg"},
        {"now": "cat/bad.jpg", "was": "{set}/../home/new.jpg"},
        {"now": "cat/bad.jpg", "was": "{set}/cat/folder/new.jpg"},
        {"now": "cat/bad.jpg", "was": "cat/back.jpg"},
        {"now": "cat/bad.jpg", "was": "a\0b"},
        {"now": 3, "was": SET},
        {"now": "cat/bad.jpg"},
        {"now": "{not JSON", "was": SET},
    ],
)
def test_f34_a_list_that_leads_out_of_the_set_moves_nothing(root, outside, line):
    quarantine(root, [root / "cat/bad.jpg"])
    (folder_of(root) / "into").symlink_to(outside)
    text = json.dumps(line).replace("{home}", str(outside)).replace("{set}", str(root))
    with (folder_of(root) / UNDO).open("a") as listed:
        listed.write((text if "not JSON" not in text else "{nothing}") + "\n")
    before = files_below(root.parent)
    with pytest.raises(UserError, match=r"line 2: it leads out of the set"):
        put_back(root)
    assert files_below(root.parent) == before


def test_f34_a_name_that_is_taken_by_a_broken_link_is_not_replaced(root):
    quarantine(root, [root / "cat/bad.jpg"])
    (root / "cat/bad.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match="is there again"):
        put_back(root)
    assert (root / "cat/bad.jpg").readlink() == Path("nowhere")


def test_a_set_that_is_itself_a_link_is_tidied(root, tmp_path):
    (tmp_path / "shortcut").symlink_to(root)
    moved, left = parts.quarantine(tmp_path / "shortcut", [tmp_path / "shortcut/cat/bad.jpg"])
    assert (moved, left) == ([tmp_path / "shortcut-quarantine/cat/bad.jpg"], [])
    assert put_back(tmp_path / "shortcut") == [tmp_path / "shortcut/cat/bad.jpg"]
    assert (root / "cat/bad.jpg").read_text() == "cat/bad.jpg"
