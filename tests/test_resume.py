"""Real processes, killed or signalled at random moments: a run that goes on ends as one that was left alone."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .test_processes import COMMAND, DIGITS, NO_EXPORT

KILLS = int(os.environ.get("KILLS", "1"))  # for each of the ways below; `KILLS=13` is a hunt
FIT = [*DIGITS, "--trainer.max_epochs", "4", "--checkpoint.every_n_steps", "7", "--trainer.enable_model_summary", "false"]
# On one thread: sums in another order would differ in the last bits.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAST = "checkpoints/last.ckpt"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups")]


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """A fit in a process group of its own; what it says goes to log."""
    with (folder / "log").open("ab") as log:
        command = [*COMMAND, "fit", *args, *NO_EXPORT]
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.num_workers", "2"],
        ["--devices", "2", "--strategy", "ddp"],
        ["--devices", "2", "--strategy", "ddp", "--data.num_workers", "2"],
    ],
    ids=["alone", "workers", "ranks", "ranks-workers"],
)
def test_f01_f02_f03_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    assert start(tmp_path, *FIT, *options, "--run_dir", "whole").wait(300) == 0, (tmp_path / "log").read_text()
    chance, last, left = random.Random(len(str(options))), tmp_path / "run" / LAST, KILLS
    args = [*FIT, *options, "--run_dir", "run"]
    while True:
        before = last.stat().st_mtime_ns if last.is_file() else 0
        process = start(tmp_path, *args)
        while left and process.poll() is None and (last.stat().st_mtime_ns if last.is_file() else 0) == before:
            time.sleep(0.002)
        if not left or process.poll() is not None:
            break
        time.sleep(chance.random() * 0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left -= 1
        args = ["--run", "run"]
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    assert left < KILLS
    for name in (LAST, "checkpoints/best.ckpt"):
        assert same(tmp_path / "whole" / name, tmp_path / "run" / name), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "code", "options"),
    [
        ("SIGUSR1", 143, ["--data.num_workers", "2"]),
        ("SIGTERM", 143, ["--devices", "2", "--strategy", "ddp"]),
        ("SIGINT", 130, ["--devices", "2", "--strategy", "ddp"]),
    ],
)
def test_f04_f30_a_signal_to_all_processes_saves_and_leaves_none(
    tmp_path: Path, name: str, code: int, options: list[str]
) -> None:
    assert start(tmp_path, *FIT, *options, "--run_dir", "whole").wait(300) == 0
    process = start(tmp_path, *FIT, *options, "--run_dir", "run")
    while process.poll() is None and not (tmp_path / "run" / LAST).is_file():
        time.sleep(0.002)
    os.killpg(process.pid, getattr(signal, name))
    assert process.wait(60) == code, (tmp_path / "log").read_text()
    end = time.monotonic() + 15
    while time.monotonic() < end and subprocess.run(["pgrep", "-g", str(process.pid)], stdout=subprocess.DEVNULL).returncode == 0:
        time.sleep(0.1)
    assert time.monotonic() < end, "a process is left"
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Go on with: lit-guide fit --run" in log
    assert start(tmp_path, "--run", "run").wait(300) == 0
    assert same(tmp_path / "whole" / LAST, tmp_path / "run" / LAST)
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")


@pytest.mark.parametrize("victim", ["first", "second"])
def test_f19_a_killed_rank_takes_the_others_with_it(tmp_path: Path, victim: str) -> None:
    forever = [*DIGITS, "--trainer.max_epochs", "1000", "--devices", "2", "--strategy", "ddp", "--run_dir", "run"]
    process = start(tmp_path, *forever)
    while process.poll() is None and not (tmp_path / "run" / LAST).is_file():
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(process.pid if victim == "first" else int(children[0]), signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(60) != 0
    while subprocess.run(["pgrep", "-g", str(process.pid)], stdout=subprocess.DEVNULL).returncode == 0:
        assert time.monotonic() - killed < 60, "a process is left"
        time.sleep(0.1)
    assert "Another process of this run ended" in (tmp_path / "log").read_text()
