"""What the tests share: a way to call commands, and one short training that is lent to those which only read it."""

import csv
import json
import shutil

import pytest
import torch

import lit_guide.fit  # noqa: F401  # Lightning's log must not go to the stream of one test
from lit_guide.cli import main

NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]


def fit(recipe):
    """The command that trains for one epoch, in the folder r; what follows wins."""
    return ["fit", "--config", f"configs/{recipe}.yaml", "--accelerator=cpu", "--trainer.max_epochs=1", "--run_dir=r"]


def results_of(run_dir):
    return json.loads((run_dir / "results.json").read_text(encoding="utf-8"))


def read_csv(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test runs in an empty folder, and keeps nothing in the home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Fastest for images as small as these, and the same sums in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    """Run a command: run("test", "--run", "latest") -> exit code, output, errors."""

    def call(*args):
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit_:  # how `COMMAND --help` ends
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """The run directory of two epochs on the digits, with all files; to be read, not changed."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main([*fit("digits"), "--trainer.max_epochs", "2", "--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(trained, tmp_path / "own_run")
