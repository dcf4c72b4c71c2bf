"""Runs checks in any Python that has torch, each in a process of its own, prints a line for each, and writes a record.

A runner of our own, not pytest: a check that hangs or crashes in CUDA can't be ended from within its process; four at a time
share the time that Python needs to import torch; pytest may be missing where a GPU is; and pyproject.toml's pytest makes
errors of the warnings of other versions than those of constraints.txt.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
# As pip names them: without these not even a fit runs, but for those in SOME, for the ONNX export and pictures.
NEEDED = ("torch", "torchvision", "lightning", "lightning-utilities", "torchmetrics", "numpy", "pillow", "pyyaml", "safetensors")
NEEDED += ("jsonargparse", "docstring_parser", "typeshed_client", "rich", "filelock", "packaging", "onnx", "onnxruntime")
SOME = ("onnxscript", "onnx-ir", "matplotlib")
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # where the module has another name
NO_GPU, NOT_HERE = 2, 2
TAIL = 60  # lines of a failed check's output that the record keeps
SLOWER = 3  # times as long as on a GPU may a check take on a CPU, whose cores others may want too
PRINTING = threading.Lock()


class SkippedError(Exception):
    """This check needs what is not here; the message says what."""


class Where(NamedTuple):
    """What a check is given: the device's type, cuda or cpu, and an empty folder of its own, in which it runs."""

    device: str
    folder: Path

    @property
    def accelerator(self) -> str:
        return "gpu" if self.device == "cuda" else self.device


class Check(NamedTuple):
    """A check: it returns what its line says, or raises; its process is ended after `limit_s`, on a GPU."""

    name: str
    function: Callable[[Where], str]
    limit_s: float = 90.0
    needs_gpu: str = ""  # why it is skipped on the CPU


def run(where: Where, *words: object, program: Sequence[str] = ("-m", "lit_guide")) -> subprocess.CompletedProcess[str]:
    """Run `lit-guide`, or a program of the check's own, in the check's folder; an AssertionError tells of a traceback."""
    line = [sys.executable, *program, *map(str, words)]
    done = subprocess.run(line, cwd=where.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    print(f"$ {' '.join(line)}\n{done.stdout}{done.stderr}", flush=True)
    assert "Traceback" not in done.stderr, f"a traceback: {last_line(done.stderr)}"
    return done


def command(where: Where, *words: object, code: int = 0, program: Sequence[str] = ("-m", "lit_guide")) -> str:
    """Likewise; what it says. An AssertionError tells if it does not end with `code`."""
    done = run(where, *words, program=program)
    assert done.returncode == code, f"exit code {done.returncode}: {last_line(done.stderr)}"
    return done.stdout + done.stderr


def slower(device: str) -> int:
    """How many times as long everything may take."""
    return SLOWER if device == "cpu" else 1


def last_line(text: str) -> str:
    """The first line of the command's own message, or the last line of another one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it says nothing"]
    return next((line for line in lines if line.startswith("lit-guide: ")), lines[-1])


def main(name: str, checks: Sequence[Check], entry: Sequence[str], seconds: float, jobs: int) -> int:
    """Run checks and write NAME.json; the exit code: 0 none failed, 1 one did, 2 there is no GPU, or a package is missing.

    Args:
        name: of the record.
        checks: all that there are.
        entry: what Python is given to come here again, in the process of one check.
        seconds: for all of them, on a GPU; what has not begun by then fails.
        jobs: how many run at a time; no more than there are cores.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses what can be tried without a GPU")
    parser.add_argument("--seconds", type=float, default=None, help=f"for all together ({seconds:g}; on the CPU {SLOWER} x)")
    jobs = min(jobs, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help=f"checks at a time ({jobs})")
    parser.add_argument("--only", default="", help="a regular expression: checks whose names it is found in")
    parser.add_argument("--one", nargs=2, default=None, help="used by the kit itself: a check's name, and its folder")
    given = parser.parse_args()
    given.seconds = seconds * slower(given.device) if given.seconds is None else given.seconds
    if given.one:
        return one({check.name: check for check in checks}[given.one[0]], Where(given.device, Path(given.one[1])))
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in (*NEEDED, *SOME)}
    if missing := [name for name, module in modules.items() if find_spec(module) is None]:
        stop = set(missing) - set(SOME)
        mend = "`make gpu-extra EXTRA=DIR` fills a folder with those in pure Python, then give EXTRA=DIR"
        print(f"missing: {', '.join(missing)}: {'nothing' if stop else 'not everything'} can run ({mend})", flush=True)
        if stop:
            return NOT_HERE
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} finds none here, so nothing was tried (DEVICE=cpu rehearses on the CPU)")
        return NO_GPU
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, a rehearsal"
    chosen = [check for check in checks if re.search(given.only, check.name)]
    print(f"{name} on {device}, torch {torch.__version__}: {len(chosen)} checks, {given.jobs} at a time", flush=True)
    found: list[dict[str, Any]] = []
    for item in run_all(chosen, entry, given):
        found.append(item)
        write(name, found, given)  # each time: the kit may be ended itself
    failed = [item["name"] for item in found if item["state"] == "FAIL"]
    counts = {state: sum(item["state"] == state for item in found) for state in ("ok", "FAIL", "skip")}
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped", flush=True)
    return 1 if failed or not counts["ok"] else 0


