"""What this machine gives a run: cores, and the precisions that training knows; and what to type on it."""

import os
import shlex
import shutil
import sys
from pathlib import Path

MOST_WORKERS = 16  # with more, the process that gathers their batches is what is waited for
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
# float16 on a CPU: torch has no mixed precision with it, and in pure float16 Adam's epsilon is 0 and the loss NaN in step 2.
ON_CPU = {"16": "bf16-mixed", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}

expanded = os.path.expanduser  # of a path with ~; Path's raises where there is no such user
also_typed: list[str] = []  # flags that the commands of a run must have again: --allow PACKAGE


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_workers(processes: int = 1) -> int:
    """Loader processes for each of the processes that train on this machine: they share its cores."""
    return max(1, min(MOST_WORKERS, usable_cores() // processes))


def short(path: Path) -> str:
    """The path as a user would type it from here: below the current directory without what is above."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def command(*words: str) -> str:
    """What to type for a command such as `lit-guide test --run DIR`; it works as pasted here.

    Where a shell would not find its script, or finds that of another environment, it is called by its path, or through Python.
    """
    name, python = "lit-guide", Path(sys.executable)
    started = Path(sys.argv[0]).absolute()
    # The script that this process was started by; else it lies beside Python.
    script = started if started.stem == name else python.with_name(name + ".exe" * (os.name == "nt"))
    found = shutil.which(name)
    if found and script.exists() and Path(found).samefile(script):
        start = [name]
    elif script.exists():
        start = [short(script)]
    else:
        start = ["python" if shutil.which("python") == str(python) else short(python), "-m", __name__.partition(".")[0]]
    return shlex.join([*start, *words, *(also_typed if "--allow" not in words else ())])
