"""A set of a million files that was examined before is ready to train on in seconds.

Claims, of 1,000 class folders of 1,000 files each, medians of 5 rounds in alternation (n = 5):

- a `FolderData` lists them, finds by their names, sizes and times that they are known, and divides them into the splits in
  <= 8 s: all that is done of them from the start of a run to its first batch.
- that is <= 3 times a bare walk, which opens every folder with `os.scandir`, asks for the size and time of every file and keeps
  none of it.

The files are empty: nothing here opens them. What an examination would have found is written beforehand. The tree was walked
once before the first round, so the system has its folders in memory on both sides.

    python benchmarks/known_set.py [--quick]
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

from lit_guide.data import FolderData
from lit_guide.engine.photos.examine import Examined
from lit_guide.parts.cache.known import remember

CLASSES, FILES, ROUNDS = 1000, 1000, 5
SECONDS, RATIO = 8.0, 3.0


def make_tree(root: Path, classes: int, files: int) -> None:
    """Class folders of empty files."""
    for k in range(classes):
        folder = root / f"class{k:04}"
        folder.mkdir(parents=True)
        for number in range(k * files, (k + 1) * files):
            (folder / f"image_{number:07}.jpg").touch()


def walk(folder: str) -> int:
    """Ask for the size and time of every file; how many there are."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                count += walk(entry.path)
            else:
                entry.stat()
                count += 1
    return count


def both(index: int, root: Path, store: Path, count: int) -> dict[str, Any]:
    """One pass of each side; every second round starts with the other one."""
    figures: dict[str, Any] = {}
    for side in ("walk", "known") if index % 2 else ("known", "walk"):
        started = time.perf_counter()
        if side == "walk":
            found = walk(str(root))
        else:
            data = FolderData(str(root), cache_dir=str(store))
            found = len(data.listing.paths)
            figures["listing_s"] = round(time.perf_counter() - started, 3)
            assert sum(map(len, data.rows.values())) == found
        figures[f"{side}_s"] = round(time.perf_counter() - started, 3)
        assert found == count
    return figures | {"ratio": round(figures["known_s"] / figures["walk_s"], 3)}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    files = 10 if quick else FILES
    count = CLASSES * files
    with tempfile.TemporaryDirectory() as folder:
        root, store = Path(folder) / "photos", Path(folder) / "store"
        make_tree(root, CLASSES, files)
        listing = FolderData(str(root)).listing
        remember(listing.root, listing.paths, store, Examined({}, []))
        both(0, root, store, count)  # warm-up
        repetitions, wait = (1, None) if quick else (ROUNDS, given.wait)
        rounds = record.repeat(repetitions, lambda index: both(index, root, store, count), wait)
    middle, n = record.medians(rounds), len(record.undisturbed(rounds))
    print(f"medians: {middle}")
    claims = [
        record.claim(f"seconds to list, recognise and divide {count:,} known files", middle["known_s"], SECONDS, n),
        record.claim(f"the same over a bare walk of {count:,} files", middle["ratio"], RATIO, n),
    ]
    settings = {"classes": CLASSES, "files_a_class": files, "cores": record.cores()}
    return record.finish("known_set", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
