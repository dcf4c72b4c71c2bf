"""Learning rate schedules beyond torch's own: `--model.scheduler WarmupCosine`."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to zero at the last step (Loshchilov & Hutter, arXiv:1608.03983, no restarts).

    Args:
        optimizer: its learning rate is the peak.
        warmup: share of all steps spent warming up.
        total_steps: optimizer steps of the whole run; `LitClassifier` fills it in.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, total_steps: int | None = None) -> None:
        if total_steps is None or total_steps < 1:
            raise ValueError(f"WarmupCosine needs the run's number of steps, got total_steps={total_steps}")
        rising = max(1, round(warmup * total_steps))
        falling = max(1, total_steps - rising)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / rising
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / falling)))

        super().__init__(optimizer, factor)
