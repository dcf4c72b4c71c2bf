"""What the benchmarks share: a quiet start, claims, and the record that a run leaves in records/NAME.json.

`python benchmarks/record.py` writes the table of README.md anew from the records; every full run does so too.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware import cores as cores
from hardware import environment

HERE = Path(__file__).resolve().parent
RECORDS = Path(os.environ.get("RECORDS") or HERE / "records")  # elsewhere: what is measured here is not what README.md shows
START, END = "<!-- records: start -->", "<!-- records: end -->"
QUIET = 0.05  # share of the machine that others may use before and during a repetition


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser that knows --quick and --wait and whose help is the claim."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, nothing judged, no record: a smoke test")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for a quiet machine before each repetition")
    return parser


def silence_lightning() -> None:
    """Let the figures be all that is printed."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")


def keep_to(count: int) -> None:
    """Use the first so many cores alone, here and in the processes to come; all of them where a system can't say."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def call(*command: str, cwd: Path, **env: str) -> float:
    """Wall time of one process that must end well."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    elapsed = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return elapsed


def busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used; None where there is no /proc/stat."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, first)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process, of subprocesses that have ended, and of loader workers that have not."""
    times, ticks = os.times(), 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    live = ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0
    return time.process_time() + times.children_user + times.children_system + live


def share_of_others(measure: Callable[[], Any]) -> tuple[Any, float | None]:
    """Call something; what it returns, and the share of the machine that other processes used meanwhile (None: unknown)."""
    busy, own, started = busy_seconds(), own_seconds(), time.perf_counter()
    result = measure()
    wall, now = time.perf_counter() - started, busy_seconds()
    if busy is None or now is None:
        return result, None
    others = now - busy - (own_seconds() - own)
    return result, round(max(0.0, others) / (wall * (os.cpu_count() or 1)), 3)


def repeat(
    count: int, measure: Callable[[int], dict[str, Any]], wait: float | None, until: float | None = None
) -> list[dict[str, Any]]:
    """Measure until `count` repetitions are undisturbed: others used 5% of the machine at most.

    A disturbed repetition is made again; it stays in the list, marked, and counts in no median.

    Args:
        count: undisturbed repetitions to reach; three times as many are tried.
        measure: given the number of the repetition, its figures.
        wait: seconds to wait for a quiet machine before each; None in a smoke test: `count` repetitions, disturbed or not.
        until: by the clock of `time.monotonic`, when fewer are enough, one at least; None: never.

    Raises:
        SystemExit: the machine was too busy.
    """
    found: list[dict[str, Any]] = []
    while (done := len(undisturbed(found))) < count:
        if until is not None and done and time.monotonic() > until:
            break
        if len(found) == 3 * count:
            raise SystemExit(f"Others used this machine: {done} of {len(found)} repetitions were undisturbed. No record.")
        if wait is not None:
            wait_for_quiet(wait)
        figures, others = share_of_others(lambda index=done: measure(index))
        found.append(figures | {"others": others, "disturbed": wait is not None and others is not None and others > QUIET})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def undisturbed(repetitions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The repetitions that count."""
    return [item for item in repetitions if not item["disturbed"]]


def medians(repetitions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of every figure over the undisturbed repetitions."""
    counted = undisturbed(repetitions)
    names = [name for name, value in counted[0].items() if isinstance(value, float) and name != "others"]
    return {name: round(statistics.median(item[name] for item in counted), 5) for name in names}


def wait_for_quiet(limit_s: float) -> None:
    """Sleep until others leave the machine alone for a second; `limit_s` at most."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        _, others = share_of_others(lambda: time.sleep(1.0))
        if others is None or others <= QUIET:
            return


def claim(text: str, figure: float, limit: float, n: int, at_most: bool = True) -> dict[str, Any]:
    """A claim, its figure and whether it held.

    Args:
        text: what is measured.
        figure: what came out.
        limit: what it is held against.
        n: repetitions behind the figure.
        at_most: whether the limit is an upper one.
    """
    held = figure <= limit if at_most else figure >= limit
    return {"text": text, "figure": round(figure, 4), "limit": f"{'<=' if at_most else '>='} {limit:g}", "n": n, "held": held}


def finish(
    name: str,
    claims: Sequence[Mapping[str, Any]],
    repetitions: Sequence[Mapping[str, Any]],
    middle: Mapping[str, Any],
    settings: Mapping[str, Any],
    quick: bool,
) -> int:
    """Print the claims and, unless `quick`, write the record and the table of README.md.

    Args:
        name: of the script.
        claims: from `claim`.
        repetitions: from `repeat`.
        middle: medians.
        settings: what else was fixed.
        quick: a smoke test.

    Returns:
        The exit code: 0 every claim held (or `quick`), 1 one did not.
    """
    for item in claims:
        verdict = "not judged (quick)" if quick else "held" if item["held"] else "DID NOT HOLD"
        print(f"{item['text']}: {item['figure']:g} (claim {item['limit']}, n = {item['n']}): {verdict}")
    if quick:
        return 0
    content = {
        "script": f"benchmarks/{name}.py",
        "claims": list(claims),
        "medians": dict(middle),
        "settings": dict(settings),
        "environment": environment(),
        "repetitions": list(repetitions),
    }
    write(name, content)
    return 0 if all(item["held"] for item in claims) else 1


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write a record, and the table of README.md anew if it is one of those here."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if RECORDS.resolve() == HERE / "records":
        refresh_readme()


def refresh_readme() -> None:
    """Write the table of README.md from the records that are there."""
    lines = ["| script | claim | last recorded figure | how to run |", "|---|---|---|---|"]
    for path in sorted((HERE / "records").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        where = content["environment"]
        for item in content["claims"]:
            verdict = "held" if item["held"] else "**did not hold**"
            on = where["gpu"]["name"] if "gpu" in where else f"{where['cores']} cores of {where['cpu']}"
            figure = f"{item['figure']:g}, {verdict} (n = {item['n']}, {where['date']}, {on})"
            name = path.stem
            lines.append(f"| `{name}.py` | {item['text']}: {item['limit']} | {figure} | `python benchmarks/{name}.py` |")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    refresh_readme()
