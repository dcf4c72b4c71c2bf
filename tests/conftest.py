"""Fixtures that train once and lend the run to every test that only reads it."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest

import lit_guide.fit  # noqa: F401  # now: Lightning's log handler must not hold on to the stream of one test
from lit_guide.cli import main

FAST = ["--accelerator", "cpu", "--trainer.max_epochs", "2"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True, scope="session")
def active_environment() -> Iterator[None]:
    """As in an environment that was activated: what messages tell to type begins with the command's name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test checks or caches goes to the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in an empty directory: run("fit", "--config", ...) -> exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*args: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit_:  # how --help and --print_config end
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run on the digits, with all files; to be read, not changed."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", "--config", "configs/digits.yaml", "--run_dir", str(run_dir), *FAST]) == 0
    return run_dir


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "own_run"))


@pytest.fixture(scope="session")
def photos() -> Iterator[dict[str, tuple[Path, np.ndarray]]]:
    """name -> (path, pixels_HWC) of two real photos, china.jpg and flower.jpg, 427 x 640."""
    from sklearn.datasets import load_sample_images  # here: most tests need not wait for SciPy

    with as_file(files("sklearn.datasets.images")) as folder:
        sample = load_sample_images()
        names = [Path(name).name for name in sample.filenames]
        yield {name: (folder / name, pixels) for name, pixels in zip(names, sample.images, strict=True)}
