import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lit_guide import fit
from lit_guide.parts.threads import callback, cores, waiting
from tests.conftest import FAST, Run

DIGITS = ["fit", "--config", "configs/digits.yaml", "--trainer.enable_progress_bar", "false", *FAST]
DIGITS += [word for name in ("onnx", "torchscript", "pt2") for word in (f"--export.{name}.enabled", "false")]
SECOND = 10**9


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process on two cores that nobody else uses; afterwards as before."""
    before = torch.get_num_threads()
    for name in (*cores.SET_BY_USER, *waiting.SET_BY_USER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "times", dict)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores, "quota", lambda: None)
    torch.set_num_threads(2)
    yield
    waiting.spin()
    torch.set_num_threads(before)


def used(run_dir: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run_dir, "results.json").read_text())["threads"]
    return found


def saved(run_dir: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(f"{run_dir}/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Threads"]
    return found


@pytest.mark.slow
def test_f55_threads_that_are_given_are_used_and_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: 1.0)
    assert run(*DIGITS, "--threads", "2", "--run_dir", "run").code == 0
    assert torch.get_num_threads() == 2
    assert used("run") == {"count": 2, "changes": [], "seconds_shared": 0.0}
    assert saved("run") == {"count": 2, "changes": []}
    assert yaml.safe_load(Path("run/config.yaml").read_text())["threads"] == {"count": 2}
    # The same by their key, and in a file; what is typed wins.
    Path("more.yaml").write_text("threads:\n  count: 2\n")
    assert run(*DIGITS, "--config", "more.yaml", "--threads=1", "--run_dir", "other").code == 0
    assert used("other")["count"] == torch.get_num_threads() == 1
    for wrong in ("0", "-1", "1.5", "many"):
        done = run(*DIGITS, "--threads", wrong)
        assert (done.code, done.err) == (2, f"lit-guide: threads.count is {wrong}: expected int above 0, or null.\n")


@pytest.mark.slow
def test_f55_a_quota_sets_the_threads_and_a_run_that_goes_on_keeps_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota", lambda: 1.2)
    assert run(*DIGITS, "--run_dir", "run").code == 0
    assert used("run")["count"] == 1
    monkeypatch.setattr(cores, "quota", lambda: None)
    torch.set_num_threads(2)
    done = run("fit", "--run", "run", "--trainer.max_epochs", "3")
    assert (done.code, used("run"), torch.get_num_threads()) == (0, {"count": 1, "changes": [], "seconds_shared": 0.0}, 1)
    assert "threads" not in done.err
    steps = json.loads(Path("run/results.json").read_text())["steps"]
    done = run("fit", "--run", "run", "--trainer.max_epochs", "4", "--threads", "2")
    assert done.code == 0
    assert (
        "lit-guide: training goes on with 2 threads as given, in place of 1: weights may differ in their last bits. "
        "For the same bits: --threads 1.\n" in done.err
    )
    assert used("run") == {"count": 2, "changes": [{"step": steps, "threads": 2}], "seconds_shared": 0.0}
    assert saved("run") == {"count": 2, "changes": [{"step": steps, "threads": 2}]}


@pytest.mark.parametrize(("first", "expected"), [((None, 3), 3), ((1, 1), 1)])
def test_f55_all_processes_take_the_number_of_the_first(first: tuple[int | None, int], expected: int) -> None:
    """This one would take another: it may use other cores, or have another environment."""
    given: list[Any] = []

    def broadcast(value: Any) -> Any:
        given.append(value)
        return first

    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=broadcast)
    one = callback.Threads()
    one.on_fit_start(SimpleNamespace(strategy=strategy, num_devices=1), None)  # type: ignore[arg-type]
    assert given == [(None, 2)]
    assert one.count == torch.get_num_threads() == expected


@pytest.mark.slow
@pytest.mark.parametrize("variable", cores.SET_BY_USER)
def test_f55_what_the_environment_says_is_taken(run: Run, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr(cores, "quota", lambda: 1.0)
    assert run(*DIGITS, "--run_dir", "run").code == 0
    assert used("run")["count"] == 2
    assert run(*DIGITS, "--run_dir", "other", "--threads", "1").code == 0
    assert used("other")["count"] == 1


def crowd(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """From look to look threads ran for a second in all, and waited for a share of what they ran and waited; the last stays."""
    told, ran, lost = list(shares), 0, 0

    def times() -> cores.Times:
        nonlocal ran, lost
        share = told.pop(0) if len(told) > 1 else told[0]
        ran, lost = ran + SECOND, lost + int(SECOND * share / (1 - share))
        return {"1": (ran, lost)}

    monkeypatch.setattr(cores, "times", times)
    monkeypatch.setattr(callback, "SECONDS", 0.0)  # a look after each batch


class Noted:
    """In place of how threads wait: what was asked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, can: bool = True) -> None:
        self.asked: list[str] = []
        self.now = False
        for name in ("sleep", "spin", "asleep"):
            monkeypatch.setattr(waiting, name, getattr(self, name))
        self.can = can

    def sleep(self, threads: int) -> bool:
        if self.can and not self.now:
            self.asked.append(f"sleep {threads}")
            self.now = True
        return self.now

    def spin(self) -> None:
        self.asked.append("spin")
        self.now = False

    def asleep(self) -> bool:
        return self.now


