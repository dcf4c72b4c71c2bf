"""What the benchmarks share: a quiet start, claims, and the record that a run leaves in records/NAME.json.

`python benchmarks/record.py` writes the table of README.md anew from the records; every full run does so too.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("torch", "lightning", "torchvision", "lit-guide")
START, END = "<!-- records: start -->", "<!-- records: end -->"
QUIET = 0.05  # share of the machine that others may use when a repetition starts


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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used; None where there is no /proc/stat."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, first)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def share_of_others(before: float | None, own: float, wall: float) -> float | None:
    """Share of the machine that other processes used since `busy_seconds()` gave `before`.

    Args:
        before: the earlier reading.
        own: CPU seconds of this process and its children since then.
        wall: seconds since then.
    """
    now = busy_seconds()
    if before is None or now is None:
        return None
    return round(max(0.0, now - before - own) / (wall * (os.cpu_count() or 1)), 3)


def wait_for_quiet(limit_s: float) -> float | None:
    """Sleep until others leave the machine alone, `limit_s` at most; returns the share that they used in the last second."""
    end = time.monotonic() + limit_s
    while True:
        before, started = busy_seconds(), time.monotonic()
        time.sleep(1.0)
        share = share_of_others(before, 0.0, time.monotonic() - started)
        if share is None or share <= QUIET or time.monotonic() >= end:
            return share


def claim(text: str, figure: float, limit: float, at_most: bool = True) -> dict[str, Any]:
    """A claim, its figure and whether it held.

    Args:
        text: what is measured.
        figure: what came out.
        limit: what it is held against.
        at_most: whether the limit is an upper one.
    """
    held = figure <= limit if at_most else figure >= limit
    return {"text": text, "figure": round(figure, 4), "limit": f"{'<=' if at_most else '>='} {limit:g}", "held": held}


def environment() -> dict[str, Any]:
    """Versions, processor and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))},
        "versions": {"python": platform.python_version(), **{name.replace("-", "_"): version(name) for name in PACKAGES}},
    }


def finish(
    name: str,
    claims: Sequence[Mapping[str, Any]],
    repetitions: Sequence[Mapping[str, Any]],
    medians: Mapping[str, Any],
    settings: Mapping[str, Any],
    quick: bool,
) -> int:
    """Print the claims and, unless `quick`, write the record and the table of README.md.

    Returns:
        The exit code: 0 every claim held (or `quick`), 1 one did not.
    """
    for item in claims:
        verdict = "not judged (quick)" if quick else "held" if item["held"] else "DID NOT HOLD"
        print(f"{item['text']}: {item['figure']:g} (claim {item['limit']}, n = {item.get('n', len(repetitions))}): {verdict}")
    if quick:
        return 0
    content = {
        "script": f"benchmarks/{name}.py",
        "claims": list(claims),
        "medians": dict(medians),
        "settings": dict(settings),
        "environment": environment(),
        "repetitions": list(repetitions),
    }
    path = HERE / "records" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    refresh_readme()
    return 0 if all(item["held"] for item in claims) else 1


def refresh_readme() -> None:
    """Write the table of README.md from the records that are there."""
    lines = ["| script | claim | last recorded figure | how to run |", "|---|---|---|---|"]
    for path in sorted((HERE / "records").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        where = content["environment"]
        for item in content["claims"]:
            count = item.get("n", len(content["repetitions"]))
            verdict = "held" if item["held"] else "**did not hold**"
            figure = f"{item['figure']:g}, {verdict} (n = {count}, {where['date']}, {where['cores']} cores of {where['cpu']})"
            name = path.stem
            lines.append(f"| `{name}.py` | {item['text']}: {item['limit']} | {figure} | `python benchmarks/{name}.py` |")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    refresh_readme()
