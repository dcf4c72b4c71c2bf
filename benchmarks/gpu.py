"""What is claimed about a GPU, in five minutes: `make bench-gpu`. Each script has its own record; this prints a line for each."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from tests.gpu import kit  # noqa: E402


def script(where: kit.Where, name: str, seconds: int) -> str:
    """Run a benchmark; its claims. On the CPU, a smoke test of it."""
    flags = ["--seconds", str(seconds), "--wait", "5"] if where.device == "cuda" else ["--quick", "--device", "cpu"]
    line = [sys.executable, str(HERE / f"{name}.py"), *flags]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    claims = "; ".join(re.findall(r": (\S+ \(claim .*)", done.stdout))
    assert done.returncode == 0, claims or f"exit code {done.returncode}"
    return claims


# Each ends by itself well before its limit.
CHECKS = [
    kit.Check("gpu_step", partial(script, name="gpu_step", seconds=150), limit_s=200),
    kit.Check("gpu_small", partial(script, name="gpu_small", seconds=40), limit_s=80),
]

if __name__ == "__main__":
    sys.exit(kit.main("gpu_bench", CHECKS, [__file__], seconds=280, jobs=1))
