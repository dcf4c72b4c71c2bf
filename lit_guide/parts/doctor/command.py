"""`doctor`: what is in this machine, what of it works, and what mends the rest.

Nothing that could be broken is imported here: torch and all that needs it are tried in other processes (`attempts`).
"""

import asyncio
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from lit_guide import __version__
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.machine import PRECISIONS
from lit_guide.parts.doctor.attempts import (
    about_torch,
    attempt,
    plan,
)
from lit_guide.parts.doctor.machine import (
    Driver,
    cpu,
    dependencies,
    install_torch,
    limits,
    nvidia_driver,
    too_old,
)
from lit_guide.parts.doctor.trials import Attempt, Result, run_groups

HELP = """usage: lit-guide doctor [--json]

What is in this machine, and which features work in it, each tried for real; for those that do not, why, and what mends it.

  --json   one JSON object on standard output, and nothing else

The exit code is 1 where something fails that this machine should do: training on the CPU or on a GPU that is there, decoding
images, exporting.
"""
SLOW_S = 30.0  # of an attempt that takes two seconds on most machines
SLOW_PRECISION = 3.0  # times the step of 32-true
COMPILERS = {"linux": "sudo apt install g++", "darwin": "xcode-select --install"}
BUILD_TOOLS = "winget install Microsoft.VisualStudio.2022.BuildTools"


@dataclass(frozen=True)
class Verdict:
    """How one feature fares.

    Args:
        name: of the feature.
        state: ok, slow, no, or not here (it needs what this machine lacks).
        seconds: that the attempt took.
        reason: why it is not ok.
        mend: the command or flag that helps.
        needed: this machine should do it.
    """

    name: str
    state: str
    seconds: float = 0.0
    reason: str | None = None
    mend: str | None = None
    needed: bool = False


def doctor(args: list[str]) -> None:
    """Run the command.

    Raises:
        ConfigError: an unknown flag.
        UserError: something fails that this machine should do.
    """
    if {"-h", "--help"} & set(args):
        print(HELP)
        raise SystemExit(0)
    unknown = [arg for arg in args if arg != "--json"]
    if unknown:
        raise ConfigError(f"doctor takes --json, or nothing: there is no {unknown[0]!r}.")
    report = examine()
    if args:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)
    failed = [feature["name"] for feature in report["features"] if feature["needed"] and feature["state"] == "no"]
    if failed:
        raise UserError(f"This machine should do these, and does not: {', '.join(failed)}.")


def examine() -> dict[str, Any]:
    """Everything that `doctor` prints: the machine, torch, the dependencies, and a verdict per feature."""
    driver = nvidia_driver()
    (torch,) = _run([attempt("torch", about_torch)])
    about: dict[str, Any] = torch.value or {}
    verdicts = [judge(torch, driver)]
    if about:
        verdicts += features(about, driver)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": about.get("torch"),
        "cuda_build": about.get("cuda_build"),
        "driver": None if driver is None else asdict(driver),
        "cudnn": about.get("cudnn"),
        "nccl": about.get("nccl"),
        "devices": about.get("devices", []),
        "cpu": {**cpu(), "threads": about.get("threads"), "torch": about.get("capability")},
        "limits": limits(),
        "dependencies": dependencies(),
        "features": [asdict(verdict) for verdict in verdicts],
    }


def features(about: Mapping[str, Any], driver: Driver | None) -> list[Verdict]:
    """A verdict on everything that needs a working torch.

    Args:
        about: what `attempts.about_torch` returned.
        driver: the NVIDIA driver, if there is one.
    """
    names = [device["device"] for device in about["devices"]]
    gpus = [name for name in names if name != "mps"]
    results = _run(*plan(names))
    plain_s = next((result.value for result in results if result.name.startswith("32-true")), None)
    verdicts = [judge(result, driver, plain_s) for result in results]
    if not names:
        verdicts.insert(3, no_gpu(about, driver))
    if len(gpus) < 2:
        verdicts.append(Verdict("ddp on 2 x cuda", "not here", reason=f"it takes two GPUs that torch can use; here: {len(gpus)}"))
    return verdicts


def judge(result: Result, driver: Driver | None, plain_s: float | None = None) -> Verdict:
    """The verdict on an attempt: its state, the reason in a line, and what mends it.

    Args:
        result: how the attempt ended.
        driver: the NVIDIA driver, if there is one.
        plain_s: seconds of a training step in 32-true, which other precisions are measured by.
    """
    name, seconds = result.name, result.seconds
    needed = name.startswith(("torch", "decode", "train", "export")) and name != "torch.compile"
    if result.absent is not None:
        return Verdict(name, "not here", seconds, result.absent, needed=needed)
    if result.error is not None:
        return Verdict(name, "no", seconds, _in_a_line(result.error), mend(name, result.error, driver), needed)
    if plain_s and name.partition(" ")[0] in PRECISIONS and result.value > SLOW_PRECISION * plain_s:
        reason = f"a step takes {result.value / plain_s:.0f} times as long as in 32-true"
        return Verdict(name, "slow", seconds, reason, "--precision 32-true", needed)
    if seconds > SLOW_S:
        return Verdict(name, "slow", seconds, "it works, and takes long", needed=needed)
    return Verdict(name, "ok", seconds, needed=needed)


