"""Updates with cruft: what the user changed and what the template changed are both there afterwards."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import JINJA_FOLDER, Done, call, commands_of, commit, hook, must
from .test_bakes import files_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="cruft supports Windows through WSL only")]


@pytest.fixture
def own_template(template: Path, tmp_path: Path) -> Path:
    """A template to be changed."""
    return Path(shutil.copytree(template, tmp_path / "template"))


def cruft(*args: str, cwd: Path, settings: dict[str, str]) -> Done:
    return call(sys.executable, "-m", "cruft", *args, cwd=cwd, **settings)


@pytest.fixture
def project(own_template: Path, settings: dict[str, str], tmp_path: Path) -> Path:
    """A project made by cruft and committed."""
    answers = json.dumps({"project_name": "Leaf Doctor", "license": "BSD-3-Clause", "ci": "none"})
    done = cruft("create", str(own_template), "--no-input", "--extra-context", answers, cwd=tmp_path, settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    commit(tmp_path / "leaf-doctor", "Generated")
    return tmp_path / "leaf-doctor"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_cruft_makes_the_project_that_cookiecutter_makes(
    project: Path, own_template: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    answers = ["project_name=Leaf Doctor", "license=BSD-3-Clause", "ci=none"]
    arguments = [own_template, "--no-input", "--output-dir", "plain", *answers]
    must(sys.executable, "-m", "cookiecutter", *arguments, cwd=tmp_path, **settings)
    plain = tmp_path / "plain" / "leaf-doctor"
    made = {name for name in files_of(project) if not name.startswith(".git/")}
    assert made == files_of(plain) | {".cruft.json"}
    assert all((project / name).read_bytes() == (plain / name).read_bytes() for name in files_of(plain))
    assert cruft("diff", "--exit-code", cwd=project, settings=settings).returncode == 0


def test_the_users_edit_and_the_templates_change_both_survive(
    project: Path, own_template: Path, settings: dict[str, str]
) -> None:
    check = cruft("check", cwd=project, settings=settings)
    assert check.returncode == 0, check.stdout

    replace(project / "configs/digits.yaml", "lr: 0.002", "lr: 0.001")
    replace(project / "leaf_doctor/networks.py", '{"cnn": CNN}', '{"cnn": CNN, "mine": CNN}')
    (project / "leaf_doctor/mine.py").write_text('"""Mine."""\n')
    (project / "configs/debug/profile.yaml").unlink()
    commit(project, "My own work")

    replace(own_template / "configs/digits.yaml", "max_epochs: 20", "max_epochs: 21")
    with (own_template / "lit_guide/networks.py").open("a") as file:
        file.write("# lit_guide changed\n")
    page = own_template / "docs/howto/update.md"
    replace(page, "## Parts and sources\n", "## Parts and sources\n\nNews of lit-guide.\n")
    replace(own_template / JINJA_FOLDER / "README.md", "## Make it your own\n", "## Make it your own\n\nMore news.\n")
    (own_template / "lit_guide/news.py").write_text('"""News of lit_guide."""\n')
    (own_template / "configs/warmup_cosine.yaml").unlink()
    (own_template / "configs/debug/profile.yaml").write_text("# changed\n")
    commit(own_template, "The template moves on")

    assert cruft("check", cwd=project, settings=settings).returncode == 1
    update = cruft("update", "-y", cwd=project, settings=settings)
    assert update.returncode == 0, update.stdout + update.stderr

    digits = (project / "configs/digits.yaml").read_text()
    assert "lr: 0.001" in digits
    assert "max_epochs: 21" in digits
    networks = (project / "leaf_doctor/networks.py").read_text()
    assert networks.endswith("# leaf_doctor changed\n")
    assert '{"cnn": CNN, "mine": CNN}' in networks
    assert (project / "leaf_doctor/mine.py").read_text() == '"""Mine."""\n'
    assert (project / "leaf_doctor/news.py").read_text() == '"""News of leaf_doctor."""\n'
    assert "\n\nNews of leaf-doctor.\n" in (project / "docs/howto/update.md").read_text()
    readme = (project / "README.md").read_text()
    assert "\n\nMore news.\n" in readme
    assert "| `leaf_doctor/news.py` | News of leaf_doctor |\n" in readme
    assert not (project / "configs/warmup_cosine.yaml").exists()
    assert not (project / "configs/debug/profile.yaml").exists()
    assert not list(project.rglob("*.rej"))
    assert not [name for name in files_of(project) if "lit_guide" in name]
    assert cruft("check", cwd=project, settings=settings).returncode == 0
    commit(project, "Updated")
    again = cruft("update", "-y", cwd=project, settings=settings)
    assert "Nothing to do" in again.stdout
    assert must("git", "status", "--porcelain", cwd=project) == ""


def test_a_change_of_the_same_line_is_a_conflict_for_the_user_to_settle(
    project: Path, own_template: Path, settings: dict[str, str]
) -> None:
    replace(project / "configs/digits.yaml", "max_epochs: 20", "max_epochs: 30")
    commit(project, "Longer")
    replace(own_template / "configs/digits.yaml", "max_epochs: 20", "max_epochs: 40")
    commit(own_template, "Longer")
    cruft("update", "-y", cwd=project, settings=settings)
    digits = (project / "configs/digits.yaml").read_text()
    assert "max_epochs: 30" in digits
    assert "max_epochs: 40" in digits
    assert "<<<<<<< ours" in digits


def test_uncommitted_work_is_not_updated_over(project: Path, own_template: Path, settings: dict[str, str]) -> None:
    replace(project / "configs/digits.yaml", "lr: 0.002", "lr: 0.001")
    replace(own_template / "configs/digits.yaml", "max_epochs: 20", "max_epochs: 21")
    commit(own_template, "The template moves on")
    assert "unclean" in cruft("update", "-y", cwd=project, settings=settings).stdout
    digits = (project / "configs/digits.yaml").read_text()
    assert "lr: 0.001" in digits
    assert "max_epochs: 20" in digits


def variables(page: str) -> list[str]:
    """The answers that the page about updates changes, as they are typed there."""
    return re.findall(r"^uvx cruft update -y --variables-to-update '(.+?)'", page, flags=re.MULTILINE)


def test_an_update_adds_and_removes_parts_and_sources(project: Path, own_template: Path, settings: dict[str, str]) -> None:
    """Both commands of the page, one after the other; what is the user's own stays."""
    replace(project / "leaf_doctor/networks.py", '{"cnn": CNN}', '{"cnn": CNN, "mine": CNN}')
    commit(project, "My own work")
    parts = {path.parent.name for path in own_template.glob("lit_guide/parts/*/__init__.py")}
    fewer, more = variables((project / "docs/howto/update.md").read_text())

    for answers in (fewer, more):
        update = cruft("update", "-y", "--variables-to-update", answers, cwd=project, settings=settings)
        assert update.returncode == 0, update.stdout + update.stderr
        assert "Next:" not in update.stdout
        assert not list(project.rglob("*.rej"))
        assert cruft("diff", "--exit-code", cwd=project, settings=settings).stdout.count("\n+++ ") == 1
        there = {path.name for path in (project / "leaf_doctor/parts").iterdir() if path.is_dir() and path.name[0] != "_"}
        folder = project / "leaf_doctor/data/folder.py"
        if answers == fewer:
            assert there == {"doctor"}
            assert "data" not in commands_of(project, "leaf_doctor")
            assert not folder.exists()
        else:
            assert there == parts
            assert "data" in commands_of(project, "leaf_doctor")
            assert folder.exists()
            assert (project / "configs/folder.yaml").exists()
            assert "configs/folder.yaml" in (project / "Makefile").read_text()
        assert '"mine": CNN' in (project / "leaf_doctor/networks.py").read_text()
        commit(project, "Updated")


