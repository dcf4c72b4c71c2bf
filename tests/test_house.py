"""The house: tiers keep their size, import contracts catch what they are for, nothing internal leaves with a project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_guide import __version__
from lit_guide.parts.earlier.names import MOVED

from .template.conftest import ROOT, hook

PACKAGE = ROOT / "lit_guide"
# Lines at most, docstrings and comments included; of a part its pages' templates, styles and scripts too.
LIMITS = {
    "story": 1_000,  # with the digits and the longest of the other sources: a project has these two, or fewer
    "export": 900,
    "engine": 5_500,
    "part": 550,
    "package without parts": 7_760,  # of the three tiers and all sources: 7,838 at most; this is what it has, lest it grow
    "file": 250,
}
# Files of the package that are longer, and why they stay in one piece.
LONGER: dict[str, str] = {}
INTERNAL = re.compile(r"\bF\d\d\b|\bFAULTS\b")


def lines_of(*patterns: str) -> dict[str, int]:
    """Path in the package -> its lines."""
    paths = sorted(path for pattern in patterns for path in PACKAGE.glob(pattern))
    return {path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def tiers() -> dict[str, dict[str, int]]:
    """Tier -> its files and their lines."""
    sources = lines_of("data/*.py")
    base = {name: sources.pop(name) for name in ("data/__init__.py", "data/digits.py")}
    longest = max(sources, key=lambda name: sources[name])
    parts = {f"part {path.name}": path.name for path in sorted((PACKAGE / "parts").iterdir()) if (path / "__init__.py").is_file()}
    everything = lines_of("**/*.py")
    return {
        "story": lines_of("*.py") | base | {longest: sources[longest]},
        "export": lines_of("export/**/*.py"),
        "engine": lines_of("engine/**/*.py"),
        "package without parts": {name: lines for name, lines in everything.items() if not name.startswith("parts/")},
        **{
            tier: lines_of(*(f"parts/{name}/**/*.{suffix}" for suffix in ("py", "html", "js", "css")))
            for tier, name in parts.items()
        },
    }


@pytest.mark.parametrize("tier", tiers())
def test_a_tier_keeps_its_size(tier: str) -> None:
    files = tiers()[tier]
    total, limit = sum(files.values()), LIMITS.get(tier, LIMITS["part"])
    longest = sorted(files.items(), key=lambda item: -item[1])[:12]
    shown = ", ".join(f"{name} {lines}" for name, lines in longest)
    assert total <= limit, f"{tier}: {total:,} lines, {total - limit:,} more than its {limit:,}. Its longest files: {shown}"


def test_a_file_keeps_its_size() -> None:
    longer = {name: lines for name, lines in lines_of("**/*.py").items() if lines > LIMITS["file"]}
    unexplained = [f"{name} {lines}" for name, lines in longer.items() if name not in LONGER]
    assert not unexplained, (
        f"more than {LIMITS['file']} lines: {', '.join(unexplained)}. Split them, or give the reason in LONGER"
    )
    assert not LONGER.keys() - longer.keys(), "in LONGER, but short enough"


# --- the contracts of pyproject.toml, tried on a package with these modules, all empty


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    for path in PACKAGE.rglob("*.py"):
        module = tmp_path / path.relative_to(ROOT)
        module.parent.mkdir(parents=True, exist_ok=True)
        module.touch()
    (tmp_path / "lit_guide/__init__.py").write_text("from lit_guide import cli\nfrom lit_guide.model import LitClassifier\n")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


def lint_imports(folder: Path) -> str:
    """What `lint-imports` prints in that folder."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    words = [sys.executable, "-c", command, "--no-logo", "--no-cache"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == (" BROKEN" in done.stdout), done.stdout + done.stderr
    return done.stdout


def test_a_package_without_wrong_imports_keeps_every_contract(skeleton: Path) -> None:
    for importer, imported in [
        ("parts/doctor/command", "fit"),
        ("predict", "model"),
        ("fit", "data.digits"),
        ("export/proof", "data"),
    ]:
        (skeleton / f"lit_guide/{importer}.py").write_text(f"import lit_guide.{imported}\n")
    # A file of one's own, from any tier; a source of one's own, from another source.
    (skeleton / "lit_guide/data/tiles.py").write_text("from lit_guide.data.folder import FolderData\n")
    (skeleton / "lit_guide/losses.py").write_text("from lit_guide import model, cli\n")
    text = (skeleton / "pyproject.toml").read_text(encoding="utf-8")
    as_in_a_project = hook("post_gen_project").without_template_lines(text)
    (skeleton / "pyproject.toml").write_text(as_in_a_project, encoding="utf-8")
    assert "5 kept, 0 broken" in lint_imports(skeleton)


def test_what_can_be_deleted_is_not_missed(skeleton: Path) -> None:
    package = skeleton / "lit_guide"
    parts = [path for path in package.glob("parts/*") if path.is_dir()]
    sources = [path for path in package.glob("data/*.py") if path.stem not in ("__init__", "digits")]
    story = [package / name for name in ("parts", "export", "model.py", "networks.py", "predict.py")]
    for path in [*parts, *sources, *story]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert "5 kept, 0 broken" in lint_imports(skeleton), path.name


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("engine/run/runs", "fit", "Parts stand on the story, the story on the engine"),
        ("engine/errors", "model", "Parts stand on the story, the story on the engine"),
        ("cli", "parts.doctor.command", "Parts stand on the story, the story on the engine"),
        ("model", "data.digits", "Parts stand on the story, the story on the engine"),
        ("data/folder", "export.proof", "Parts stand on the story, the story on the engine"),
        ("networks", "model", "Parts stand on the story, the story on the engine"),
        ("new", "model", "Parts stand on the story, the story on the engine"),  # a file without a tier
        ("engine/photos/decode", "engine.train.stop", "The engine has floors"),
        ("engine/machine", "engine.run.runs", "The engine has floors"),
        ("parts/inspect/check", "parts.doctor.command", "No part knows another part"),
        ("data/digits", "data.arrays", "No source of data knows another source"),
        ("data/new", "engine", "No source of data knows another source"),  # a source that is not on the list
    ],
)
def test_a_contract_catches(skeleton: Path, importer: str, imported: str, contract: str) -> None:
    (skeleton / f"lit_guide/{importer}.py").write_text(f"def late():\n    import lit_guide.{imported}\n")
    assert f"{contract} BROKEN" in lint_imports(skeleton)


def test_a_circle_is_caught(skeleton: Path) -> None:
    (skeleton / "lit_guide/engine/train/stop.py").write_text("from lit_guide.engine.train import progress\n")
    (skeleton / "lit_guide/engine/train/progress.py").write_text("from lit_guide.engine.train import stop\n")
    assert "No circles BROKEN" in lint_imports(skeleton)


# --- what leaves with a project


def test_no_internal_number_of_a_fault_is_carried_into_a_project() -> None:
    texts = {path: path.read_bytes() for path in hook("post_gen_project").carried(ROOT, "github")}
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{number}"
        for path, content in texts.items()
        if b"\0" not in content
        for number, line in enumerate(content.decode().splitlines(), 1)
        if INTERNAL.search(line)
    ]
    assert not found, f"say it in words: {', '.join(found)}"


def test_the_changelog_names_every_module_that_moved() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `lit_guide\.(.+)` \| `lit_guide\.(.+)` \|$", text, flags=re.MULTILINE)
    assert dict(rows) == MOVED


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)[0] == __version__
