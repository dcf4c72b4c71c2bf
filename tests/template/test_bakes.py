"""What is generated: every option, every way to name the template, and each file of this repository accounted for."""

import json
import re
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from .conftest import JINJA_FOLDER, ROOT, Bake, Done, hook, must, must_be_tidy, must_be_typed, tracked

# What stays here. Every other file is carried into a project (hooks/post_gen_project.py) or rendered (the Jinja folder).
TEMPLATE_ONLY = (
    ".ci/run",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "benchmarks/*",
    "cookiecutter.json",
    "docs/*",
    "hooks/*.py",
    "tests/docs/*.py",
    "tests/template/*.py",
)
RENDERED = ("LICENSE", "README.md")
OWN_NAME = re.compile(rb"lit[\W_]?guide", re.IGNORECASE)
LEFTOVERS = re.compile(r"cookiecutter|template only|\{%|%\}")
LONG = "a23456789-b23456789-c23456789-d234567890"
# Together they take every choice of every question.
ANSWERS: dict[str, dict[str, str]] = {
    "my-classifier": {},
    "ab": {"project_slug": "ab", "license": "Apache-2.0", "author_email": "ada@example.org", "data": "folder"},
    "net-2-go": {
        "project_name": "Net 2 Go",
        "license": "BSD-3-Clause",
        "data": "torchvision",
        "ci": "none",
        "author_name": "Zoë Łukasiewicz",
    },
    LONG: {
        "project_slug": LONG,
        "description": """It's a "quoted" \\ description 数字""",
        "author_name": "Иван O'Brien",
        "license": "proprietary",
        "data": "arrays",
        "ci": "none",
    },
}
LICENCES = {
    "MIT": ("MIT License", "MIT"),
    "Apache-2.0": ("Apache License", "Apache-2.0"),
    "BSD-3-Clause": ("BSD 3-Clause License", "BSD-3-Clause"),
    "proprietary": ("All rights reserved", "LicenseRef-Proprietary"),
}


def names_of(slug: str) -> dict[str, str]:
    package = slug.replace("-", "_")
    return {"lit_guide": package, "lit-guide": slug, "LIT_GUIDE": package.upper()}


def files_of(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}


def is_template_only(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in TEMPLATE_ONLY)


def test_every_file_is_on_one_list() -> None:
    """A new file must be carried (CARRIED in hooks/post_gen_project.py), stay here (above), or be rendered."""
    carried = [path.relative_to(ROOT).as_posix() for path in hook("post_gen_project").carried(ROOT, "github")]
    assert len(carried) == len(set(carried))
    rendered = [f"{JINJA_FOLDER}/{name}" for name in RENDERED]
    stay = [name for name in tracked() if is_template_only(name)]
    assert sorted([*carried, *rendered, *stay]) == tracked()


def test_the_readme_names_every_module_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:lit_guide/)?(\w+\.py)`", text.partition("## A map of the files")[2]))
    there = {path.name for path in (ROOT / "lit_guide").rglob("*.py") if not path.name.startswith("__")}
    assert named == there


def test_the_readme_asks_what_cookiecutter_asks() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = [key for key in questions if not key.startswith("_")]
    table = text.partition("| question | answers |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == asked
    shown = re.findall(r"^  \[(\d)/(\d)\] (.+?)(?: \(|$)", text, flags=re.MULTILINE)
    prompts = [questions["__prompts__"][key] for key in asked]
    words = [prompt if isinstance(prompt, str) else prompt["__prompt__"] for prompt in prompts]
    assert [int(number) for number, _, _ in shown] == list(range(1, len(asked) + 1))
    assert [prompt.partition(" (")[0] for _, _, prompt in shown] == [word.partition(" (")[0] for word in words]


def test_no_file_stands_here_twice() -> None:
    contents = [content for name in tracked() if len(content := (ROOT / name).read_bytes()) > 1]
    assert len(set(contents)) == len(contents)


def test_every_choice_is_baked() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    for key, choices in questions.items():
        if isinstance(choices, list):
            assert {answers.get(key, choices[0]) for answers in ANSWERS.values()} == set(choices)


@pytest.mark.parametrize("slug", ANSWERS)
def test_bake(bake: Bake, slug: str) -> None:
    answers = ANSWERS[slug]
    project = bake(**answers)
    assert project.name == slug

    carried = {name for name in tracked() if not is_template_only(name) and not name.startswith(JINJA_FOLDER)}
    if answers.get("ci") == "none":
        carried -= {".github/dependabot.yml", ".github/workflows/ci.yml"}
    rename = hook("post_gen_project").renamed
    assert files_of(project) == {rename(name, names_of(slug)) for name in carried} | set(RENDERED)

    for name in files_of(project):
        content = (project / name).read_bytes()
        assert not OWN_NAME.search(name.encode())
        if name == "README.md":
            content = content.replace(b"\nMade with lit-guide.\n", b"", 1)
        assert not OWN_NAME.search(content), name
        if b"\0" not in content:
            assert not LEFTOVERS.search(content.decode()), name
        if name in RENDERED:
            assert "{" + "{" not in content.decode()
            assert "<!--" not in content.decode()
    digits = Path("data/digits.npz")
    assert (project / slug.replace("-", "_") / digits).read_bytes() == (ROOT / "lit_guide" / digits).read_bytes()

    config = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    heading, spdx = LICENCES[answers.get("license", "MIT")]
    assert config["name"] == slug
    assert config["scripts"] == {slug: f"{slug.replace('-', '_')}.cli:main"}
    assert config["license"] == spdx
    assert config["description"] == answers.get("description", "Image classification with PyTorch Lightning")
    author = {"name": answers.get("author_name", "Your Name")}
    assert config["authors"] == [author | ({"email": answers["author_email"]} if "author_email" in answers else {})]
    assert ("Private :: Do Not Upload" in config["classifiers"]) == (spdx == "LicenseRef-Proprietary")
    licence = (project / "LICENSE").read_text(encoding="utf-8")
    assert heading in licence
    assert author["name"] in licence
    (demo,) = re.findall(r"^DEMO \?= (.*)", (project / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert f"--config configs/{answers.get('data', 'digits')}.yaml" in demo
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {answers.get('project_name', 'My Classifier')}\n\n{config['description']}\n")
    headings = {"folder": ["Your photos"], "arrays": ["Your arrays"], "torchvision": ["Your set"]}
    assert re.findall(r"^\*\*(.+?)\.\*\*", readme.partition("## ")[0], flags=re.MULTILINE) == headings.get(
        answers.get("data", "digits"), []
    )

    must_be_tidy(project)
    shown = must(sys.executable, "-m", slug.replace("-", "_"), "--help", cwd=project)
    assert f"usage: {slug} COMMAND" in shown


@pytest.mark.slow
@pytest.mark.parametrize("slug", ANSWERS)
def test_bake_is_typed_and_makes_a_wheel(bake: Bake, slug: str, tmp_path: Path) -> None:
    project = bake(**ANSWERS[slug])
    must_be_typed(project)
    must(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", project, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").iterdir()
    package = slug.replace("-", "_")
    archive = zipfile.ZipFile(wheel)
    assert {f"{package}/cli.py", f"{package}/data/digits.npz", f"{package}/configs/digits.yaml"} <= set(archive.namelist())
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    text = archive.read(metadata).decode()
    assert f"Name: {slug}\n" in text
    assert f"Summary: {ANSWERS[slug].get('description', 'Image classification with PyTorch Lightning')}\n" in text
    assert "Version: 0.1.0\n" in text


# --- ways to name the template

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
