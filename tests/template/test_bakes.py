"""What is generated: every option, every way to name the template, and each file of this repository accounted for."""

import json
import re
import sys
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from .conftest import JINJA_FOLDER, ROOT, Bake, commands_of, hook, must, must_be_tidy, tracked

# What stays here. Every other file is carried into a project (hooks/post_gen_project.py) or rendered (the Jinja folder).
TEMPLATE_ONLY = (
    ".ci/run",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "benchmarks/*",
    "cookiecutter.json",
    "docs/.gitignore",
    "docs/*.json",
    "docs/*.py",
    "docs/_*",
    "docs/en/*",
    "docs/zh/*",
    "hooks/*.py",
    "tests/conftest.py",
    "tests/data/*.py",
    "tests/docs/*.py",
    "tests/engine/*.py",
    "tests/export/*.py",
    "tests/gpu/*.py",
    "tests/parts/*.py",
    "tests/template/*.py",
    "tests/test_*.py",
)
RENDERED = ("LICENSE", "README.md")
OWN_NAME = re.compile(rb"lit[\W_]?guide", re.IGNORECASE)
LEFTOVERS = re.compile(r"template only|needs: (part|data)")
INTERNAL = re.compile(r"\bF\d\d\b|\bFAULTS\b")
NEEDS = re.compile(r"(?:#|<!--) needs: (.+?)(?: -->|$)", re.MULTILINE)
LONG = "a23456789-b23456789-c23456789-d234567890"
DEFAULT = "Image classification with PyTorch Lightning"
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


def files_of(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}


def is_template_only(name: str) -> bool:
    """It is on that list, or its first line says so."""
    marked = name.endswith(".md") and (ROOT / name).read_text(encoding="utf-8").startswith("<!-- template only -->\n")
    return marked or any(fnmatchcase(name, pattern) for pattern in TEMPLATE_ONLY)


def test_every_file_is_on_one_list() -> None:
    """A new file must be carried (CARRIED in hooks/post_gen_project.py), stay here (above), or be rendered."""
    carried = [path.relative_to(ROOT).as_posix() for path in hook("post_gen_project").carried(ROOT, "github")]
    assert len(carried) == len(set(carried))
    rendered = [f"{JINJA_FOLDER}/{name}" for name in RENDERED]
    stay = [name for name in tracked() if is_template_only(name)]
    assert sorted([*carried, *rendered, *stay]) == tracked()


def test_what_a_file_needs_is_there() -> None:
    """A misspelt `needs: part doctor` would let the file travel always."""
    parts = {path.parent.name for path in (ROOT / "lit_guide/parts").glob("*/__init__.py")}
    sources = {path.stem.removesuffix("_set") for path in (ROOT / "lit_guide/data").glob("[a-z]*.py")}
    there = {f"part {name}" for name in parts} | {f"data {name}" for name in sources}
    carried = [name for name in tracked() if not is_template_only(name) and not name.endswith(".npz")]
    for name in carried:
        for needs in NEEDS.findall((ROOT / name).read_text(encoding="utf-8")):
            assert set(needs.split(", ")) <= there, f"{name}: {needs}"
    choices = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["data"]
    assert set(choices) <= sources | {"all"}


