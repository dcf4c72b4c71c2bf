"""`python -m tests.gpu`: what only a GPU can show. `make test-gpu` calls it; CONTRIBUTING.md says how."""

import sys

from tests.gpu import inside, kit, training

if __name__ == "__main__":
    sys.exit(kit.main("gpu_tests", [*training.CHECKS, *inside.CHECKS], ["-m", "tests.gpu"], seconds=260, jobs=6))
