"""The training loss: cross-entropy, or a class of torch.nn or of the project; smoothing and class weights where it takes them."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_guide.engine.allowed import import_class, path_of
from lit_guide.engine.errors import ConfigError, first_line

# What jsonargparse builds from `--model.loss MultiMarginLoss --model.loss.margin 0.5`, and a class or partial in Python.
LossFactory = Callable[[], nn.Module]


def describe_loss(loss: LossFactory | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A loss as plain values, its class by name, and its arguments; what is plain already stays as it is."""
    if loss is None or isinstance(loss, Mapping):
        return None if loss is None else dict(loss)
    keywords = loss.keywords if isinstance(loss, partial) else {}
    by_name = isinstance(loss, type) or (isinstance(loss, partial) and not (isinstance(loss.func, type) and loss.args))
    if not by_name:
        raise ConfigError("model.loss is kept in checkpoints by name: give a class, or functools.partial(CLASS, name=value).")
    given = {key: value for key, value in keywords.items() if value is not None}
    return {"name": path_of(type(loss())), **given}


def loss_class(name: str) -> type[nn.Module]:
    """The class that `describe_loss` named.

    Raises:
        ConfigError: there is none, or it may not be imported.
    """
    found = import_class(name if "." in name else f"torch.nn.{name}", nn.Module, "model.loss")
    if issubclass(found, LightningModule):
        raise ConfigError(f"model.loss: {name} is a model, not a loss.")
    return found


def build_loss(
    described: Mapping[str, Any] | None,
    classes: int,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | str | None = None,
    **more: Any,
) -> nn.Module:
    """Build a loss from what `describe_loss` gave.

    Args:
        described: None for cross-entropy.
        classes: number of classes K.
        label_smoothing: passed on as `label_smoothing`.
        class_weights: passed on as `weight`, float32 (K,), kept out of checkpoints; for auto ones, to be filled in.
        more: further arguments, such as reduction, that only a loss that takes them gets.

    Raises:
        ConfigError: the loss does not take what is given; the message names it.
    """
    described = described or {"name": "CrossEntropyLoss"}
    name, arguments = str(described["name"]), {key: value for key, value in described.items() if key != "name"}
    cls = loss_class(name)
    takes = inspect.signature(cls).parameters
    arguments |= {key: value for key, value in more.items() if key in takes}
    if label_smoothing:
        arguments["label_smoothing"] = label_smoothing
    if class_weights is not None:
        arguments["weight"] = torch.ones(classes) if isinstance(class_weights, str) else torch.tensor(class_weights)
    for argument, key in {"label_smoothing": "label_smoothing", "weight": "class_weights"}.items():
        if argument in arguments and argument not in takes:
            raise ConfigError(f"model.{key} is set, but {name} takes no {argument}: leave the key out, or use another loss.")
    try:
        loss = cls(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.loss: {name} can't be built: {error}.") from None
    if class_weights is not None:
        kept = getattr(loss, "weight", None)
        if not isinstance(kept, torch.Tensor):
            raise ConfigError(f"model.class_weights is set, but {name} keeps no tensor `weight`, as the losses of torch.nn do.")
        loss.register_buffer("weight", kept, persistent=False)
    try_loss(loss, classes)
    return loss


def try_loss(loss: nn.Module, classes: int, shares: bool = False) -> None:
    """See, before training, that a loss takes logits (B, K) and labels (B,), or (B, K) `shares` of classes.

    Raises:
        ConfigError: it does not; the message names it.
    """
    label_B = torch.arange(classes + 1) % classes  # K + 1 images: a loss that broadcasts would take K for a row of logits
    target = nn.functional.one_hot(label_B, classes).float() if shares else label_B
    like = next(chain(loss.parameters(), loss.buffers()), target)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss(torch.zeros(len(label_B), classes, device=like.device), target.to(like.device))
    except Exception as error:  # a loss of one's own may raise anything
        what = f"takes no shares of classes, {tuple(target.shape)}, as MixUp and CutMix give them"
        what = what if shares else f"takes no logits {len(label_B), classes} with labels ({len(label_B)},)"
        raise ConfigError(f"model.loss: {type(loss).__name__} {what}: {first_line(error)}") from None
