"""Trying things in other processes, so that a crash or a hang costs one verdict alone.

The attempts of a group run in one process, one after the other, since importing torch takes longer than most of them.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

LIMIT_S = 30.0
# Of a job that doctor is started in: Lightning would take the attempts for a part of it.
JOB = ("SLURM_", "TORCHELASTIC_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK")


class NotHereError(Exception):
    """What this needs is not in this machine; the message says what it is."""


@dataclass(frozen=True)
class Attempt:
    """One feature to try.

    Args:
        name: what the verdict is about.
        call: module:function; it returns what json can write, raises NotHereError, or raises anything else.
        args: of the function; json must be able to write them.
        limit_s: seconds after which the process is ended.
    """

    name: str
    call: str
    args: tuple[Any, ...] = ()
    limit_s: float = LIMIT_S


@dataclass(frozen=True)
class Result:
    """How an attempt ended: what it returned, or `error`, or what is `absent`, after so many seconds."""

    name: str
    seconds: float
    value: Any = None
    error: str | None = None
    absent: str | None = None


async def run_groups(groups: Sequence[Sequence[Attempt]]) -> list[Result]:
    """Run the groups at the same time, each in a process of its own; the results come in the order given."""
    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as folder:
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
        # Kernels that an earlier run compiled would hide that there is no compiler.
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        package = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package)))
        ours = {name: value for name, value in os.environ.items() if not name.startswith(JOB)}
        env = {**ours, **places, **caches, "PYTHONPATH": path}
        return [result for results in await asyncio.gather(*(_run(group, env) for group in groups)) for result in results]


async def _run(group: Sequence[Attempt], env: dict[str, str]) -> list[Result]:
    """Run one group; after a crash or a hang a new process goes on with the next attempt."""
    results: list[Result] = []
    while len(results) < len(group):
        todo = json.dumps([[attempt.call, attempt.args] for attempt in group[len(results) :]])
        with tempfile.TemporaryFile(dir=env["TMPDIR"]) as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", __name__, todo),  # -P: no torch.py of the folder we are in
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=os.name == "posix",
            )
            assert process.stdout is not None
            try:
                for attempt in group[len(results) :]:
                    started = time.perf_counter()
                    line = await asyncio.wait_for(process.stdout.readline(), attempt.limit_s)
                    if not line:
                        code = await asyncio.wait_for(process.wait(), attempt.limit_s)
                        log.seek(0)
                        error = _ending(code, log.read().decode(errors="replace"))
                        results.append(Result(attempt.name, time.perf_counter() - started, error=error))
                        break
                    results.append(Result(attempt.name, **json.loads(line)))
            except TimeoutError:
                results.append(Result(attempt.name, attempt.limit_s, error=f"did not finish in {attempt.limit_s:g} s"))
            finally:
                _end(process.pid)
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    return results


def _ending(code: int, log: str) -> str:
    """Why a process ended early, with the last line it wrote."""
    with suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    last = log.strip().splitlines()[-1:]
    return ": ".join([f"its process ended with exit code {code}", *last])


def _end(pid: int) -> None:
    """End a process with all that it started: the ranks of DDP, loaders, compilers."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        else:
            os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """In the other process: try what argv[1] lists, and print one line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries and compilers print is no answer
    for call, args in json.loads(sys.argv[1]):
        started = time.perf_counter()
        answer: dict[str, Any] = {}
        try:
            answer["value"] = resolve_name(call)(*args)
        except Exception as error:
            kind = type(error).__name__  # no isinstance: run by -m, this file is there a second time
            own = kind in (NotHereError.__name__, "AssertionError")
            text = str(error) if own else f"{kind}: {error}"
            text = text if len(text) < 8000 else f"{text[:4000]}\n{text[-4000:]}"  # asyncio reads lines of up to 64 KiB
            answer["absent" if kind == NotHereError.__name__ else "error"] = text
        print(json.dumps({"seconds": round(time.perf_counter() - started, 3), **answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
