"""Trying things in other processes, so that a crash or a hang costs one verdict alone."""

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
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any, NamedTuple

# Of a job that doctor is started in: Lightning would take the attempts for a part of it.
JOB = ("SLURM_", "TORCHELASTIC_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK")


class NotHereError(Exception):
    """What this needs is not in this machine; the message says what it is."""


class Attempt(NamedTuple):
    """One feature to try: `call` names a function of attempts.py, or module:function; its process is ended after `limit_s`."""

    name: str
    call: str
    args: tuple[Any, ...] = ()
    limit_s: float = 30.0


class Verdict(NamedTuple):
    """How a feature fares: its state is ok, slow, no, or not here (it needs what this machine lacks)."""

    name: str
    state: str
    seconds: float = 0.0
    reason: str | None = None  # why it is not ok
    mend: str | None = None  # the command or flag that helps
    needed: bool = False  # this machine should do it
    value: Any = None  # what the attempt returned


async def run_groups(*groups: Sequence[Attempt]) -> list[Verdict]:
    """Try the groups at the same time, each in a process, since importing torch takes longer than most attempts."""
    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as folder:
        env = {name: value for name, value in os.environ.items() if not name.startswith(JOB)}
        env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
        # Only its own kernels are compiled, without probing which vector instructions the compiler knows: a dozen programs, 20 s.
        env = {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1", **env}
        # Kernels that an earlier run compiled would hide that there is no compiler.
        env |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), str(Path(__file__).parents[3]))))
        return [verdict for verdicts in await asyncio.gather(*(_run(group, env) for group in groups)) for verdict in verdicts]


async def _run(group: Sequence[Attempt], env: dict[str, str]) -> list[Verdict]:
    """Try one group; after a crash or a hang a new process goes on with the next attempt."""
    verdicts: list[Verdict] = []
    while todo := group[len(verdicts) :]:
        calls = json.dumps([[attempt.call, attempt.args] for attempt in todo])
        command = (sys.executable, "-P", "-c", f"from {__name__} import main; main()", calls)  # -P: no torch.py of this folder
        with tempfile.TemporaryFile(dir=env["TMPDIR"]) as log:
            pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log, "limit": 1 << 24}
            process: Any = await asyncio.create_subprocess_exec(*command, **pipes, env=env, start_new_session=os.name == "posix")
            try:
                for attempt in todo:
                    started = time.perf_counter()
                    async with asyncio.timeout(attempt.limit_s):
                        line = await process.stdout.readline()
                        answer = json.loads(line) if line else {"state": "no", "reason": _ending(await process.wait(), log)}
                    verdicts.append(Verdict(attempt.name, seconds=round(time.perf_counter() - started, 3), **answer))
                    if not line:
                        break
            except TimeoutError:
                verdicts.append(Verdict(attempt.name, "no", attempt.limit_s, f"did not finish in {attempt.limit_s:g} s"))
            finally:
                _end(process.pid)
                await process.wait()
    return verdicts


def _ending(code: int, log: IO[bytes]) -> str:
    """Why a process ended early, with the last line it wrote."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
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
        try:
            answer = {"state": "ok", "value": resolve_name(call if ":" in call else f"{__package__}.attempts:{call}")(*args)}
        except NotHereError as error:
            answer = {"state": "not here", "reason": str(error)}
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            answer = {"state": "no", "reason": f"{kind}{error}"}
        print(json.dumps(answer), file=answers, flush=True)
