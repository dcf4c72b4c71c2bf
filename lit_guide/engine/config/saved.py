"""A checkpoint's hyperparameters, under what is typed or in a file: they are never parsed, wherever the checkpoint comes from."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_guide.engine.errors import UserError
from lit_guide.engine.train.losses import loss_class
from lit_guide.engine.train.optim import find_class

FACTS = ("class_names", "input_shape", "mean", "std")  # what a model is told of the data
BY_NAME: dict[str, type] = {"optimizer": Optimizer, "scheduler": LRScheduler, "loss": nn.Module}  # what is a class by its name


def classes_of(hyper_parameters: Mapping[str, Any], keys: Mapping[str, type], path: str) -> dict[str, dict[str, Any]]:
    """The classes that a checkpoint names, as defaults of a parser, which completes them.

    `keys` are those of `BY_NAME` that count. An argument that is text which a parser could take for a path, or for more than a
    value, is a UserError that names `path`, the checkpoint's file.
    """
    found = {}
    for key, base in keys.items():
        arguments = dict(hyper_parameters.get(key) or {})
        name = arguments.pop("name", None)
        cls = None if name is None else loss_class(name) if key == "loss" else find_class(name, base)
        if cls is None:
            continue
        if odd := [argument for argument, value in arguments.items() if not is_word(value)]:
            raise UserError(f"{path} was refused: {key}.{odd[0]} of its hyperparameters is no number and no word.")
        found[key] = {"class_path": path_of_class(cls), "init_args": arguments}
    return found


def left_out(typed: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The other values of a checkpoint, for the keys that neither a flag nor a file gives."""
    return {key: value for key, value in hyper_parameters.items() if key not in (*FACTS, *BY_NAME) and key not in typed}


def is_word(value: Any) -> bool:
    """Whether a plain value is a number, a word, or a list of such: nothing that could be parsed."""
    if isinstance(value, list | tuple):
        return all(map(is_word, value))
    return value.isidentifier() if isinstance(value, str) else not isinstance(value, Mapping)


def path_of_class(cls: type) -> str:
    """The dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
