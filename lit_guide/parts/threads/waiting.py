"""How the threads of an operation wait for each other: they spin, or they sleep. No result depends on it.

Spinning saves the microseconds of waking up, and so up to half the time of small steps on a quiet machine. Where others use the
cores too, it takes the time that those need who are waited for, and a step takes up to a hundred times as long.
"""

import os
import re
from pathlib import Path
from threading import Event, Thread

import torch

from lit_guide.engine.machine import usable_cores

MAPS = Path("/proc/self/maps")
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_sleepers: tuple[Thread, Event] | None = None  # what holds the threads that are too many, and what ends it


def can_sleep(maps: Path = MAPS) -> bool:
    """Whether the way of waiting can be changed: torch uses libgomp, and no variable of the environment says how to wait."""
    try:
        libraries = set(re.findall(r"/(lib(?:gomp|i?omp\d*))\b[^/]*\.so", maps.read_text(errors="replace")))
    except OSError:  # not Linux
        return False
    return libraries == {"libgomp"} and is_usual()


def is_usual() -> bool:
    """Whether no variable of the environment says how threads wait: what the user set stays."""
    return not any(name in os.environ for name in SET_BY_USER)


def asleep() -> bool:
    """Whether threads sleep while they wait."""
    return _sleepers is not None


def sleep(threads: int) -> bool:
    """Let the `threads` of an operation sleep while they wait for each other, from now on; whether that could be done.

    libgomp reads how long to spin when it is loaded. But where it manages more threads than there are cores, they spin for 100
    rounds in place of 300,000 (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). So a few more threads are made,
    which never get any work.
    """
    global _sleepers
    count = max(2, usable_cores() - threads // 2 + 2)  # an operation may use half of its threads, and the others are ended then
    if _sleepers is None and can_sleep() and _can_start(count):
        ready, end = Event(), Event()

        def hold() -> None:
            torch.set_num_threads(count)
            torch.zeros(1 << 17).add_(1)  # large enough to be divided: threads are made by the first operation that needs them
            torch.set_num_threads(threads)  # what other threads that begin take over
            ready.set()
            end.wait()

        _sleepers = Thread(target=hold, daemon=True, name="sleepers"), end
        _sleepers[0].start()
        ready.wait()
    return _sleepers is not None


def spin() -> None:
    """Let them spin again."""
    global _sleepers
    if _sleepers is not None:
        thread, end = _sleepers
        end.set()
        thread.join()
        _sleepers = None


def _can_start(count: int) -> bool:
    """Whether so many threads may be started: libgomp would end the process where a limit forbids it."""
    end, started = Event(), list[Thread]()
    try:
        for _ in range(count):
            thread = Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True
