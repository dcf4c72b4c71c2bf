"""What only several real processes of one run show: a slow save, a killed rank, a second run, a second machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_guide.engine.run.runs import RUN_DIR_VARIABLE
from tests.conftest import Run
from tests.test_processes import COMMAND, DIGITS, NO_EXPORT

LAST = "checkpoints/last.ckpt"
RANKS = ["--devices", "2", "--strategy", "ddp", "--data.num_workers", "2", "--trainer.max_epochs", "10000", *NO_EXPORT]
# Like the command, on a disk that is slow once a file says so.
SLOW = """
import sys, time
from pathlib import Path
from lit_guide.engine.train import writer
from lit_guide.cli import main

def write(*args, usual=writer._write):
    time.sleep(12 if Path("slow").exists() else 0)
    usual(*args)

writer._write = write
if __name__ == "__main__":  # loader processes import this
    sys.exit(main(sys.argv[1:]))
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and process groups")]


@pytest.fixture
def ranks(own_run: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks of two loader processes each that go on with `own_run`, and have trained an epoch; in a session of their own."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {name: value for name, value in os.environ.items() if name != RUN_DIR_VARIABLE}  # of a run of this process
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    command, last = [sys.executable, "slow.py", "fit", "--run", str(own_run), *RANKS], own_run / LAST
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    before = last.stat().st_mtime_ns
    while process.poll() is None and last.stat().st_mtime_ns == before:
        time.sleep(0.05)
    assert process.poll() is None, (tmp_path / "log").read_text()
    yield process
    for pid in members(process):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def members(process: subprocess.Popen[bytes]) -> list[int]:
    """All that live of the session, the loader processes' server too."""
    listed = subprocess.run(["ps", "-eo", "pid=,sess=,stat="], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [
        int(pid)
        for pid, session, state in map(str.split, listed.splitlines())
        if session == str(process.pid) and "Z" not in state
    ]


def assert_none_is_left(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while left := members(process):
        assert time.monotonic() < end, f"{len(left)} processes are left"
        time.sleep(0.2)


def test_f04_a_run_that_goes_on_is_given_the_time_to_save(ranks: subprocess.Popen[bytes], own_run: Path, tmp_path: Path) -> None:
    before = torch.load(own_run / LAST, weights_only=True)["global_step"]
    (tmp_path / "slow").touch()
    os.killpg(ranks.pid, signal.SIGUSR1)
    assert ranks.wait(60) == 143, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "Go on with" in log
    assert "Traceback" not in log
    assert torch.load(own_run / LAST, weights_only=True)["global_step"] > before
    assert_none_is_left(ranks)


def test_f19_f25_a_run_is_one_run_until_it_is_killed(ranks: subprocess.Popen[bytes], own_run: Path, run: Run) -> None:
    assert len(members(ranks)) >= 10  # ranks, loader processes, a server and a tracker for each rank
    refused = run("fit", "--run", own_run, *NO_EXPORT)
    assert refused.code == 2
    assert refused.err.endswith(f": {own_run} is in use: a run that goes on is training there. Wait for it, or stop it first.\n")
    os.kill(ranks.pid, signal.SIGKILL)
    assert_none_is_left(ranks)
    step = torch.load(own_run / LAST, weights_only=True)["global_step"]
    alone = ["--devices", 1, "--strategy", "auto", "--data.num_workers", 0, "--trainer.max_steps", step + 5]
    assert run("fit", "--run", own_run, *alone, *NO_EXPORT).code == 0
    assert torch.load(own_run / LAST, weights_only=True)["global_step"] == step + 5


def test_a_second_machine_goes_by_its_node_rank(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    args = ["--run_dir", "run", "--trainer.num_nodes", "2", "--devices", "1", "--strategy", "ddp", "--trainer.max_epochs", "1"]
    nodes = []
    for rank in ("1", "0"):
        more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": rank, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"log{rank}").open("wb") as log:
            command = [*COMMAND, "fit", *DIGITS, *args, *NO_EXPORT]
            nodes.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | more, stdout=log, stderr=log))
    codes = [node.wait(120) for node in nodes]
    assert codes == [0, 0], (tmp_path / "log1").read_text() + (tmp_path / "log0").read_text()
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["global_step"] == 10  # both had their share