def test_f55_threads_sleep_while_others_use_the_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch, 0.5, 0.5, *[0.01] * 5, 0.07, 0.4, *[0.02] * 9, 0.07, *[0.02] * 10, 0.0)
    noted = Noted(monkeypatch)
    done = run(*DIGITS, "--run_dir", "run")
    assert done.code == 0
    assert "threads" not in done.err
    # At the start, at once; after 5 quiet looks they spin, until others come; after that it takes 10 in a row.
    assert noted.asked == ["spin", "sleep 2", "spin", "sleep 2", "spin"]
    assert used("run")["changes"] == []
    assert used("run")["seconds_shared"] >= 0


def test_f55_one_thread_waits_for_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch, 0.5)
    noted = Noted(monkeypatch, can=False)
    assert run(*DIGITS, "--threads", "1", "--run_dir", "run").code == 0
    assert noted.asked == ["spin"]
    assert used("run")["count"] == 1


def test_f55_a_change_in_mid_run_is_told_and_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    torch.set_num_threads(8)
    crowd(monkeypatch, 0.0, 0.4, 0.4, 0.0, 0.4, 0.4, 0.4, 0.4, 0.0)
    Noted(monkeypatch, can=False)
    done = run(*DIGITS, "--run_dir", "run")
    assert done.code == 0
    told = [line for line in done.err.splitlines() if "threads" in line]
    assert told == [
        "lit-guide: others use the cores too: training goes on with 5 threads in place of 8, so weights may differ in their "
        "last bits. --threads N keeps to a number."
    ]
    (change,) = used("run")["changes"]
    assert (change["threads"], used("run")["count"], torch.get_num_threads()) == (5, 5, 5)
    assert change["step"] > 0
    assert saved("run") == {"count": 5, "changes": [change]}


@pytest.mark.slow
@pytest.mark.parametrize("fixed", ["flag", "threads", "waiting"])
def test_f55_what_is_given_does_not_change(run: Run, monkeypatch: pytest.MonkeyPatch, fixed: str) -> None:
    crowd(monkeypatch, 0.5)
    Noted(monkeypatch, can=False)
    if fixed != "flag":
        monkeypatch.setenv(
            "OMP_NUM_THREADS" if fixed == "threads" else "OMP_WAIT_POLICY", "2" if fixed == "threads" else "active"
        )
    assert run(*DIGITS, "--run_dir", "run", *(["--threads", "2"] if fixed == "flag" else [])).code == 0
    assert (used("run")["count"], used("run")["changes"]) == (2, [])


@pytest.mark.slow
def test_a_project_without_the_part_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "CALLBACKS", {"threads": "lit_guide.parts.threads_of_old.callback:Threads"})
    Path("old.yaml").write_text("threads:\n  count: 2\n")
    done = run(*DIGITS, "--config", "old.yaml", "--run_dir", "run")
    assert done.code == 0
    assert "threads in the configuration is of the part threads_of_old, which this project does not have" in done.err
    done = run(*DIGITS, "--threads", "2")
    assert done.code == 0
    assert "threads in the configuration is of the part threads_of_old" in done.err


# --- real processes on two threads: goes on to the same bits, however the threads wait


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return found


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    usual = [*DIGITS[1:], "--trainer.enable_model_summary", "false"]
    words = [] if args[0] == "--run" else usual
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "lit_guide", "fit", *words, *args], cwd=folder, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_f55_f01_f02_a_run_on_given_threads_goes_on_to_the_same_bits(tmp_path: Path, workers: str) -> None:
    options = ["--threads", "2", "--data.num_workers", workers, "--data.batch_size", "32"]
    assert start(tmp_path, *options, "--run_dir", "whole").wait(300) == 0, (tmp_path / "log").read_text()
    # Killed when an epoch has ended, and in the middle of one; they go on beside processes that take the cores.
    for name, every in (("ended", []), ("killed", ["--checkpoint.every_n_steps", "3"])):
        process, last = start(tmp_path, *options, *every, "--run_dir", name), tmp_path / name / "checkpoints/last.ckpt"
        while process.poll() is None and not last.is_file():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
        try:
            assert start(tmp_path, "--run", name).wait(300) == 0, (tmp_path / "log").read_text()
        finally:
            for one in busy:
                one.kill()
                one.wait()
        assert all(map(torch.equal, weights(tmp_path, "whole").values(), weights(tmp_path, name).values())), name
    assert (used(str(tmp_path / "killed"))["count"], used(str(tmp_path / "killed"))["changes"]) == (2, [])


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, -1, 10**9, "2", 2.0])
def test_f39_f55_a_checkpoint_does_not_ask_for_any_number_of_threads(run: Run, count: Any) -> None:
    assert run(*DIGITS, "--run_dir", "a").code == 0
    file = Path("a/checkpoints/last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["callbacks"]["Threads"]["count"] = count
    torch.save(checkpoint, file)
    outcome = run("fit", "--run", "a", "--trainer.max_epochs", "3")
    assert outcome.code == 1
    assert f"{file.absolute()}: its state of callbacks can't be gone on with (ValueError: {count} threads)" in outcome.err
