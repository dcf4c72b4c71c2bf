import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_guide.engine.machine import usable_cores
from lit_guide.parts.threads import cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups, and what /proc/self/cgroup says."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


V1 = "9:name=systemd:/\n2:cpuacct:/\n1:cpu:{0}\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # in a container, which sees its own group as the top
        ("0::/docker/f00\n", {"cpu.max": "50000 100000\n"}, 0.5),  # and is told the name that it has outside
        ("0::/../../job\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/a/b/c\n", {"a/cpu.max": "100000 50000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "400000 100000"}, 2.0),
        ("0::/a b/c\n", {"a b/c/cpu.max": "200000 100000"}, 2.0),
        ("0::/a\n", {"a/cpu.max": "rubbish", "cpu.max": ""}, None),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),  # of another group
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1.format("/x"), {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1.format("/slurm/x"), {"cpu/slurm/cpu.cfs_quota_us": "9000", "cpu/slurm/cpu.cfs_period_us": "3000"}, 3.0),
        (
            "4:cpu,cpuacct:/docker/f00\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "120000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1.2,
        ),
        ("4:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "1000", "cpu/x/cpu.cfs_period_us": "1000"}, None),  # not its group
    ],
)
def test_f55_the_smallest_quota_of_the_control_groups_counts(
    tmp_path: Path, own: str, files: dict, expected: float | None
) -> None:
    assert cores.quota(*groups(tmp_path, own, files)) == expected


def test_f55_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert cores.quota(tmp_path / "none", tmp_path / "neither") is None
    assert cores.times(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("quota", "usable", "processes", "threads"),
    [
        (None, 8, 1, 8),
        (0.5, 8, 1, 1),
        (1.4, 8, 1, 1),
        (1.5, 8, 1, 2),
        (2.5, 8, 1, 3),
        (99.0, 8, 1, 8),
        (4.0, 8, 2, 2),
        (1.0, 8, 4, 1),
    ],
)
def test_f55_threads_by_quota_and_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, usable: int, processes: int, threads: int
) -> None:
    monkeypatch.setattr(cores, "quota", lambda: quota)
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    assert cores.most_threads(processes) == threads


def test_the_share_of_waiting() -> None:
    s = 10**9
    assert cores.waited({}, {}) is None
    assert cores.waited({}, {"1": (s, 0)}) == 0
    assert cores.waited({"1": (s, 5 * s)}, {"1": (2 * s, 6 * s), "2": (s, 2 * s)}) == 0.6  # 2 s run, 3 s waited
    assert cores.waited({"1": (s, s), "2": (9 * s, 9 * s)}, {"1": (4 * s, 2 * s)}) == 0.25  # a thread has ended
    assert cores.waited({}, {"1": (s // 100, s // 100)}) is None  # too little to tell
    assert cores.waited({}, {"1": (0, 0)}) is None  # a kernel that does not count


@linux
def test_f55_waiting_is_seen_beside_busy_processes() -> None:
    if not cores.times():
        pytest.skip("this kernel does not count")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * usable_cores())]
    try:
        before, end = cores.times(), time.perf_counter() + 1.5
        while time.perf_counter() < end:
            pass
        share = cores.waited(before, cores.times())
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert share is not None
    assert 0.3 < share < 1


@linux
def test_f55_a_real_quota_is_found() -> None:
    group = Path(f"/sys/fs/cgroup/cpu/of-a-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group of version 1 can be made here")
    code = "from lit_guide.parts.threads.cores import found; import json; print(json.dumps(found()))"
    environment = {name: value for name, value in os.environ.items() if name not in cores.SET_BY_USER}
    try:
        (group / "cpu.cfs_quota_us").write_text(str(int((group / "cpu.cfs_period_us").read_text()) // 2))
        (group / "inner").mkdir()
        command = f'echo $$ > {group}/inner/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", command, "sh", sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        ).stdout
    finally:
        for path in (group / "inner", group):
            path.rmdir()
    assert '"quota": 0.5' in done
    assert '"most_threads": 1' in done
    assert f'"usable": {len(os.sched_getaffinity(0))}' in done
