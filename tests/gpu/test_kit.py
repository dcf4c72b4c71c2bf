"""The kit for a GPU, without one: its runner, and a rehearsal of every check."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.gpu import kit

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
# Checks that end in every way there is; "hangs" starts a process of its own, whose id it writes down.
STUB = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from tests.gpu.kit import Check, SkippedError, main

    def fails(where):
        assert 1 == 2, "one is not two\\nsecond line"

    def skips(where):
        raise SkippedError("there is no such thing")

    def hangs(where):
        other = subprocess.Popen(["sleep", "300"])
        Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {other.pid}")
        time.sleep(300)

    CHECKS = [
        Check("good", lambda where: f"on {where.device} in {Path.cwd() == where.folder}"),
        Check("fails", fails),
        Check("exits", lambda where: sys.exit("left")),
        Check("crashes", lambda where: os.kill(os.getpid(), signal.SIGSEGV)),
        Check("hangs", hangs, limit_s=float(os.environ["LIMIT"])),
        Check("skips", skips),
        Check("gpu only", fails, needs_gpu="it needs a GPU"),
    ]
    sys.exit(main("stub", CHECKS, [__file__], seconds=100, jobs=3))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A program with such checks, and where "hangs" writes its processes."""
    (tmp_path / "stub.py").write_text(textwrap.dedent(STUB))
    variables = {**ENV, "RECORDS": str(tmp_path / "out"), "PIDS": str(tmp_path / "pids"), "LIMIT": "1"}
    return SimpleNamespace(line=[sys.executable, str(tmp_path / "stub.py"), "--device", "cpu"], env=variables, folder=tmp_path)


def must_be_gone(pids: str) -> None:
    """None of these processes runs any more, after some seconds at most."""
    end = time.monotonic() + 10
    while running := [pid for pid in pids.split() if Path(f"/proc/{pid}/cmdline").is_file() and _cmdline(pid)]:
        assert time.monotonic() < end, f"still running: {running}"
        time.sleep(0.1)


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()  # empty: it has ended, and nobody has asked for its code
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups, /proc")
def test_each_way_to_end_is_a_line_and_the_rest_goes_on(stub):
    done = subprocess.run(stub.line, env=stub.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    _, *lines, last = done.stdout.splitlines()
    found = {match[2]: (match[1], match[3]) for match in (re.match(r"(\w+) +(.+?) +[\d.]+ s  (.*)$", line) for line in lines)}
    assert found == {
        "good": ("ok", "on cpu in True"),
        "fails": ("FAIL", "one is not two"),
        "exits": ("FAIL", "SystemExit: left"),
        "crashes": ("FAIL", "its process ended with -11"),
        "hangs": ("FAIL", "it did not end in 3 s"),
        "skips": ("skip", "there is no such thing"),
        "gpu only": ("skip", "it needs a GPU"),
    }
    assert last == "1 passed, 4 failed, 2 skipped"
    must_be_gone((stub.folder / "pids").read_text())
    record = json.loads((stub.folder / "out/stub.json").read_text())
    assert [item["name"] for item in record["checks"]] == ["good", "fails", "exits", "crashes", "hangs", "skips", "gpu only"]
    assert record["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    (failed,) = [item for item in record["checks"] if item["name"] == "fails"]
    assert "AssertionError: one is not two" in "\n".join(failed["output"])
    assert "output" not in record["checks"][0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups, /proc")
def test_a_killed_kit_leaves_its_record_so_far_and_no_process(stub):
    process = subprocess.Popen([*stub.line, "--only", "good|hangs"], env={**stub.env, "LIMIT": "100"}, stdout=subprocess.DEVNULL)
    pids, record = stub.folder / "pids", stub.folder / "out/stub.json"
    end = time.monotonic() + 60
    while not (pids.is_file() and pids.read_text() and record.is_file()) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    must_be_gone(pids.read_text())
    assert [(item["name"], item["state"]) for item in json.loads(record.read_text())["checks"]] == [("good", "ok")]


@pytest.mark.slow
def test_what_no_time_is_left_for_failed(stub):
    done = subprocess.run([*stub.line, "--seconds", "0", "--only", "good"], env=stub.env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FAIL  good" in done.stdout
    assert "no time was left for it: give more --seconds" in done.stdout


def call(monkeypatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kit", *args])
    return kit.main("stub", [], [], 1, 1)


def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(monkeypatch) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no GPU: torch ")


def test_what_is_missing_is_named_and_only_what_all_need_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = kit.find_spec
    monkeypatch.setattr(kit, "find_spec", lambda name: None if name == "onnxscript" else there(name))
    assert call(monkeypatch) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("missing: onnxscript: not everything can run (`make gpu-extra EXTRA=DIR`")
    assert second.startswith("no GPU: ")
    monkeypatch.setattr(kit, "find_spec", lambda name: None)
    assert call(monkeypatch) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "jsonargparse" in line
    assert "nothing can run" in line


def test_every_dependency_is_looked_for():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[\[>=<]", name)[0] for name in listed} <= {*kit.NEEDED, *kit.SOME}


def test_the_folder_of_extras_has_tested_versions():
    words = (ROOT / "Makefile").read_text().partition("--platform any \\\n")[2].partition("\n")[0].split()
    tested = {name.lower() for name in re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)}
    assert "jsonargparse" in words
    assert set(words) <= tested


# --- all of it


def make(folder: Path, target: str, device: str) -> tuple[int, list[str], dict[str, object]]:
    """Run a target with this Python: its exit code, its lines, its record."""
    words = [
        "make",
        "--no-print-directory",
        target,
        f"DEVICE={device}",
        f"PYTHON={sys.executable}",
        "EXTRA=nowhere",
        f"OUT={folder}",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    print(done.stdout, done.stderr)
    record = json.loads((folder / f"gpu_{target[:-4].replace('test', 'tests')}.json").read_text())
    return done.returncode, done.stdout.splitlines(), record


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="the GPU machines are Linux, with make")
@pytest.mark.parametrize(("target", "skipped"), [("test-gpu", 4), ("bench-gpu", 0)])
def test_a_rehearsal_on_the_cpu(tmp_path, target, skipped):
    code, lines, record = make(tmp_path, target, "cpu")
    states = [item["state"] for item in record["checks"]]
    assert code == 0, "\n".join(lines)
    assert (states.count("skip"), states.count("FAIL")) == (skipped, 0)
    assert lines[-1] == f"{len(states) - skipped} passed, 0 failed, {skipped} skipped"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{record['script']}.json"]  # a rehearsal leaves no other record


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_on_a_gpu(tmp_path, target):
    code, lines, _ = make(tmp_path, target, "cuda")
    assert code == 0, "\n".join(lines)
