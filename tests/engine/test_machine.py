import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lit_guide.engine.machine import command, short

PACKAGE = command.__module__.partition(".")[0]
PRINT = f"from {PACKAGE}.engine.machine import command; print(command('test', '--run', 'my run'))"

posix = pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")


def test_short_is_what_is_typed_from_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short(tmp_path / "here" / "runs" / "a") == str(Path("runs/a"))
    assert short(tmp_path / "there") == str(tmp_path / "there")


def test_in_an_active_environment_the_name_is_enough():
    assert command("test", "--run", "my run") == "lit-guide test --run 'my run'"


def environment_without(folder):
    """The environment of a shell that does not look for commands in `folder`."""
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if path and Path(path).resolve() != Path(folder).resolve()]
    return os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def inactive(tmp_path):
    """An environment in .venv that is not active: its Python, its command, and a shell's variables."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True)
    script = tmp_path / ".venv" / "bin" / "lit-guide"
    script.write_text(f"#!{tmp_path}/.venv/bin/python\n{PRINT.replace('; ', chr(10))}\n")
    script.chmod(0o755)
    return environment_without(sysconfig.get_path("scripts"))


def told(words, environment, cwd):
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=cwd, env=environment).stdout.strip()


@posix
def test_a_command_that_is_not_on_the_path_is_called_by_its_path_from_here(tmp_path, inactive):
    (tmp_path / "deeper").mkdir()
    python, script = (str(tmp_path / ".venv" / "bin" / name) for name in ("python", "lit-guide"))
    for words in ([".venv/bin/python", "-c", PRINT], [".venv/bin/lit-guide"], [python, "-c", PRINT], [script]):
        assert told(words, inactive, tmp_path) == ".venv/bin/lit-guide test --run 'my run'"
    assert told([script], inactive, tmp_path / "deeper") == f"{script} test --run 'my run'"


@posix
def test_the_command_of_another_environment_is_not_meant(tmp_path, inactive):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / ".venv" / "bin" / "lit-guide", other)
    path = f"{other}{os.pathsep}{inactive['PATH']}"
    assert told([".venv/bin/lit-guide"], inactive | {"PATH": path}, tmp_path) == ".venv/bin/lit-guide test --run 'my run'"


@posix
def test_where_there_is_no_command_python_starts_the_package(tmp_path, inactive):
    (tmp_path / ".venv" / "bin" / "lit-guide").unlink()
    line = told([".venv/bin/python", "-c", PRINT], inactive, tmp_path)
    assert line == f".venv/bin/python -m {PACKAGE} test --run 'my run'"
    version = told([*line.split()[:3], "--version"], inactive, tmp_path)
    assert version.startswith("lit-guide ")


@pytest.mark.slow
@posix
def test_what_a_message_says_to_type_starts_where_the_environment_is_not_active(tmp_path):
    inactive = environment_without(sysconfig.get_path("scripts"))
    words = [sys.executable, "-m", PACKAGE, "test", "--run", "latest"]
    failed = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=inactive)
    typed = failed.stderr.strip().partition("Train one first with: ")[2].removesuffix(" --config FILE")
    assert typed.endswith(" fit")
    assert typed != "lit-guide fit"
    assert told([*shlex.split(typed), "--help"], inactive, tmp_path).startswith("usage: lit-guide fit")
