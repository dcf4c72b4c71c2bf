"""What is in this machine and in this environment, found without torch."""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_guide.engine.machine import usable_cores

INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512f", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}  # in /proc/cpuinfo
# The newest CUDA that a driver knows, and the folder of wheels for it: each has a torch of 2.10 or later.
WHEELS = (("13.0", "cu130"), ("12.8", "cu128"), ("12.0", "cu126"))


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says: the driver's version and the newest CUDA it knows; or why it says nothing."""

    version: str | None = None
    cuda: str | None = None
    error: str | None = None


def nvidia_driver() -> Driver | None:
    """The NVIDIA driver; None where there is no trace of one."""
    version = cuda = error = None
    with suppress(OSError):
        kernel = Path("/proc/driver/nvidia/version").read_text()
        version = "".join(re.findall(r"Module\s+(?:for \S+\s+)?([\d.]+)", kernel)[:1]) or None
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Driver(version, error="there is no nvidia-smi") if Path("/proc/driver/nvidia").exists() else None
    try:
        said = subprocess.run([smi], capture_output=True, text=True, errors="replace", timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as failure:
        return Driver(version, error=f"nvidia-smi: {failure}")
    # Drivers from 610 on say KMD and CUDA UMD.
    version = "".join(re.findall(r"(?:Driver|KMD) Version:\s*([\d.]+)", said)[:1]) or version
    cuda = "".join(re.findall(r"CUDA (?:UMD )?Version:\s*([\d.]+)", said)[:1]) or None
    if cuda is None:
        error = " ".join(said.split())[:200] or "nvidia-smi says nothing"
    return Driver(version, cuda, error)


def too_old(driver: Driver, build: str) -> bool:
    """Whether a driver is too old for a CUDA build of torch.

    A driver runs every build of its own CUDA's major version and of earlier ones: 13.x from driver 580 on, 12.x from 525 on, 11.x
    from 450 on (NVIDIA, "CUDA Compatibility", Minor Version Compatibility, Table 1:
    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
    """
    return driver.cuda is not None and numbers(driver.cuda)[:1] < numbers(build)[:1]


def install_torch(driver: Driver | None) -> str:
    """The command that installs a torch that fits the driver, with the torchvision that fits that torch.

    Args:
        driver: None where there is no NVIDIA GPU. With one, which wheels the folders on PyTorch's own index hold:
            https://pytorch.org/get-started/previous-versions/
    """
    command = "pip install --upgrade --force-reinstall torch torchvision"
    if driver is None or driver.cuda is None:
        return command
    folder = next((folder for cuda, folder in WHEELS if numbers(driver.cuda) >= numbers(cuda)), None)
    if folder is None:
        return f"a driver of version 580 or later, then: {command}"
    if folder == "cu130" and sys.platform == "linux":  # what the plain command gives there
        return command
    return f"{command} --index-url https://download.pytorch.org/whl/{folder}"


def cpu() -> dict[str, Any]:
    """Model, cores this process may use, and the vector instructions that matter; None where the system does not tell."""
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    model = "".join(re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE)[:1])
    if not model and sys.platform == "darwin":
        model = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False).stdout
    flags = set(re.findall(r"^flags\s*: (.+)$", text, re.MULTILINE)[0].split()) if "\nflags" in text else None
    known = {name: None if flags is None else flag in flags for name, flag in INSTRUCTIONS.items()}
    return {"model": model.strip() or platform.processor() or platform.machine(), "cores": usable_cores(), **known}


def limits() -> dict[str, Any]:
    """Shared memory and free disk space here, in GB, and how many files a process may open; None where there is no such thing."""
    open_files = None
    if sys.platform != "win32":
        import resource

        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    shm = Path("/dev/shm")
    return {
        "shm_gb": round(shutil.disk_usage(shm).total / 1e9, 2) if shm.is_dir() else None,
        "open_files": open_files,
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def dependencies() -> list[dict[str, str | None]]:
    """Name, installed and tested version of each dependency, and what that means; optional ones only where they are installed.

    The tested versions are those of constraints.txt, which lies beside the package; the requirements are those of the installed
    package, or of pyproject.toml where it runs from its folder.
    """
    tested: dict[str, str] = {}
    package = Path(__file__).parents[2]
    for path in (package.parent / "constraints.txt", package / "constraints.txt"):
        with suppress(OSError):
            tested |= {_plain(name): v for name, v in re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE)}
    found: list[dict[str, str | None]] = []
    requires: list[str] = []
    try:
        requires = metadata.requires("lit-guide") or []
    except metadata.PackageNotFoundError:
        with suppress(OSError):
            project = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            requires = project["dependencies"]
    for requirement in requires:
        rule, _, condition = requirement.partition(";")
        name = re.split(r"[^\w.-]", rule, maxsplit=1)[0]
        version = None
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
        if "dev" in condition or (version is None and "extra" in condition):
            continue
        state = compared(version, rule, tested.get(_plain(name)))
        found.append({"name": name, "version": version, "tested": tested.get(_plain(name)), "state": state})
    return found


def compared(version: str | None, rule: str, tested: str | None) -> str:
    """What an installed version means, given a requirement such as lightning>=2.6.6,<3 and the tested version."""
    if version is None:
        return "missing"
    for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", rule):
        if sign == ">=" and numbers(version) < numbers(bound):
            return f"too old: it takes {bound} or later"
        if sign == "<" and numbers(version) >= numbers(bound):
            return f"too new: it takes one before {bound}"
    if tested is None:
        return "in the range"
    return "tested" if numbers(version) == numbers(tested) else "newer" if numbers(version) > numbers(tested) else "older"


def numbers(version: str) -> tuple[int, ...]:
    """The release number of a version: 2.10.0+cu130 -> (2, 10), so that 2.10 is as old as 2.10.0."""
    release = re.match(r"[\d.]*", version)
    found = [int(number) for number in re.findall(r"\d+", release[0] if release else "")]
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    return tuple(found)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
