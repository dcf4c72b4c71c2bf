"""Every way to name the template, and to call the tools, gives the same project, and says what to do next."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Bake, Done, call, must
from .test_bakes import files_of

WHO = {f"GIT_{role}_{key}": "tester@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}

Way = Callable[[Path, Path], tuple[str, list[str]]]


def as_absolute(template: Path, cwd: Path) -> tuple[str, list[str]]:
    return str(template), []


def as_relative(template: Path, cwd: Path) -> tuple[str, list[str]]:
    shutil.copytree(template, cwd.parent / "the template")
    return "../the template", []


def as_relative_with_output_here(template: Path, cwd: Path) -> tuple[str, list[str]]:
    return as_relative(template, cwd)[0], ["--output-dir", "."]


def as_absolute_with_output(template: Path, cwd: Path) -> tuple[str, list[str]]:
    return str(template), ["--output-dir", "somewhere else"]


def as_zip(template: Path, cwd: Path) -> tuple[str, list[str]]:
    archive = cwd.parent / "lit-guide-main.zip"
    must("git", "archive", "--prefix=lit-guide-main/", f"--output={archive}", "HEAD", cwd=template)
    return str(archive), []


def as_git_url(template: Path, cwd: Path) -> tuple[str, list[str]]:
    bare = cwd.parent / "lit-guide.git"  # cookiecutter tells git by the ending
    must("git", "clone", "--quiet", "--bare", template, bare, cwd=cwd)
    return bare.as_uri(), ["--output-dir", "somewhere else"]


def as_commit(template: Path, cwd: Path) -> tuple[str, list[str]]:
    return as_git_url(template, cwd)[0], ["--checkout", must("git", "rev-parse", "HEAD", cwd=template).strip()]


@pytest.mark.parametrize(
    "way",
    [as_absolute, as_relative, as_relative_with_output_here, as_absolute_with_output, as_zip, as_git_url, as_commit],
)
def test_every_way_gives_the_same_project(
    try_bake: Callable[..., Done], bake: Bake, template: Path, tmp_path: Path, way: Way
) -> None:
    cwd = tmp_path / "a folder" / "here it goes"
    cwd.mkdir(parents=True)
    address, options = way(template, cwd)
    done = try_bake(*options, template=address, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (made,) = [path.parent for path in tmp_path.rglob("constraints.txt") if path.parent.name == "my-classifier"]
    assert made.parent == (cwd / "somewhere else" if "somewhere else" in options else cwd)
    expected = bake()
    assert files_of(made) == files_of(expected)
    assert all((made / name).read_bytes() == (expected / name).read_bytes() for name in files_of(made))


def test_a_relative_template_with_another_output_folder_is_refused(
    try_bake: Callable[..., Done], template: Path, tmp_path: Path
) -> None:
    cwd = tmp_path / "a folder" / "here"
    cwd.mkdir(parents=True)
    done = try_bake("--output-dir", "some/where/else", template=as_relative(template, cwd)[0], cwd=cwd)
    assert done.returncode == 1
    assert "a relative path to it does not go together with --output-dir. Give the template's absolute path." in done.stderr
    assert not list(cwd.rglob("pyproject.toml"))
    assert not list(cwd.rglob("my-classifier"))


def test_only_the_templates_own_files_are_copied(try_bake: Callable[..., Done], template: Path, tmp_path: Path) -> None:
    """A clone that was worked in holds environments, runs and caches."""
    worked_in = Path(shutil.copytree(template, tmp_path / "clone"))
    for junk in (".venv/bin/python", "runs/digits/x/config.yaml", "lit_guide/__pycache__/a.pyc", "my.npz", "dist/a.whl"):
        (worked_in / junk).parent.mkdir(parents=True, exist_ok=True)
        (worked_in / junk).write_bytes(b"junk")
    done = try_bake(template=worked_in)
    assert done.returncode == 0, done.stderr
    project = tmp_path / "my-classifier"
    assert not [name for name in files_of(project) if (project / name).read_bytes() == b"junk"]


def test_a_clone_with_windows_line_ends_gives_the_same_files(
    try_bake: Callable[..., Done], bake: Bake, template: Path, tmp_path: Path
) -> None:
    windows = Path(shutil.copytree(template, tmp_path / "cloned/lit-guide", ignore=shutil.ignore_patterns(".git")))
    for path in [path for path in windows.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        if b"\0" not in content:
            path.write_bytes(content.replace(b"\n", b"\r\n"))
    done = try_bake("--output-dir", "windows", template=windows)
    assert done.returncode == 0, done.stderr
    made, expected = tmp_path / "windows" / "my-classifier", bake()
    assert files_of(made) == files_of(expected)
    for name in files_of(expected) - {"LICENSE"}:  # cookiecutter writes this one, with the ends that it finds
        assert (made / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_project_that_is_there_is_not_touched(try_bake: Callable[..., Done], bake: Bake) -> None:
    project = bake()
    (project / "README.md").write_text("mine")
    assert try_bake().returncode == 1
    assert (project / "README.md").read_text() == "mine"


# --- what to do next


def test_the_last_lines_say_what_to_do_next(
    try_bake: Callable[..., Done], template: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    """They can be pasted where the tool was called; cruft's own file is written before the first commit."""
    (tmp_path / "cruft").mkdir()
    made_by_cruft = call(
        sys.executable,
        "-m",
        "cruft",
        "create",
        template,
        "--no-input",
        cwd=tmp_path / "cruft",
        PWD=str(tmp_path / "cruft"),
        **settings,
    )
    with_pwd = {"PWD": str(tmp_path)}
    made = call(sys.executable, "-m", "cookiecutter", template, "--no-input", cwd=tmp_path, **settings, **with_pwd)
    for done in (made, made_by_cruft):
        assert done.returncode == 0, done.stderr
        lines = [
            "my-classifier is ready. Next:",
            "  cd my-classifier",
            '  git init && git add . && git commit -m "Start"',
            "  make demo",
        ]
        assert done.stdout.splitlines()[-4:] == lines
    started = ["bash", "-ec", "\n".join(line.strip() for line in made_by_cruft.stdout.splitlines()[-3:-1])]
    must(*started, cwd=tmp_path / "cruft", **WHO)
    assert ".cruft.json" in must("git", "ls-files", cwd=tmp_path / "cruft/my-classifier").splitlines()


def test_a_path_that_the_terminal_can_not_show_spoils_nothing(template: Path, settings: dict[str, str], tmp_path: Path) -> None:
    arguments = [template, "--no-input", "--output-dir", "Ünder"]
    done = call(sys.executable, "-m", "cookiecutter", *arguments, cwd=tmp_path, PYTHONIOENCODING="ascii", **settings)
    assert done.returncode == 0, done.stderr
    assert "\\xdcnder/my-classifier'\n" in done.stdout
    assert (tmp_path / "Ünder/my-classifier/pyproject.toml").is_file()


def test_the_last_lines_name_the_whole_path_where_it_is_not_below(try_bake: Callable[..., Done], tmp_path: Path) -> None:
    done = try_bake("--output-dir", "an other place")
    assert f"\n  cd '{tmp_path / 'an other place' / 'my-classifier'}'\n" in done.stdout
