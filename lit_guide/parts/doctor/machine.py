"""What is in this machine and in this environment, found without torch."""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lit_guide.engine.machine import usable_cores

INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512f", "avx512_bf16": "avx512_bf16", "amx": "amx_tile"}  # in /proc/cpuinfo
# The newest CUDA that a driver knows, and the folder of wheels for it: each has a torch of 2.10 or later
# (https://pytorch.org/get-started/previous-versions/).
WHEELS = (("13.0", "cu130"), ("12.8", "cu128"), ("12.0", "cu126"))


class Driver(NamedTuple):
    """What nvidia-smi says: the driver's version and the newest CUDA it knows; or why it says nothing."""

    version: str | None = None
    cuda: str | None = None
    error: str | None = None


def nvidia_driver() -> Driver | None:
    """The NVIDIA driver; None where there is no trace of one."""
    known = Path("/proc/driver/nvidia/version")
    version = _first(r"Module\s+(?:for \S+\s+)?([\d.]+)", known.read_text()) if known.is_file() else None
    try:
        said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, errors="replace", timeout=10, check=False).stdout
    except FileNotFoundError:
        return Driver(version, error="there is no nvidia-smi") if known.parent.exists() else None
    except (OSError, subprocess.TimeoutExpired) as failure:
        return Driver(version, error=f"nvidia-smi: {failure}")
    version = _first(r"(?:Driver|KMD) Version:\s*([\d.]+)", said) or version  # drivers from 610 on say KMD, and CUDA UMD
    cuda = _first(r"CUDA (?:UMD )?Version:\s*([\d.]+)", said)
    return Driver(version, cuda, None if cuda else " ".join(said.split())[:200] or "nvidia-smi says nothing")


def install_torch(driver: Driver | None) -> str:
    """The command that installs a torch that fits the driver, if there is one, with the torchvision that fits that torch."""
    command = "pip install --upgrade --force-reinstall torch torchvision"
    if driver is None or driver.cuda is None:
        return command
    folder = next((folder for cuda, folder in WHEELS if release(driver.cuda) >= release(cuda)), None)
    if folder is None:
        return f"a driver of version 580 or later, then: {command}"
    if folder == "cu130" and sys.platform == "linux":  # what the plain command gives there
        return command
    return f"{command} --index-url https://download.pytorch.org/whl/{folder}"


def cpu() -> dict[str, Any]:
    """Model, cores this process may use, and the vector instructions that matter; None where the system does not tell."""
    told = Path("/proc/cpuinfo")
    text = told.read_text() if told.is_file() else ""
    model, flags = _first(r"^model name\s*: (.+)$", text), _first(r"^flags\s*: (.+)$", text)
    if sys.platform == "darwin":
        model = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False).stdout
    known = {name: flag in flags.split() if flags else None for name, flag in INSTRUCTIONS.items()}
    return {"model": (model or platform.processor() or platform.machine()).strip(), "cores": usable_cores(), **known}


def limits() -> dict[str, Any]:
    """Shared memory and free disk space here, in GB, and how many files a process may open; None where there is no such thing."""
    shm, open_files = Path("/dev/shm"), None
    with suppress(ImportError):  # Windows
        import resource

        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    size_gb = round(shutil.disk_usage(shm).total / 1e9, 2) if shm.is_dir() else None
    return {"shm_gb": size_gb, "open_files": open_files, "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)}


def dependencies() -> list[dict[str, str | None]]:
    """Name, installed and tested version of each dependency, and what that means; optional ones only where they are installed.

    They come from pyproject.toml and constraints.txt beside the package; of an installed package, without tested versions.
    """
    project, pinned, requires = Path(__file__).parents[3], "", list[str]()
    with suppress(OSError):
        settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
        requires = settings.get("project", {}).get("dependencies", [])
        pinned = (project / "constraints.txt").read_text(encoding="utf-8")
    tested = {canonicalize_name(name): v for name, v in re.findall(r"^([\w.-]+)==(\S+)", pinned, re.MULTILINE)}
    with suppress(metadata.PackageNotFoundError):
        requires = metadata.requires("lit-guide") or []
    found: list[dict[str, str | None]] = []
    for requirement in map(Requirement, requires):
        name, condition, version = requirement.name, str(requirement.marker or ""), None
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
        if "dev" not in condition and (version or "extra" not in condition):
            known = tested.get(canonicalize_name(name))
            found.append({"name": name, "version": version, "tested": known, "state": compared(version, requirement, known)})
    return found


def compared(version: str | None, requirement: Requirement, tested: str | None) -> str:
    """What an installed version means, given a requirement such as lightning>=2.6.6,<3 and the tested version."""
    if version is None:
        return "missing"
    installed, words = release(version), {">=": "too old: it takes {} or later", "<": "too new: it takes one before {}"}
    for bound in requirement.specifier:
        if bound.operator in words and not bound.contains(installed):
            return words[bound.operator].format(bound.version)
    if tested is None:
        return "in the range"
    return "tested" if installed == release(tested) else "newer" if installed > release(tested) else "older"


def release(version: str) -> Version:
    """The numbers of a version, so that 2.10.0a0+cu130 is as old as 2.10; 0 where there are none, as in "CPU only"."""
    return Version(_first(r"^(\d+(?:\.\d+)*)", version) or "0")


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None
