"""Real processes, killed or signalled at random moments: a run that goes on ends as one that was left alone."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lit_guide.engine.run import runs
from lit_guide.engine.run.checkpoint import read_checkpoint
from tests.test_processes import DIGITS, NO_EXPORT

MODULE = ("-m", "lit_guide")
KILLS = int(os.environ.get("KILLS", "1"))  # at most, each way; `KILLS=13 pytest -rP` is a hunt, 14 one at other moments
FIT = [*DIGITS, "--trainer.max_epochs", "4", "--checkpoint.every_n_steps", "7", "--trainer.enable_model_summary", "false"]
# On one thread: sums in another order would differ in the last bits.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAST = "checkpoints/last.ckpt"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups")]


def start(folder: Path, *args: str, program: Sequence[str] = MODULE, **variables: str) -> subprocess.Popen[bytes]:
    """A fit in a process group of its own; what it says goes to log."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would its children
    command, environment = [sys.executable, *program, "fit", *NO_EXPORT, *args], {**ENVIRONMENT, **variables}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


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
def test_f02_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    assert start(tmp_path, *FIT, *options, "--run_dir", "whole").wait(300) == 0, (tmp_path / "log").read_text()
    chance, last, left = random.Random(f"{KILLS} {options}"), tmp_path / "run" / LAST, KILLS
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
    print(f"{KILLS - left} kills")
    assert left < KILLS
    for name in (LAST, "checkpoints/best.ckpt"):
        assert same(tmp_path / "whole" / name, tmp_path / "run" / name), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")


def assert_none_is_left(process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while subprocess.run(["pgrep", "-g", str(process.pid)], stdout=subprocess.DEVNULL).returncode == 0:
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.1)


def assert_a_signal_saves(tmp_path: Path, name: str, code: int, *options: str) -> None:
    """Send it to all processes of a run: they end, and the run goes on to the same bits."""
    assert start(tmp_path, *FIT, *options, "--run_dir", "whole").wait(300) == 0
    process = start(tmp_path, *FIT, *options, "--run_dir", "run")
    while process.poll() is None and not (tmp_path / "run" / LAST).is_file():
        time.sleep(0.002)
    os.killpg(process.pid, getattr(signal, name))
    assert process.wait(60) == code, (tmp_path / "log").read_text()
    assert_none_is_left(process)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert re.search(r"Go on with: \S*lit-guide fit --run", log)
    assert start(tmp_path, "--run", "run").wait(300) == 0
    assert same(tmp_path / "whole" / LAST, tmp_path / "run" / LAST)
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "options"), [("SIGUSR1", ["--data.num_workers", "2"]), ("SIGTERM", ["--devices", "2", "--strategy", "ddp"])]
)
def test_f04_a_signal_to_all_processes_saves_and_leaves_none(tmp_path: Path, name: str, options: list[str]) -> None:
    assert_a_signal_saves(tmp_path, name, 143, *options)


def test_f30_ctrl_c_to_both_ranks_saves_and_leaves_none(tmp_path: Path) -> None:
    assert_a_signal_saves(tmp_path, "SIGINT", 130, "--devices", "2", "--strategy", "ddp")


# A run that signals all of its processes, as a terminal does: before the Nth call of what is done in a phase.
SIGNALLED = """
    import os, signal, sys
    from lit_guide.export import onnx as export
    from lit_guide.cli import main
    from lit_guide.data import DigitsData
    from lit_guide.model import LitClassifier

    name, place, left = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
    owner = {"load": DigitsData, "export_onnx": export}.get(place, LitClassifier)
    function = getattr(owner, place)

    def signalling(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.killpg(0, getattr(signal, name))
        return function(*args, **kwargs)

    setattr(owner, place, signalling)
    sys.exit(main())
"""


@pytest.mark.parametrize(
    ("place", "call", "saved"),
    [
        ("load", 1, None),
        ("validation_step", 1, 0),  # Lightning's check before training: 2 batches
        ("training_step", 25, 25),
        ("validation_step", 9, 38),  # 19 steps and 5 batches of validation an epoch
        ("test_step", 2, 38),
        ("export_onnx", 1, 38),
    ],
    ids=["start-up", "sanity check", "training", "validation", "test", "export"],
)
def test_f30_ctrl_c_in_each_phase(tmp_path: Path, place: str, call: int, saved: int | None) -> None:
    (tmp_path / "signalled.py").write_text(textwrap.dedent(SIGNALLED))
    args = [*DIGITS, "--trainer.max_epochs", "2", "--data.num_workers", "2", "--run_dir", "run"]
    args += ["--export.onnx.enabled=true"] if place == "export_onnx" else []
    process = start(tmp_path, *args, program=["signalled.py", "SIGINT", place, str(call)])
    log = tmp_path / "log"
    assert process.wait(60) == 130, log.read_text()
    assert_none_is_left(process)
    assert "lit-guide: Stopped by " in log.read_text()
    assert "Traceback" not in log.read_text()
    last, export = tmp_path / "run" / LAST, tmp_path / "run/export"
    assert (read_checkpoint(last)["global_step"] if last.is_file() else None) == saved
    assert ("Saved last.ckpt. Go on with: " in log.read_text()) == (saved is not None)
    assert not (export.is_dir() and list(export.iterdir()))


