"""The template as cookiecutter and cruft see it, and projects made from it by the real commands, each in its own process."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
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
    must(sys.executable, "-m", "mypy", cwd=project, MYPY_CACHE_DIR=mypy_cache())


def mypy_cache() -> str:
    """A folder that outlives the tests: filling it takes half a minute."""
    return str(Path(tempfile.gettempdir()) / "lit-guide-mypy")


def must_keep_its_contracts(project: Path) -> None:
    """import-linter finds no import upwards; a project without contracts has none to break."""
    if "[tool.importlinter]" in (project / "pyproject.toml").read_text(encoding="utf-8"):
        must(Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache", cwd=project, PYTHONPATH=str(project))


def must_import_and_collect(project: Path) -> int:
    """Every module is imported and every test found, in one process: importing torch takes the time. How many tests."""
    package = package_of(project)
    code = f"""
import importlib, pkgutil, pytest, {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
raise SystemExit(pytest.main(["--collect-only", "--quiet", "-p", "no:cacheprovider"]))
"""
    out = must(sys.executable, "-c", code, cwd=project, PYTHONPATH=str(project))
    return int(re.findall(r"(\d+) tests? collected", out)[-1])


def commands_of(project: Path, package: str) -> set[str]:
    """What `--help` lists."""
    shown = must(sys.executable, "-m", package, "--help", cwd=project, PYTHONPATH=str(project))
    return set(re.findall(r"^  ([a-z]+) {2,}\S", shown.partition("\ncommands:\n")[2].partition("\n\n")[0], flags=re.MULTILINE))


def package_of(project: Path) -> str:
    (package,) = [path.parent.name for path in project.glob("*/cli.py")]
    return package


def lend_environment(project: Path) -> dict[str, str]:
    """Give the project a `.venv` that has what this environment has, and itself; how to call make in it.

    Nothing is installed, which `make` would do first: two minutes, and another gigabyte each time.
    """
    venv = project / ".venv"
    must(sys.executable, "-m", "venv", "--without-pip", venv, cwd=project)
    (library,) = venv.glob("lib/python*/site-packages")
    (library / "lent.pth").write_text(f"{project}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    for program in Path(sysconfig.get_path("scripts")).iterdir():
        if not (venv / "bin" / program.name).exists():
            (venv / "bin" / program.name).symlink_to(program)
    command = venv / "bin" / project.name
    python = shlex.quote(str(venv / "bin" / "python"))
    command.write_text(f'#!/bin/sh\nexec {python} -m {package_of(project)} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (venv / "installed").touch()
    own = dict.fromkeys(("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS"), "")
    return {**own, "MYPY_CACHE_DIR": mypy_cache()}


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


@pytest.fixture(scope="session")
def baked(template: Path, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """A project with these answers, made once: baked(data="folder", parts="core"). To be read, not changed."""
    made: dict[tuple[tuple[str, str], ...], Path] = {}

    def bake(**answers: str) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("baked")
            given = [f"{name}={value}" for name, value in key]
            must(sys.executable, "-m", "cookiecutter", template, "--no-input", *given, cwd=folder, **settings)
            (made[key],) = folder.iterdir()
        return made[key]

    return bake


@pytest.fixture
def own_bake(baked: Bake, tmp_path: Path) -> Bake:
    """A copy of such a project, to be changed."""

    def bake(**answers: str) -> Path:
        project = baked(**answers)
        return Path(shutil.copytree(project, tmp_path / project.name))

    return bake