def no_gpu(about: Mapping[str, Any], driver: Driver | None) -> Verdict:
    """Why there is no GPU that torch can use: there is none, the build has no CUDA, or it does not fit the driver."""
    name, build = "train on a GPU", about["cuda_build"]
    if driver is None or (driver.version is None and driver.cuda is None):
        reason = "there is no GPU that torch can use" + (f" ({driver.error})" if driver else "")
        return Verdict(name, "not here", reason=reason)
    if "CUDA_VISIBLE_DEVICES" in os.environ and build != "CPU only" and not too_old(driver, build):
        hidden = os.environ["CUDA_VISIBLE_DEVICES"]
        return Verdict(name, "not here", reason=f"CUDA_VISIBLE_DEVICES is {hidden!r}", mend="unset CUDA_VISIBLE_DEVICES")
    if build == "CPU only":
        reason = "there is an NVIDIA driver, and this torch is built for the CPU only"
    elif too_old(driver, build):
        reason = f"this torch is built for CUDA {build}; driver {driver.version} knows CUDA up to {driver.cuda}"
    else:
        reason = _in_a_line(about["cuda_error"] or "torch sees no GPU, and does not say why")
        return Verdict(name, "no", reason=reason, mend="nvidia-smi; in Docker: docker run --gpus all", needed=True)
    return Verdict(name, "no", reason=reason, mend=install_torch(driver), needed=True)


def mend(name: str, error: str, driver: Driver | None) -> str | None:
    """The command or flag that helps against an error, where one is known."""
    missing = re.search(r"No module named '(\w+)", error)
    if name == "torch" or "torchvision" in error or (missing and missing[1] == "torch"):
        return install_torch(driver)
    if missing:
        return f"pip install --force-reinstall {missing[1]}"
    if re.search(r"(?i)bus error|shared memory|\bshm\b", error):
        return "--data.num_workers 0; in Docker: docker run --shm-size=8g"
    if "Python.h" in error:
        return "sudo apt install python3-dev"
    if re.search(r"(?i)C(\+\+|xx)? ?compiler|\bcl is not found", error):
        return COMPILERS.get(sys.platform, BUILD_TOOLS)
    return "--precision bf16-true" if name.startswith("16-true") else None


def print_report(report: Mapping[str, Any]) -> None:
    """The report as tables, 80 columns wide; what does not work follows in plain lines, whose commands can be copied."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def table(title: str, rows: list[list[Any]], headings: tuple[str, ...] = ()) -> None:
        drawn = Table(title=title, title_justify="left", show_header=bool(headings))
        for column in range(len(rows[0]) if rows else 0):
            drawn.add_column(headings[column] if headings else "", overflow="fold")
        for row in rows:
            drawn.add_row(*(escape("-" if value is None else str(value)) for value in row))
        Console().print(drawn)

    driver, processor, limit = report["driver"], report["cpu"], report["limits"]
    known = f"{driver['version'] or '?'}, for CUDA up to {driver['cuda'] or '?'}" if driver else "none"
    has = [name for name in ("avx2", "avx512", "avx512_bf16", "amx") if processor[name]]
    rows = [[title, report[key]] for title, key in (("Python", "python"), ("torch", "torch"), ("CUDA build", "cuda_build"))]
    rows += [["NVIDIA driver", known], ["cuDNN", report["cudnn"]], ["NCCL", report["nccl"]]]
    rows += [[d["device"], f"{d['name']}, {d['memory_gb']} GB, capability {d['capability'] or '-'}"] for d in report["devices"]]
    rows += [
        ["CPU", f"{processor['model']}, {processor['cores']} cores, {processor['threads'] or '?'} threads of torch"],
        ["instructions", f"{', '.join(has) or '-'}; torch uses {processor['torch'] or '?'}"],
        ["/dev/shm", None if limit["shm_gb"] is None else f"{limit['shm_gb']} GB"],
        ["open files", limit["open_files"]],
        ["free disk", f"{limit['free_disk_gb']} GB"],
    ]
    table(f"lit-guide {report['version']} on {report['system']}", rows)
    rows = [[d["name"], d["version"], d["tested"], d["state"]] for d in report["dependencies"]]
    table("Dependencies", rows, ("package", "installed", "tested", ""))
    verdicts = report["features"]
    table("Features", [[f["name"], f["state"], f"{f['seconds']:.1f}"] for f in verdicts], ("feature", "works", "seconds"))
    for feature in verdicts:
        if feature["reason"]:
            print(f"{feature['name']}: {feature['state']}: {feature['reason']}")
        if feature["mend"]:
            print(f"  try: {feature['mend']}")


def _run(*groups: list[Attempt]) -> list[Result]:
    waiting: Any = nullcontext()
    if sys.stderr.isatty():
        from rich.console import Console

        waiting = Console(stderr=True).status("Trying what works here")
    with waiting:
        return asyncio.run(run_groups(groups))


def _in_a_line(error: str) -> str:
    """The line of an error that says what happened: the last of a traceback, else the first."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it does not say why"]
    return lines[-1 if "Traceback (most recent call last)" in error else 0][:300]
