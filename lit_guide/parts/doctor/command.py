"""`doctor`: what is in this machine, what of it works, and what mends the rest. It imports no torch: other processes do."""

import asyncio
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lit_guide import __version__
from lit_guide.engine.errors import ConfigError, UserError, say
from lit_guide.engine.machine import PRECISIONS
from lit_guide.engine.tables import load
from lit_guide.parts.doctor.machine import INSTRUCTIONS, Driver, cpu, dependencies, install_torch, limits, nvidia_driver, release
from lit_guide.parts.doctor.trials import Attempt, Verdict, run_groups

HELP = """usage: lit-guide doctor [--json]

What is in this machine, and which features work in it, each tried for real; for those that do not, why, and what mends it.

  --json   one JSON object on standard output, and nothing else

The exit code is 1 where something fails that this machine should do: training on the CPU or on a GPU that is there, decoding
images, exporting.
"""
# What other parts know of the machine, where they are there.
OTHERS = {"cores": "lit_guide.parts.threads.cores:found"}
SLOW_S, SLOW_STEP = 30.0, 3.0  # of an attempt that takes two seconds on most machines; times the step of 32-true
LONG_S = 90.0  # two more processes import torch; a first compilation loads much, and waits for the C++ compiler
COMPILERS = {"linux": "sudo apt install g++", "darwin": "xcode-select --install"}
BUILD_TOOLS = "winget install Microsoft.VisualStudio.2022.BuildTools"
MENDS = {  # what an error says -> what helps
    r"(?i)bus error|shared memory|\bshm\b": "--data.num_workers 0; in Docker: docker run --shm-size=8g",
    r"Python\.h": "sudo apt install python3-dev",
    r"(?i)C(\+\+|xx)? ?compiler|\bcl is not found": COMPILERS.get(sys.platform, BUILD_TOOLS),
}


def doctor(args: list[str]) -> None:
    """Run the command. ConfigError: there is no such flag. UserError: something fails that this machine should do."""
    if {"-h", "--help"} & set(args):
        print(HELP)
        raise SystemExit(0)
    for unknown in set(args) - {"--json"}:
        raise ConfigError(f"doctor takes --json, or nothing: there is no {unknown!r}.")
    from rich.console import Console

    with Console(stderr=True).status("Trying what works here"):  # shown in a terminal alone
        report = examine()
    print(json.dumps(report, indent=1)) if args else print_report(report)
    failed = [feature["name"] for feature in report["features"] if feature["needed"] and feature["state"] == "no"]
    if failed:
        raise UserError(f"This machine should do these, and does not: {', '.join(failed)}.")


def examine() -> dict[str, Any]:
    """Everything that `doctor` prints: the machine, torch, the dependencies, and a verdict per feature."""
    others = {key: find() for key, find in load(OTHERS).items()}  # first: what is tried here is a load of its own
    driver = nvidia_driver()
    (torch,) = asyncio.run(run_groups([Attempt("torch", "about_torch")]))
    verdicts, about = [judge(torch, driver)], torch.value or {}
    if about:
        names = [device["device"] for device in about["devices"]]
        tried = asyncio.run(run_groups(*plan(names)))
        plain_s = next((verdict.value for verdict in tried if verdict.name.startswith("32-true")), None)
        verdicts += [judge(verdict, driver, plain_s) for verdict in tried]
        verdicts[4:4] = [] if names else [no_gpu(about, driver)]
    report: dict[str, Any] = {"version": __version__, "python": platform.python_version(), "system": platform.platform()}
    report |= {key: about.get(key) for key in ("torch", "cuda_build", "cudnn", "nccl")}
    report |= {"driver": driver and driver._asdict(), "devices": about.get("devices", [])}
    report |= {"cpu": {**cpu(), "threads": about.get("threads"), "torch": about.get("capability")}, "limits": limits()}
    told = [{key: value for key, value in verdict._asdict().items() if key != "value"} for verdict in verdicts]
    return {**report, **others, "dependencies": dependencies(), "features": told}


def plan(devices: Sequence[str]) -> tuple[list[Attempt], list[Attempt]]:
    """What is worth trying, in two groups that take about equally long. `devices`: besides the CPU, as cuda:0 and mps."""
    device = [*devices, "cpu"][0]
    first = [Attempt("torchvision", "torchvision_operator"), Attempt("decode a JPEG", "decode_jpeg")]
    first += [Attempt(f"train on {name}", "train", (name, "32-true")) for name in ("cpu", *devices)]
    first += [Attempt(f"{precision} on {device}", "train", (device, precision, 1)) for precision in PRECISIONS]
    first += [Attempt(f"export {format}", "export", (format,)) for format in ("torchscript", "onnx", "pt2")]
    first.append(Attempt("loader processes", "load_with_workers"))
    second = [Attempt("ddp on 2 x cpu", "ddp", ("gloo",), LONG_S), Attempt("torch.compile", "compile_network", (device,), LONG_S)]
    return first, [*second, Attempt("ddp on 2 x cuda", "ddp", ("nccl",), LONG_S)]


