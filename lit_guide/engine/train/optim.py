"""Optimizers and learning rate schedules: as plain values and back, over a resume, and `WarmupCosine`."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_guide.engine.errors import ConfigError

# What jsonargparse builds from `--model.optimizer SGD --model.optimizer.lr 0.1`, and a functools.partial in Python.
OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=1e-3)
WEIGHTS = [Parameter(torch.zeros(2, 2))]  # to build an optimizer for, only to look at it


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


def lay_out(checkpoint: dict[str, Any], memory_format: torch.memory_format) -> None:
    """Bring the optimizer states of a checkpoint into the memory format of the weights, in place.

    Fused optimizers go over both as they lie in memory and do not look: elsewhere, weights would get each other's momentum.
    """
    for optimizer in checkpoint["optimizer_states"]:
        for state in optimizer["state"].values():
            images = {key: value for key, value in state.items() if isinstance(value, torch.Tensor) and value.ndim == 4}
            state.update({key: value.contiguous(memory_format=memory_format) for key, value in images.items()})


def carry_over(checkpoint: dict[str, Any], now: Mapping[str, Any], lr_factor: int = 1) -> None:
    """Let optimizer and scheduler settings given now win over the ones in a checkpoint's optimizer state.

    A kept schedule goes on from where it was, scaled to the new learning rate; without it the rate is the one given.
    Another class of optimizer or scheduler starts with a state of its own. The checkpoint is changed in place, before the
    trainer restores from it; `now` are the hyperparameters of the model that will go on.
    """
    saved = checkpoint["hyper_parameters"]
    if saved.get("optimizer", {}).get("name") != now["optimizer"]["name"]:
        checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
        return
    if saved.get("scheduler") != now["scheduler"]:
        checkpoint["lr_schedulers"] = []
    changed = {key: value for key, value in now["optimizer"].items() if saved["optimizer"].get(key) != value}
    before = from_plain(saved["optimizer"], Optimizer)(WEIGHTS).defaults["lr"]
    after = changed.get("lr", before) * lr_factor
    before *= checkpoint.get("lr_factor", 1)
    scale = after / before if before else 1.0
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            lr = group["lr"] * scale if checkpoint["lr_schedulers"] else after
            group.update({**changed, "lr": lr})
            if "initial_lr" in group:  # OneCycleLR has one of its own
                group["initial_lr"] = group["initial_lr"] * scale if checkpoint["lr_schedulers"] else after
    for state in checkpoint["lr_schedulers"]:
        for key in {"base_lrs", "_last_lr"} & set(state):
            state[key] = [lr * scale for lr in state[key]]


def describe_optimizer(factory: Any) -> dict[str, Any]:
    """An optimizer factory as plain values: name and arguments; what is plain already stays as it is."""
    return dict(factory) if isinstance(factory, Mapping) else to_plain(factory, WEIGHTS)


def describe_scheduler(factory: Any, optimizer: Any) -> dict[str, Any] | None:
    """A scheduler factory as plain values, likewise."""
    if factory is None or isinstance(factory, Mapping):
        return None if factory is None else dict(factory)
    steps = {"total_steps": 100} if wants_total_steps(factory) else {}
    plain = to_plain(partial(factory, **steps), from_plain(optimizer, Optimizer)(WEIGHTS))
    return {key: value for key, value in plain.items() if key not in steps}


def to_plain(factory: Callable[..., Any], argument: Any) -> dict[str, Any]:
    """The class that a factory builds, by name, and its keyword arguments: strings, numbers and lists only."""
    try:
        built = factory(argument)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.optimizer or model.scheduler can't be built: {error}") from None
    keywords = factory.keywords if isinstance(factory, partial) else {}
    return {"name": type(built).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in keywords.items()}}


def from_plain(factory: Any, base: type) -> Any:
    """A factory from what `to_plain` made of it; nothing is imported: the class must exist already."""
    if not isinstance(factory, Mapping):
        return factory
    name, keywords = factory["name"], {k: v for k, v in factory.items() if k != "name"}
    found = find_class(name, base)
    if found is None:
        raise ConfigError(f"There is no {base.__name__} called {name!r}: import the module that defines it first.")
    return partial(found, **keywords)


def find_class(name: str, base: type) -> type | None:
    """An imported class below `base` by its name, torch's own first (Lightning has a ReduceLROnPlateau too)."""
    found = [cls for cls in subclasses(base) if cls.__name__ == name]
    return min(found, key=lambda cls: not cls.__module__.startswith("torch."), default=None)


def subclasses(base: type) -> list[type]:
    """Every imported class below `base`."""
    direct: list[type] = base.__subclasses__()
    return [found for cls in direct for found in (cls, *subclasses(cls))]


def wants_total_steps(factory: Callable[..., Any]) -> bool:
    """Whether a scheduler takes the run's number of steps and has not been given it."""
    keywords = factory.keywords if isinstance(factory, partial) else {}
    if "total_steps" in keywords:  # jsonargparse's partial, whose signature says nothing
        return keywords["total_steps"] is None
    return "total_steps" in inspect.signature(factory).parameters
