"""`lit-guide --help` and `lit-guide --version` answer without importing torch.

Claim: each takes <= 0.05 times as long as the same flag of a stock LightningCLI script; median of the ratios of 9 pairs of
processes in alternation (n = 9), wall time. The stock script builds `LightningCLI(LitLike, DataLike)` and has a version
through `parser_kwargs`, nothing more.

    python benchmarks/startup.py [--quick]
"""

import shutil
import statistics
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


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stock.py").write_text(STOCK, encoding="utf-8")
        sides = {"ours": [console_script()], "stock": [sys.executable, "stock.py"]}
        for flag in FLAGS:  # warm-up: files into the cache
            for command in sides.values():
                seconds([*command, f"--{flag}"], folder)
        for index in range(1 if quick else PAIRS):
            pair: dict[str, Any] = {"others": None if quick else record.wait_for_quiet(given.wait)}
            for flag in FLAGS:
                order = list(sides) if index % 2 else list(reversed(sides))
                pair |= {f"{flag}_{side}_s": round(seconds([*sides[side], f"--{flag}"], folder), 4) for side in order}
                pair[f"{flag}_ratio"] = round(pair[f"{flag}_ours_s"] / pair[f"{flag}_stock_s"], 5)
            pairs.append(pair)
            print(pair, flush=True)
    medians = {name: round(statistics.median(pair[name] for pair in pairs), 5) for name in pairs[0] if name != "others"}
    print(f"medians: {medians}")
    claims = [
        record.claim(f"time of `lit-guide --{flag}` over that of a stock LightningCLI", medians[f"{flag}_ratio"], LIMIT)
        for flag in FLAGS
    ]
    return record.finish("startup", claims, pairs, medians, {"pairs": PAIRS}, quick)


if __name__ == "__main__":
    sys.exit(main())