def test_a_part_that_was_deleted_stays_away(project: Path, own_template: Path, settings: dict[str, str]) -> None:
    shutil.rmtree(project / "leaf_doctor/parts/doctor")
    commit(project, "Without doctor")
    replace(own_template / "lit_guide/parts/doctor/__init__.py", '"""\n', '"""\n\nNEWS = 1\n')
    replace(own_template / "configs/digits.yaml", "max_epochs: 20", "max_epochs: 21")
    commit(own_template, "The template moves on")
    update = cruft("update", "-y", cwd=project, settings=settings)
    assert update.returncode == 0, update.stdout + update.stderr
    assert not (project / "leaf_doctor/parts/doctor").exists()
    assert "max_epochs: 21" in (project / "configs/digits.yaml").read_text()
    assert not list(project.rglob("*.rej"))


def test_a_part_that_is_not_there_is_refused_by_an_update(project: Path, settings: dict[str, str]) -> None:
    update = cruft("update", "-y", "--variables-to-update", '{"parts": "docter"}', cwd=project, settings=settings)
    assert update.returncode == 1
    assert "there is no part 'docter'" in update.stderr
    assert must("git", "status", "--porcelain", cwd=project) == ""


def test_a_project_of_plain_cookiecutter_can_be_linked(own_template: Path, settings: dict[str, str], tmp_path: Path) -> None:
    must(sys.executable, "-m", "cookiecutter", own_template, "--no-input", cwd=tmp_path, **settings)
    plain = tmp_path / "my-classifier"
    linked = cruft("link", str(own_template), "--no-input", cwd=plain, settings=settings)
    assert linked.returncode == 0, linked.stdout + linked.stderr
    assert cruft("diff", "--exit-code", cwd=plain, settings=settings).returncode == 0


def test_a_template_that_is_gone_is_said(own_template: Path, tmp_path: Path) -> None:
    """What the hook says where cruft's record names a commit that the template has no more."""
    answers = {"_template": str(own_template), "_commit": "0" * 40}
    with pytest.raises(SystemExit, match=r"The template could not be cloned: .*0000"):
        hook("post_gen_project").template_folder(answers, tmp_path / "clone")