def judge(found: Verdict, driver: Driver | None, plain_s: float | None = None) -> Verdict:
    """A verdict with the reason in a line and what mends it. By `plain_s`, seconds of a step in 32-true, a precision is slow."""
    name, state, reason, helps = found.name, found.state, found.reason, None
    if state == "no":
        helps, lines = mend(name, str(reason), driver), str(reason).strip().splitlines() or ["it does not say why"]
        reason = lines[-1 if "Traceback (most recent call last)" in str(reason) else 0].strip()[:300]
    elif state == "ok" and plain_s and name.partition(" ")[0] in PRECISIONS and found.value > SLOW_STEP * plain_s:
        state, helps = "slow", "--precision 32-true"
        reason = f"a step takes {found.value / plain_s:.0f} times as long as in 32-true"
    elif state == "ok" and found.seconds > SLOW_S:
        state, reason = "slow", "it works, and takes long"
    needed = name.startswith(("torch", "decode", "train", "export")) and name != "torch.compile"
    return found._replace(state=state, reason=reason, mend=helps, needed=needed)


def no_gpu(about: Mapping[str, Any], driver: Driver | None) -> Verdict:
    """Why there is no GPU that torch can use: there is none, the build has no CUDA, or it does not fit the driver."""
    absent, build, hidden = Verdict("train on a GPU", "not here"), about["cuda_build"], os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver is None or (driver.version is None and driver.cuda is None):
        return absent._replace(reason="there is no GPU that torch can use" + (f" ({driver.error})" if driver else ""))
    reason = f"this torch is built for CUDA {build}; driver {driver.version} knows CUDA up to {driver.cuda}"
    helps = install_torch(driver)
    # A driver runs every build of its own CUDA's major version and of earlier ones: 13.x from driver 580 on, 12.x from 525 on
    # (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, Table 1).
    if build == "CPU only":
        reason = "there is an NVIDIA driver, and this torch is built for the CPU only"
    elif driver.cuda is None or release(driver.cuda).major >= release(build).major:
        if hidden is not None:
            return absent._replace(reason=f"CUDA_VISIBLE_DEVICES is {hidden!r}", mend="unset CUDA_VISIBLE_DEVICES")
        reason = (about["cuda_error"] or "torch sees no GPU, and does not say why").splitlines()[0][:300]
        helps = "nvidia-smi; in Docker: docker run --gpus all"
    return absent._replace(state="no", reason=reason, mend=helps, needed=True)


def mend(name: str, error: str, driver: Driver | None) -> str | None:
    """The command or flag that helps against an error, where one is known."""
    missing = re.search(r"No module named '(\w+)", error)
    if name == "torch" or "torchvision" in error or (missing and missing[1] == "torch"):
        return install_torch(driver)
    if missing:
        return f"pip install --force-reinstall {missing[1]}"
    known = (helps for sign, helps in MENDS.items() if re.search(sign, error))
    return next(known, "--precision bf16-true" if name.startswith("16-true") else None)


def print_report(report: Mapping[str, Any]) -> None:
    """The report as tables, 80 columns wide; what does not work follows in plain lines, whose commands can be copied."""
    from lit_guide.engine.run.screen import print_table

    driver, processor, limit = report["driver"], report["cpu"], report["limits"]
    known = f"{driver['version'] or '?'}, for CUDA up to {driver['cuda'] or '?'}" if driver else "none"
    has = ", ".join(name for name in INSTRUCTIONS if processor[name])
    rows = [["Python", report["python"]], ["torch", report["torch"]], ["CUDA build", report["cuda_build"]]]
    rows += [["NVIDIA driver", known], ["cuDNN", report["cudnn"]], ["NCCL", report["nccl"]]]
    rows += [[d["device"], f"{d['name']}, {d['memory_gb']} GB, capability {d['capability'] or '-'}"] for d in report["devices"]]
    rows.append(["CPU", f"{processor['model']}, {processor['cores']} cores, {processor['threads'] or '?'} threads of torch"])
    if cores := report.get("cores"):
        threads = min(filter(None, (processor["threads"], cores["most_threads"])), default="?")
        told = f"{cores['usable']} by affinity, quota {cores['quota'] or 'none'}, load {cores['load']}"
        rows.append(["cores", f"{told}: trains with {threads} threads"])
    rows.append(["instructions", f"{has or '-'}; torch uses {processor['torch'] or '?'}"])
    rows.append(["/dev/shm", limit["shm_gb"] and f"{limit['shm_gb']} GB"])
    rows += [["open files", limit["open_files"]], ["free disk", f"{limit['free_disk_gb']} GB"]]
    print_table(f"lit-guide {report['version']} on {report['system']}", ("", ""), rows)
    rows = [list(package.values()) for package in report["dependencies"]]
    print_table("Dependencies", ("package", "installed", "tested", ""), rows)
    tried = report["features"]
    print_table("Features", ("feature", "works", "seconds"), ([f["name"], f["state"], f"{f['seconds']:.1f}"] for f in tried))
    for feature in tried:
        if feature["reason"]:
            say(f"{feature['name']}: {feature['state']}: {feature['reason']}")
        if feature["mend"]:
            say(f"  try: {feature['mend']}")
