"""What the questions `data` and `parts` choose is there, the rest is not, and nobody misses it; and a part can be deleted."""

import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from .conftest import (
    JINJA_FOLDER,
    ROOT,
    Bake,
    Done,
    commands_of,
    must_be_tidy,
    must_be_typed,
    must_import_and_collect,
    must_keep_its_contracts,
    package_of,
    tracked,
)
from .test_bakes import NEEDS, RENDERED, files_of, is_template_only

PARTS = sorted(path.parent.name for path in (ROOT / "lit_guide/parts").glob("*/__init__.py"))
STANDARD = [
    name for name in PARTS if name in ("cache", "doctor", "earlier", "finetune", "guards", "inspect", "look", "report", "threads")
]
PARTS_OF = {"core": [], "standard": STANDARD, "all": PARTS, "inspect": ["inspect"]}
COMMANDS_OF = {"doctor": {"doctor"}, "inspect": {"data"}}
SOURCES_OF = {
    "digits": {"digits"},
    "folder": {"digits", "folder"},
    "arrays": {"digits", "arrays"},
    "torchvision": {"digits", "torchvision"},
    "all": {"digits", "folder", "arrays", "torchvision", "table"},
}
FILES_OF_SOURCE = {
    name: (f"lit_guide/data/{module}.py", f"configs/{name}.yaml")
    for name, module in [(name, name) for name in ("digits", "folder", "arrays", "table")] + [("torchvision", "torchvision_set")]
}
BAKES = [(data, parts) for data in SOURCES_OF for parts in ("core", "standard", "all")]
EVERYTHING = {"data": "all", "parts": "all"}


def expected_files(sources: set[str], parts: list[str]) -> set[str]:
    """The files of such a project, under the template's names."""
    absent = [name for source, names in FILES_OF_SOURCE.items() if source not in sources for name in names]
    absent += [f"lit_guide/parts/{part}/*" for part in PARTS if part not in parts]
    names = {name for name in tracked() if not is_template_only(name) and not name.startswith(JINJA_FOLDER)}
    names = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in absent)}
    there = {f"data {source}" for source in sources} | {f"part {part}" for part in parts}
    first_lines = {name: (ROOT / name).read_bytes().partition(b"\n")[0].decode(errors="replace") for name in names}
    needs = {name: NEEDS.fullmatch(line) for name, line in first_lines.items()}
    return {name for name, found in needs.items() if found is None or set(found[1].split(", ")) <= there} | set(RENDERED)


def expected_commands(parts: list[str]) -> set[str]:
    gone = [COMMANDS_OF.get(part, set()) for part in PARTS if part not in parts]
    return commands_of(ROOT, "lit_guide") - set().union(*gone)


@pytest.mark.parametrize(("data", "parts"), [*BAKES, ("digits", "inspect")])
def test_what_is_chosen_is_there(baked: Bake, data: str, parts: str) -> None:
    project = baked(data=data, parts=parts)
    expected = expected_files(SOURCES_OF[data], PARTS_OF[parts])
    assert files_of(project) == {name.replace("lit_guide", "my_classifier") for name in expected}
    assert commands_of(project, "my_classifier") == expected_commands(PARTS_OF[parts])
    (demo,) = re.findall(r"^DEMO \?= (.*)", (project / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert f"--config configs/{'digits' if data == 'all' else data}.yaml" in demo
    readme = (project / "README.md").read_text(encoding="utf-8")
    rows = readme.partition("## Your data\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"configs/(\w+)\.yaml", rows)) == SOURCES_OF[data]
    assert {path.parent.name for path in project.glob("my_classifier/parts/*/__init__.py")} == set(PARTS_OF[parts])
    must_be_tidy(project)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "parts"), BAKES)
def test_what_is_not_chosen_is_not_missed(baked: Bake, data: str, parts: str) -> None:
    project = baked(data=data, parts=parts)
    must_be_typed(project)
    must_keep_its_contracts(project)
    assert must_import_and_collect(project) > 10


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_deleted(own_bake: Bake, part: str) -> None:
    """The folder is removed, and nothing else is touched."""
    project = own_bake(**EVERYTHING)
    shutil.rmtree(project / package_of(project) / "parts" / part)
    must_be_typed(project)
    must_keep_its_contracts(project)
    assert commands_of(project, "my_classifier") == expected_commands([name for name in PARTS if name != part])
    assert must_import_and_collect(project) > 10


def test_a_file_or_a_line_travels_with_what_it_needs(try_bake: Callable[..., Done], template: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(template, tmp_path / "template"))
    lines = (
        "<!-- needs: part inspect -->",
        "# Look",
        "",
        "- a <!-- needs: data folder -->",
        "- b",
        "| c <!-- needs: part doctor, data folder --> |",
        "",
    )
    (changed / "docs/howto/look.md").write_text("\n".join(lines))
    (changed / "tests/story").mkdir(exist_ok=True)
    (changed / "tests/story/test_folder.py").write_text('# needs: data folder\n"""A folder."""\n')
    made = {}
    for data, parts in (("digits", "doctor, inspect"), ("folder", "core"), ("all", "standard")):
        assert try_bake("--output-dir", f"{data}-{parts}", template=changed, data=data, parts=parts).returncode == 0
        project = tmp_path / f"{data}-{parts}" / "my-classifier"
        page, test = project / "docs/howto/look.md", project / "tests/story/test_folder.py"
        made[data] = (page.exists() and page.read_text(), test.exists() and test.read_text())
        assert ("[Look](docs/howto/look.md) |" in (project / "README.md").read_text()) == page.exists()
    assert made["digits"] == ("# Look\n\n- b\n", False)
    assert made["folder"] == (False, '"""A folder."""\n')
    assert made["all"] == ("# Look\n\n- a\n- b\n| c |\n", '"""A folder."""\n')


def test_every_part_with_a_command_is_known_here() -> None:
    assert {part for part in PARTS if (ROOT / "lit_guide/parts" / part / "command.py").exists()} == set(COMMANDS_OF)
