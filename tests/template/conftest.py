"""The template as cookiecutter and cruft see it, and projects made from it by the real commands, each in its own process."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
JINJA_FOLDER = "{{cookiecutter.__project_slug}}"
Done = subprocess.CompletedProcess[str]
Bake = Callable[..., Path]


def call(*args: object, cwd: Path, **env: str) -> Done:
    """Run a program to its end."""
    words = [str(arg) for arg in args]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, encoding="utf-8", env={**os.environ, **env}, check=False
    )


def must(*args: object, cwd: Path, **env: str) -> str:
    """Run a program that must end well; what it printed."""
    done = call(*args, cwd=cwd, **env)
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def must_be_tidy(project: Path) -> None:
    """`ruff` finds nothing, and each file has its format: a line near 130 characters may not fit a longer name."""
    must(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=project)
    must(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=project)


def must_be_typed(project: Path) -> None:
    """`mypy --strict` on the project's package. Torch, the most of it, is the same in every project: one cache."""
    must(sys.executable, "-m", "mypy", "--cache-dir", Path(tempfile.gettempdir()) / "lit-guide-mypy", cwd=project)


def commit(folder: Path, message: str) -> str:
    """Commit everything in a folder; the commit's name."""
    if not (folder / ".git").exists():
        must("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    must("git", "add", "--all", cwd=folder)
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    must("git", *who, "commit", "--quiet", "--message", message, cwd=folder)
    return must("git", "rev-parse", "HEAD", cwd=folder).strip()


def hook(name: str) -> ModuleType:
    """A hook as a module; before it is rendered it is Python all the same."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tracked() -> list[str]:
    """Every file of the repository, and new ones that git does not ignore."""
    listed = must("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def copy_template(folder: Path) -> Path:
    """A repository of its own with the files of this one, as they are now."""
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    commit(folder, "The template")
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That copy, to be read."""
    return copy_template(tmp_path_factory.mktemp("template") / "lit-guide")


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which cookiecutter keeps its clones and replays away from the user's."""
    folder = tmp_path_factory.mktemp("cookiecutter")
    config = folder / "config.yaml"
    config.write_text(f"cookiecutters_dir: '{folder / 'clones'}'\nreplay_dir: '{folder / 'replay'}'\n", encoding="utf-8")
    return {"COOKIECUTTER_CONFIG": str(config)}


@pytest.fixture
def try_bake(template: Path, settings: dict[str, str], tmp_path: Path) -> Callable[..., Done]:
    """Run cookiecutter: try_bake("--option", template=..., cwd=..., project_slug=...)."""

    def bake(*options: str, template: str | Path = template, cwd: Path = tmp_path, **answers: str) -> Done:
        given = [f"{key}={value}" for key, value in answers.items()]
        return call(sys.executable, "-m", "cookiecutter", template, "--no-input", *options, *given, cwd=cwd, **settings)

    return bake


@pytest.fixture
def bake(try_bake: Callable[..., Done], tmp_path: Path) -> Bake:
    """Make a project in an empty directory; its folder."""

    def bake(**answers: str) -> Path:
        done = try_bake(**answers)
        assert done.returncode == 0, done.stdout + done.stderr
        (project,) = [path for path in tmp_path.iterdir() if (path / "pyproject.toml").is_file()]
        return project

    return bake
