"""What this machine gives a run: cores, and the precisions that training knows."""

import os

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
# float16 on a CPU: torch has no mixed precision with it, and in pure float16 Adam's epsilon is 0 and the loss NaN in step 2.
ON_CPU = {"16": "bf16-mixed", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
