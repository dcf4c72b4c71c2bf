"""What this process may use of the machine's cores, and how long its threads waited for them. It imports no torch."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_guide.engine.machine import usable_cores

GROUPS, OWN, TASKS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/self/task")
SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
Times = Mapping[str, tuple[int, int]]  # thread -> nanoseconds that it ran, and that it was ready to run and had to wait


def quota(groups: Path = GROUPS, own: Path = OWN) -> float | None:
    """How many cores' time the control groups of this process allow it, such as 1.5; None: there is no limit.

    The smallest limit counts, of its group and of all above it as far as they are seen: in a container the names in `own` may be
    those of the machine outside, and the container's own group is then the top. Both versions are looked at: `cpu.max`
    (https://docs.kernel.org/admin-guide/cgroup-v2.html) and `cpu.cfs_quota_us` (https://docs.kernel.org/scheduler/sched-bwc.html).
    """
    found: list[float] = []
    with suppress(OSError):  # there are none on other systems
        for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            below = Path(*(name for name in path.split("/") if name not in ("", "..")))
            for top in (groups / "cpu", groups / controllers) if controllers else (groups, groups / "unified"):
                found += [limit for group in (below, *below.parents) if (limit := _limit(top / group)) is not None]
    return min(found, default=None)


def _limit(group: Path) -> float | None:
    """The limit of one group; None where it has none, or is not seen from here."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file; "max"
            allowed, period = map(int, " ".join((group / name).read_text() for name in names).split())
            if allowed > 0 and period > 0:  # -1: no limit
                return allowed / period
    return None


def most_threads(processes: int = 1) -> int:
    """Threads that one of so many processes of a run may use: the cores it may run on, or what the quota is nearest to."""
    limit = quota()
    return usable_cores() if limit is None else max(1, min(usable_cores(), int(limit / processes + 0.5)))


def set_by_user() -> bool:
    """Whether the environment says how many threads there are: that stays."""
    return any(map(os.environ.get, SET_BY_USER))


def found() -> dict[str, Any]:
    """What `doctor` tells: cores by affinity, the quota, the load (processes that want to run, over the last minute), threads.

    `most_threads` is None where the environment says how many there are.
    """
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    most = None if set_by_user() else most_threads()
    return {"usable": usable_cores(), "quota": quota(), "load": load, "most_threads": most}


def times(tasks: Path = TASKS) -> Times:
    """How long each thread of this process ran and waited so far; empty where the system does not tell.

    https://docs.kernel.org/scheduler/sched-stats.html
    """
    told: dict[str, tuple[int, int]] = {}
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, ValueError):  # it has just ended
                ran, waited, _ = map(int, (task / "schedstat").read_text().split())
                told[task.name] = ran, waited
    return told


def waited(before: Times, after: Times, least_s: float = 0.1) -> float | None:
    """The share, 0 to 1, of the time in which threads were ready to run that they had to wait: others had the cores.

    None where they ran and waited for less than `least_s` seconds together, which says nothing.
    """
    ran, lost = (sum(now[i] - before.get(name, (0, 0))[i] for name, now in after.items()) for i in (0, 1))
    return lost / (ran + lost) if ran > 0 and ran + lost >= least_s * 1e9 else None
