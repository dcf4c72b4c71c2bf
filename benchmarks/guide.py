"""The guide is quick to build and to run, so that CI does both each time.

Claims, wall time of whole processes on 2 cores: `docs/build.py` builds the sites of both languages and all notebooks, from
nothing, in <= 60 s (the longest of n = 3); every block of every chapter runs, the English ones as notebooks and the Chinese ones
as they stand there, two chapters at a time as in `make test-slow`, in <= 300 s (n = 1).

    python benchmarks/guide.py [--quick]
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).parent.parent
BUILDS, CORES = 3, 2
BUILD_SECONDS, BLOCK_SECONDS = 60.0, 300.0
BLOCKS = ["-m", "pytest", "-q", "tests/docs/test_guide.py", "tests/docs/test_notebooks.py", "-n", "2", "--dist", "loadfile"]


def build() -> dict[str, Any]:
    """Build all of it into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        return {"build_s": round(record.call(sys.executable, "docs/build.py", folder, cwd=ROOT), 2)}


def run(which: str) -> dict[str, Any]:
    """Run the blocks of the chapters that pytest's -k chooses."""
    return {"blocks_s": round(record.call(sys.executable, *BLOCKS, "-k", which, cwd=ROOT, OMP_NUM_THREADS="1"), 2)}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick, wait = given.quick, None if given.quick else given.wait
    record.keep_to(CORES)
    which = "runs and 03_autograd" if quick else "runs"
    builds = record.repeat(1 if quick else BUILDS, lambda index: build(), wait)
    runs = record.repeat(1, lambda index: run(which), wait)
    longest = max(item["build_s"] for item in record.undisturbed(builds))
    blocks = record.undisturbed(runs)[0]["blocks_s"]
    claims = [
        record.claim("seconds to build the guide in both languages", longest, BUILD_SECONDS, len(record.undisturbed(builds))),
        record.claim("seconds to run every block of the guide, in both languages", blocks, BLOCK_SECONDS, 1),
    ]
    middle = record.medians(builds) | record.medians(runs)
    return record.finish("guide", claims, [*builds, *runs], middle, {"blocks": BLOCKS}, quick)


if __name__ == "__main__":
    sys.exit(main())
