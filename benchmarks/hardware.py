"""What a record says of where it was made: versions, processor, GPU, date."""

import contextlib
import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "torchvision")


def environment() -> dict[str, Any]:
    """Versions, processor, GPU if there is one, and date."""
    from lit_guide import __version__

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "variables": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))},
        "versions": {
            "python": platform.python_version(),
            **{name.replace("-", "_"): version(name) for name in PACKAGES},
            "lit_guide": __version__,  # not of pip: the package need not be installed
        },
        **_gpu(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> dict[str, Any]:
    """What torch says of the first NVIDIA GPU, and the driver's version; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    about = torch.cuda.get_device_properties(0)
    driver = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(ask, capture_output=True, text=True, timeout=30).stdout.partition("\n")[0].strip()
    found = {"name": about.name, "capability": f"{about.major}.{about.minor}", "memory_mib": about.total_memory >> 20}
    built = {"build": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": {**found, "driver": driver, **built}}


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