def test_f30_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    chance, log = random.Random(0), tmp_path / "log"
    for _ in range(2):
        process = start(tmp_path, *DIGITS, "--run_dir", "run", PYTHONPROFILEIMPORTTIME="1")
        while process.poll() is None and runs.__name__ not in log.read_text():  # what cli imports last
            time.sleep(0.01)
        time.sleep(0.1 + chance.random())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()[-3000:]
        assert_none_is_left(process)
        assert "lit-guide: Stopped by Ctrl-C." in log.read_text()
        assert "Traceback" not in log.read_text()
        assert not (tmp_path / "run").exists()
        log.unlink()


# An import that loses an exception, as C++ code and `except:` do.
LOSING = """
    import signal, sys
    from lit_guide.cli import main

    class Losing:
        def find_spec(self, name, path=None, target=None):
            if name.endswith(".fit"):
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    pass

    sys.meta_path.insert(0, Losing())
    sys.exit(main())
"""


def test_f30_ctrl_c_is_not_lost_in_an_import(tmp_path: Path) -> None:
    (tmp_path / "losing.py").write_text(textwrap.dedent(LOSING))
    assert start(tmp_path, "--trainer.no_such_key=1", program=["losing.py"]).wait(60) == 130
    assert (tmp_path / "log").read_text() == "lit-guide: Stopped by Ctrl-C.\n"


def half_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".partial-")]


def test_f05_a_run_that_is_killed_while_it_saves_keeps_whole_checkpoints_and_goes_on(tmp_path: Path) -> None:
    chance, folder, args = random.Random(0), tmp_path / "run/checkpoints", [*FIT, "--run_dir", "run"]
    args += ["--checkpoint.every_n_steps", "1", "--trainer.max_epochs", "2"]
    saved = 0
    for _ in range(2):
        process, began = start(tmp_path, *args), saved
        while process.poll() is None and (saved == began or not half_files(folder)):
            saved = (folder / "last.ckpt").stat().st_mtime_ns if (folder / "last.ckpt").is_file() else 0
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(chance.random() * 0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        steps = [read_checkpoint(path)["global_step"] for path in folder.glob("[!.]*.ckpt")]
        assert 0 < max(steps) < 38, "killed too late"
        args = ["--run", "run"]
    assert start(tmp_path, *args).wait(300) == 0, (tmp_path / "log").read_text()
    assert half_files(folder) == []
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 38


# Saves without an end in a child that is killed in the middle of it, again and again.
WRITING = """
    import itertools, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from lit_guide.engine.run.runs import enter_run_dir
    from lit_guide.engine.train.writer import CheckpointWriter

    torch.set_num_threads(1)  # so that this process can be forked
    folder, chance, halves = Path("checkpoints"), random.Random(0), 0
    folder.mkdir()
    path = folder / "last.ckpt"
    torch.save({"step": -1, "weights": torch.full((1,), -1.0)}, path)
    for kill in range(30):
        before = set(folder.iterdir())
        child = os.fork()
        if child == 0:
            writer = CheckpointWriter(folder)
            for step in itertools.count():
                writer.save_checkpoint({"step": step, "weights": torch.full((2**20,), float(step))}, path)
        while not set(folder.iterdir()) - before:
            pass
        time.sleep(chance.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halves += bool(set(folder.iterdir()) - before)
        content = torch.load(path, weights_only=True)
        assert content["weights"].unique().tolist() == [content["step"]], (kill, content)
    enter_run_dir(Path().absolute())
    writer = CheckpointWriter(folder)
    writer.save_checkpoint({"step": 7}, path)
    writer.teardown()
    assert torch.load(path, weights_only=True) == {"step": 7}
    assert list(folder.iterdir()) == [path], "a half file is left for good"
    print(halves)
"""


def test_f05_a_checkpoint_whose_writer_is_killed_is_the_one_before_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "writing.py").write_text(textwrap.dedent(WRITING))
    done = subprocess.run([sys.executable, "writing.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10  # kills that left half a file, under another name


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
    assert_none_is_left(process, seconds=60 - (time.monotonic() - killed))
    assert "Another process of this run ended" in (tmp_path / "log").read_text()
