"""FAULTS F29: an answer gives a valid project, or an error before anything is left on disk."""

import json
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .conftest import ROOT, Done, call, hook

GOOD = {"project_name": "Leaf Doctor", "project_slug": "leaf-doctor", "package_name": "leaf_doctor", "description": "Leaves",
        "author_name": "Zoë", "author_email": "", "parts": "standard"}  # fmt: skip
IN_PLACE = GOOD | {"_repo_dir": ".", "_output_dir": str(ROOT)}
TryBake = Callable[..., Done]


@pytest.mark.parametrize(
    "name",
    ["class", "None", "import", "json", "test", "_thread", "torch", "lit_guide", "tests", "data", "con", "PIL", "yaml",
     "../x", "a/b", "/tmp/x", "..", ".", "a b", "3d", "_x", "x_", "a__b", "näme", "🙂", "a'b", 'a"b', "$(touch x)", "`x`",
     "a;b", "a\\b", "a\nb", "A", "a.b", "a-b", "-x", "", "x" * 41],
)  # fmt: skip
def test_f29_no_such_package(name: str) -> None:
    (problem,) = hook("pre_gen_project").problems(GOOD | {"package_name": name})
    assert problem.startswith(f"package_name {name!r}: ")


@pytest.mark.parametrize("name", ["a", "ab2", "leaf_doctor", "x" * 40, "match", "my_torch", "lit_guide_2"])
def test_such_a_package_is_fine(name: str) -> None:
    assert hook("pre_gen_project").problems(GOOD | {"package_name": name, "project_slug": name}) == []


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "..", "a b", "🙂", "a'b", '"', "$(touch x)", "a\\b", "A", "a.b", "-x", "x-", "a--b", "", "x" * 41,
     "json", "torch", "pre-commit", "python3", "lit-guide", "ruff"],
)  # fmt: skip
def test_f29_no_such_slug(name: str) -> None:
    (problem,) = hook("pre_gen_project").problems(GOOD | {"project_slug": name})
    assert problem.startswith(f"project_slug {name!r}: ")


@pytest.mark.parametrize("name", ["a", "3d-shapes", "leaf_doctor", "net-2-go", "x" * 40])
def test_such_a_slug_is_fine(name: str) -> None:
    assert hook("pre_gen_project").problems(GOOD | {"project_slug": name}) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("project_name", ""), ("project_name", " "), ("project_name", "a\nb"), ("author_name", ""), ("author_name", "a\x00b"),
     ("author_name", "a\x7f"), ("description", "two\nlines"), ("description", "\x1b[31m"), ("author_email", "nobody"),
     ("author_email", "a b@c.de"), ("author_email", 'a"@c.de'), ("author_email", "a@c.de\n"), ("author_email", "é@c.de")],
)  # fmt: skip
def test_f29_no_such_text(key: str, value: str) -> None:
    (problem,) = hook("pre_gen_project").problems(GOOD | {key: value})
    assert problem.startswith(f"{key} {value!r}: ")


@pytest.mark.parametrize(
    "answer", ["core", "standard", "all", "doctor", "inspect,doctor", " doctor , inspect ", "standard, doctor"]
)
def test_such_parts_are_fine(answer: str) -> None:
    assert hook("pre_gen_project").problems(IN_PLACE | {"parts": answer}) == []


@pytest.mark.parametrize(
    ("answer", "named"),
    [("docter", "docter"), ("", ""), ("doctor,", ""), ("doctor inspect", "doctor inspect"), ("core,../x", "../x"),
     ("__init__", "__init__"), ("Doctor", "Doctor"), ("none", "none"), ("doctor\ninspect", "doctor\ninspect")],
)  # fmt: skip
def test_f29_no_such_part(answer: str, named: str) -> None:
    (problem,) = hook("pre_gen_project").problems(IN_PLACE | {"parts": answer})
    there = "use core, standard, all, or names separated by commas: cache, doctor, earlier, finetune, guards, inspect"
    assert problem.startswith(f"parts {answer!r}: there is no part {named!r}; {there}")


def test_f29_a_part_that_is_not_there_leaves_nothing_behind(
    try_bake: TryBake, template: Path, settings: dict[str, str], tmp_path: Path
) -> None:
    """cruft says nothing of where its clone is: the parts are those of the commit that it names."""
    answers = json.dumps({"parts": "doctor,docter"})
    arguments = ["create", template, "--no-input", "--extra-context", answers]
    for done in (try_bake(parts="doctor,docter"), call(sys.executable, "-m", "cruft", *arguments, cwd=tmp_path, **settings)):
        assert done.returncode == 1
        names = "cache, doctor, earlier, finetune, guards, inspect"
        assert f"there is no part 'docter'; use core, standard, all, or names separated by commas: {names}" in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", 'It\'s "quoted" \\ $(touch x) `x` <b>&amp; %s {} # 数字 🙂', "x" * 500])
def test_any_line_of_text_describes_a_project(text: str) -> None:
    assert hook("pre_gen_project").problems(GOOD | {"description": text, "author_email": "a.b+c@d-e.org"}) == []


def test_every_problem_is_named_at_once() -> None:
    problems = hook("pre_gen_project").problems(GOOD | {"project_slug": "A", "package_name": "B", "author_name": ""})
    assert [problem.split()[0] for problem in problems] == ["project_slug", "package_name", "author_name"]


def test_what_the_project_imports_is_taken() -> None:
    """A package named like a dependency would hide it; `pip install` would confuse the distributions."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads("\n".join(line for line in lines if "# template only" not in line))["project"]
    extras = project["optional-dependencies"].values()
    needed = {_name(line) for lines in (project["dependencies"], *extras) for line in lines}
    modules = {module.lower() for module, names in packages_distributions().items() if needed & {_name(name) for name in names}}
    taken = set(hook("pre_gen_project").TAKEN)
    assert len(needed) > 15
    assert needed | {name for name in modules if name.isidentifier() and name[0] != "_"} <= taken
    assert not taken & set(sys.stdlib_module_names)


def _name(requirement: str) -> str:
    """The distribution of a requirement, written like a module."""
    name = requirement
    for sign in "[<>=!~; ":
        name = name.partition(sign)[0]
    return name.replace("-", "_").lower()


@pytest.mark.parametrize("slug", ["../x", "a/b/../../../x", "{absolute}", "🙂", "a b", "$(touch x)", "x'; import os #", "class"])
def test_f29_a_refused_answer_leaves_nothing_behind(try_bake: TryBake, tmp_path: Path, slug: str) -> None:
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    done = try_bake(cwd=inside, project_slug=slug.format(absolute=tmp_path / "elsewhere"))
    assert done.returncode == 1
    assert "project_slug" in done.stderr
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "in", inside]


def test_f29_a_refused_answer_spares_a_folder_that_is_there(try_bake: TryBake, tmp_path: Path) -> None:
    mine = tmp_path / "x" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    for options in ((), ("--overwrite-if-exists",)):
        assert try_bake(*options, project_slug="../x").returncode == 1
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]


def test_f29_quotes_and_commands_in_texts_do_no_harm(try_bake: TryBake, tmp_path: Path) -> None:
    text = "\"\"\" ''' \\ $(touch x) `touch x` # %> 🙂"
    done = try_bake(project_name=text, project_slug="fine", description=text, author_name=text)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]
    project = tomllib.loads((tmp_path / "fine/pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["description"], project["authors"]) == (text, [{"name": text}])
    assert text in (tmp_path / "fine/LICENSE").read_text(encoding="utf-8")
