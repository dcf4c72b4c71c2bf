"""`data check` on 10,000 photos against a bare parallel decode of the same files, and what a large index weighs.

Claims:

- a check (decoding, sizes, modes, equal and near duplicates, the report) does >= 0.9 times the images/s of a bare decode: two
  threads that read each file and call torchvision's `decode_jpeg`, and do nothing with it. Median of the ratios of 5 rounds in
  alternation (n = 5), 10,000 JPEGs of 500 x 375 pixels, no cache.
- `lit-guide data check` as a process of its own needs <= 600 MiB at its peak beyond what it needs for 20 photos (the kernel's
  figures, n = 1). The latter is what importing torch, torchvision and lightning takes; the record has both.
- the index of a set of 1,000,000 files, as loader processes share it (paths such as `class0007/image_0123456.jpg`, labels, and
  the rows of the splits), weighs <= 120 bytes a file (n = 1).

    python benchmarks/data_check.py [--quick]
"""

import pickle
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import photos
import record
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from lit_guide.data import FolderData
from lit_guide.engine.photos.dataset import ImageDataset, Listing, Paths
from lit_guide.engine.photos.module import PhotoData
from lit_guide.parts.inspect.check import check

IMAGES, ROUNDS, THREADS = 10_000, 5, 2
RATE, MEMORY, INDEX = 0.9, 600.0, 120.0


def bare(paths: list[Path]) -> None:
    """Read and decode, in chunks so that handing out tasks costs nothing."""

    def some(chunk: list[Path]) -> None:
        for path in chunk:
            decode_jpeg(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), mode=ImageReadMode.RGB)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, [paths[start : start + 32] for start in range(0, len(paths), 32)]))


def both(index: int, root: Path) -> dict[str, Any]:
    """One pass of each side; every second round starts with the other one."""
    paths = sorted(root.rglob("*.jpg"))
    seconds: dict[str, float] = {}
    for side in ("bare", "check") if index % 2 else ("check", "bare"):
        started = time.perf_counter()
        if side == "bare":
            bare(paths)
        else:
            report = check(FolderData(str(root)))
            if report.images != len(paths) or any(finding.kind == "unreadable" for finding in report.findings):
                raise SystemExit(f"The check found {report.images} images: {report.findings}")
        seconds[side] = time.perf_counter() - started
    rates = {f"{side}_images_per_s": round(len(paths) / seconds[side], 1) for side in ("bare", "check")}
    return rates | {"ratio": round(seconds["bare"] / seconds["check"], 3)}


def peak_of_command(root: Path) -> float:
    """Peak memory of the real command in MiB. It may find near duplicates: the files are parts of two photos."""
    command = [sys.executable, "-m", "lit_guide", "data", "check", "--config", "configs/folder.yaml", "--data.root", str(root)]
    # A process between this one and the command: its largest child is the command alone.
    measure = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=2).returncode; "
    measure += "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", measure, *command], cwd=folder, capture_output=True, text=True)
        if not (Path(folder) / "data_check.json").is_file():
            raise SystemExit(f"data check failed:\n{done.stderr}")
    code, peak = done.stdout.split()
    assert code in "01"
    return float(peak)


class Listed(PhotoData):
    """A set of so many files that are never opened."""

    count = 0

    def scan(self) -> Listing:
        """Names alone."""
        paths = Paths(f"class{number % 1000:04}/image_{number:07}.jpg" for number in range(self.count))
        return Listing(Path(), paths, np.arange(self.count) % 1000, [f"class{k:04}" for k in range(1000)])


def index_bytes_per_file(count: int) -> float:
    """What the index of a set holds once it is divided, in bytes a file: as it is pickled for a loader process."""
    data = Listed()
    data.count = count
    rows = data.divide()
    dataset = ImageDataset(data.listing.root, data.listing.paths, torch.from_numpy(data.listing.labels_N))
    return len(pickle.dumps((dataset, rows), protocol=5)) / count


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    count = 1_000 if quick else IMAGES
    torch.set_num_threads(1)  # threads decode different files on both sides
    with tempfile.TemporaryDirectory() as folder:
        root = photos.make_folder(Path(folder) / "photos", count)
        few = peak_of_command(photos.make_folder(Path(folder) / "few", 20))
        memory = peak_of_command(root)
        both(0, root)  # warm-up
        repetitions, wait = (1, None) if quick else (ROUNDS, given.wait)
        rounds = record.repeat(repetitions, lambda index: both(index, root), wait)
    middle, n = record.medians(rounds), len(record.undisturbed(rounds))
    index = index_bytes_per_file(count * 100)
    print(f"medians: {middle}; peak {memory:.0f} MiB, {few:.0f} for 20 photos; index {index:.1f} bytes a file")
    claims = [
        record.claim("images/s of `data check` over those of a bare parallel decode", middle["ratio"], RATE, n, at_most=False),
        record.claim(f"peak memory of `data check` on {count:,} photos less that on 20, in MiB", memory - few, MEMORY, 1),
        record.claim(f"bytes a file in the index of {count * 100:,} files", index, INDEX, 1),
    ]
    settings = {"images": count, "threads": THREADS, "cores": record.cores(), "peak_mib": memory, "peak_mib_of_20_photos": few}
    return record.finish("data_check", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
