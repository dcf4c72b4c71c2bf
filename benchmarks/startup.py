"""`lit-guide --help` and `lit-guide --version` answer without importing torch.

Claim: each takes <= 0.05 times as long as the same flag of a stock LightningCLI script; median of the ratios of 9 pairs of
processes in alternation (n = 9), wall time. The stock script builds `LightningCLI(LitLike, DataLike)` and has a version
through `parser_kwargs`, nothing more.

    python benchmarks/startup.py [--quick]
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import record

PAIRS = 9
LIMIT = 0.05
FLAGS = ("help", "version")
STOCK = '''
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI


class LitLike(LightningModule):
    """A model with a few arguments."""

    def __init__(self, width: int = 32, lr: float = 1e-3, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 10)


class DataLike(LightningDataModule):
    """Data with a few arguments."""

    def __init__(self, batch_size: int = 64, num_workers: int = 0) -> None:
        super().__init__()


if __name__ == "__main__":
    LightningCLI(LitLike, DataLike, parser_kwargs={"version": "1.0"})
'''


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one process that must end well and print something."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return elapsed


def console_script() -> str:
    """The `lit-guide` of this interpreter."""
    beside = Path(sysconfig.get_path("scripts")) / "lit-guide"
    found = str(beside) if beside.is_file() else shutil.which("lit-guide")
    if found is None:
        raise SystemExit("lit-guide is not installed: pip install -e .")
    return found


def pair(index: int, sides: dict[str, list[str]], folder: str) -> dict[str, Any]:
    """Both flags on both sides; every second pair starts with the other side."""
    figures: dict[str, Any] = {}
    for flag in FLAGS:
        for side in list(sides) if index % 2 else list(reversed(sides)):
            figures[f"{flag}_{side}_s"] = round(seconds([*sides[side], f"--{flag}"], folder), 4)
        figures[f"{flag}_ratio"] = round(figures[f"{flag}_ours_s"] / figures[f"{flag}_stock_s"], 5)
    return figures


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stock.py").write_text(STOCK, encoding="utf-8")
        sides = {"ours": [console_script()], "stock": [sys.executable, "stock.py"]}
        pair(0, sides, folder)  # warm-up: files into the cache
        pairs = record.repeat(1 if quick else PAIRS, lambda index: pair(index, sides, folder), None if quick else given.wait)
    middle = record.medians(pairs)
    print(f"medians: {middle}")
    count = len(record.undisturbed(pairs))
    claims = [
        record.claim(f"time of `lit-guide --{flag}` over that of a stock LightningCLI", middle[f"{flag}_ratio"], LIMIT, count)
        for flag in FLAGS
    ]
    return record.finish("startup", claims, pairs, middle, {"flags": list(FLAGS)}, quick)


if __name__ == "__main__":
    sys.exit(main())