def test_the_readme_asks_what_cookiecutter_asks() -> None:
    """Where the questions are shown: the README, or a page that it leads to."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/howto/*.md"))]
    (text,) = [text for text in texts if "| question | answers |" in text]
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = [key for key in questions if not key.startswith("_")]
    table = text.partition("| question | answers |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == asked
    shown = re.findall(r"^  \[(\d+)/\d+\] (.+?)(?: \(|$)", text, flags=re.MULTILINE)
    prompts = [questions["__prompts__"][key] for key in asked]
    words = [prompt if isinstance(prompt, str) else prompt["__prompt__"] for prompt in prompts]
    assert [int(number) for number, _ in shown] == list(range(1, len(asked) + 1))
    assert [prompt.partition(" (")[0] for _, prompt in shown] == [word.partition(" (")[0] for word in words]


def test_an_import_that_a_long_name_makes_too_long_is_broken_up() -> None:
    line = f"    from {'a' * 80} import b, {'c' * 26} as d"
    assert len(line) == 131
    text = f"import e\n{line}\n{line[1:]}\n"
    parts = f"    from {'a' * 80} import (\n        b,\n        {'c' * 26} as d,\n    )"
    assert hook("post_gen_project").wrapped(text) == f"import e\n{parts}\n{line[1:]}\n"


def test_no_file_stands_here_twice() -> None:
    contents = [content for name in tracked() if len(content := (ROOT / name).read_bytes()) > 1]
    assert len(set(contents)) == len(contents)


def test_every_choice_of_a_name_is_baked() -> None:
    """Those of `data` and `parts`: test_parts.py."""
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    for key in ("license", "ci"):
        assert {answers.get(key, questions[key][0]) for answers in ANSWERS.values()} == set(questions[key])


@pytest.mark.parametrize("slug", ANSWERS)
def test_bake(baked: Bake, slug: str) -> None:
    answers = ANSWERS[slug]
    project = baked(**answers)
    package = slug.replace("-", "_")
    assert project.name == slug
    assert (project / ".github").exists() == (answers.get("ci") != "none")
    digits = Path("data/digits.npz")
    assert (project / package / digits).read_bytes() == (ROOT / "lit_guide" / digits).read_bytes()

    config = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    heading, spdx = LICENCES[answers.get("license", "MIT")]
    assert config["name"] == slug
    assert config["scripts"] == {slug: f"{package}.cli:main"}
    assert config["license"] == spdx
    assert config["description"] == answers.get("description", DEFAULT)
    author = {"name": answers.get("author_name", "Your Name")}
    assert config["authors"] == [author | ({"email": answers["author_email"]} if "author_email" in answers else {})]
    assert ("Private :: Do Not Upload" in config["classifiers"]) == (spdx == "LicenseRef-Proprietary")
    licence = (project / "LICENSE").read_text(encoding="utf-8")
    assert heading in licence
    assert author["name"] in licence

    must_be_tidy(project)
    assert f"usage: {slug} COMMAND" in must(sys.executable, "-m", package, "--help", cwd=project)


@pytest.mark.parametrize("slug", ANSWERS)
def test_nothing_of_the_template_is_left_in_a_project(baked: Bake, slug: str) -> None:
    """Neither its name, nor what only its makers read: marks, ids of faults."""
    project = baked(**ANSWERS[slug])
    for name in files_of(project):
        content = (project / name).read_bytes()
        assert not OWN_NAME.search(name.encode())
        assert not OWN_NAME.search(content), name
        if b"\0" not in content:
            assert not LEFTOVERS.search(content.decode()), name
            assert not INTERNAL.findall(content.decode()), name
        if name in RENDERED:
            assert not re.search(r"\{[{%]|[%}]\}|<!--", content.decode())


@pytest.mark.parametrize("slug", ANSWERS)
def test_the_projects_readme_is_complete(baked: Bake, slug: str) -> None:
    answers = ANSWERS[slug]
    project = baked(**answers)
    package = slug.replace("-", "_")
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 100
    start = f"# {answers.get('project_name', 'My Classifier')}\n\n{answers.get('description', DEFAULT)}\n\n```bash\nmake demo "
    assert readme.startswith(start)
    assert not re.search(r"\n\n\n|[^\S\n]\n", readme)

    story = [*project.glob(f"{package}/*.py"), *project.glob(f"{package}/data/*.py")]
    listed = [path.relative_to(project).as_posix() for path in story if path.name[0] != "_"]
    listed += [f"{package}/export/", f"{package}/engine/"]
    listed += [f"{path.parent.relative_to(project).as_posix()}/" for path in project.glob(f"{package}/parts/*/__init__.py")]
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", readme, flags=re.MULTILINE))
    assert set(listed) <= set(rows)
    assert all((project / name).exists() for name in rows)
    assert "](docs/howto/update.md)" in readme
    for page in ("README.md", *(path.relative_to(project).as_posix() for path in project.glob("docs/**/*.md"))):
        for link in re.findall(r"\]\(([^)#]*)", (project / page).read_text(encoding="utf-8")):
            assert "://" in link or (project / page).parent.joinpath(link).exists(), f"{page}: {link}"
    for recipe in re.findall(r"--config (configs/[\w/]+\.yaml)", readme):
        assert (project / recipe).is_file(), recipe
    commands = set(re.findall(rf"(?:`|bin/){slug} ([a-z]+)", readme))
    assert {"fit", "test", "predict"} <= commands <= commands_of(project, package)


@pytest.mark.slow
def test_a_wheel_of_the_longest_name(baked: Bake, tmp_path: Path) -> None:
    project = baked(**ANSWERS[LONG])
    must(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", project, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").iterdir()
    package = LONG.replace("-", "_")
    archive = zipfile.ZipFile(wheel)
    assert {f"{package}/cli.py", f"{package}/data/digits.npz", f"{package}/configs/digits.yaml"} <= set(archive.namelist())
    (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    text = archive.read(metadata).decode()
    assert f"Name: {LONG}\n" in text
    assert f"Summary: {ANSWERS[LONG]['description']}\n" in text
    assert "Version: 0.1.0\n" in text


def test_ci_of_a_project_is_small(baked: Bake) -> None:
    """One system, two Pythons: its owner pays for the minutes."""
    workflow = yaml.safe_load((baked() / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    jobs = [job for job in workflow["jobs"].values() if "python" in job.get("strategy", {}).get("matrix", {})]
    (matrix,) = [job["strategy"]["matrix"] for job in jobs]
    assert len(matrix["python"]) == 2
    assert len(matrix.get("os", ["one"])) == 1