def run_all(checks: Sequence[Check], entry: Sequence[str], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What came of each check, in their order; the line of each is printed as soon as it is known."""
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-kit-", ignore_cleanup_errors=True) as folder:
        own = {"XDG_CACHE_HOME": f"{folder}/cache", "PYTHONUNBUFFERED": "1"}
        for name, first in (("PYTHONPATH", [str(ROOT)]), ("RECORDS", [])):  # in full: checks run in folders of their own
            paths = [*first, *filter(None, os.environ.get(name, "").split(os.pathsep))]
            own[name] = os.pathsep.join(str(Path(path).absolute()) for path in paths)
        env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // given.jobs)), **os.environ, **own}
        line = [*entry, "--device", given.device]
        with ThreadPoolExecutor(given.jobs) as pool:
            asked = [pool.submit(try_one, check, line, Path(folder), env, end) for check in checks]
            yield from (future.result() for future in asked)


def try_one(check: Check, entry: Sequence[str], folder: Path, env: dict[str, str], end: float) -> dict[str, Any]:
    """Run one check in a process group of its own, which is ended with all that is left of it."""
    limit_s = min(check.limit_s * slower(entry[-1]), end - time.monotonic())
    answer: dict[str, Any] = {"state": "FAIL", "text": "no time was left for it: give more --seconds"}
    if entry[-1] == "cpu" and check.needs_gpu:
        answer, limit_s = {"state": "skip", "text": check.needs_gpu}, 0.0
    started, output = time.perf_counter(), ""
    if limit_s > 0:
        place = Path(tempfile.mkdtemp(dir=folder))
        with (place.with_suffix(".log")).open("w+b") as log:
            line = [sys.executable, *entry, "--one", check.name, str(place)]
            quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(line, cwd=ROOT, env=env, start_new_session=True, **quiet)
            try:
                answer["text"] = f"its process ended with {process.wait(limit_s)}"
                with suppress(OSError):
                    answer = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
            except subprocess.TimeoutExpired:
                answer["text"] = f"it did not end in {limit_s:.0f} s"
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # one that waits for a driver can't be ended
                    process.wait(10)
            log.seek(0)
            output = log.read().decode(errors="replace")
    item = {"name": check.name, **answer, "seconds": round(time.perf_counter() - started, 1)}
    line = f"{item['state']:4}  {item['name']:32} {item['seconds']:6.1f} s  {item['text'].splitlines()[0][:300]}\n"
    with PRINTING:
        print(line, end="", flush=True)
    return item | ({"output": output.splitlines()[-TAIL:]} if item["state"] == "FAIL" else {})


def one(check: Check, where: Where) -> int:
    """In the process of one check: what it came to goes into a file beside its folder."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    os.chdir(where.folder)
    try:
        answer = {"state": "ok", "text": check.function(where)}
    except SkippedError as reason:
        answer = {"state": "skip", "text": str(reason)}
    except BaseException as error:  # SystemExit too
        traceback.print_exc()
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        answer = {"state": "FAIL", "text": f"{kind}{error}".strip() or "an assertion failed"}
    where.folder.with_suffix(".json").write_text(json.dumps(answer), encoding="utf-8")
    return 0


def end_with(parent: int) -> None:
    """End this check and what it started when the kit is gone: a killed one can't do it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def write(name: str, found: Sequence[dict[str, Any]], given: argparse.Namespace) -> None:
    """The record, in the form of benchmarks/records, whose table has no line for it; of a rehearsal where a folder is named."""
    import record  # of benchmarks

    settings = {"device": given.device, "jobs": given.jobs, "only": given.only, "seconds": given.seconds}
    content = {"script": name, "claims": [], "settings": settings, "environment": record.environment(), "checks": list(found)}
    if given.device == "cuda" or os.environ.get("RECORDS"):
        record.write(name, content)
