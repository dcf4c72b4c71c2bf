"""What a parsed configuration names, looked at before any of it is built: classes of the kinds there are, never functions."""

import inspect
from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import LambdaCallback, ThroughputMonitor
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from torch import nn

from lit_guide.engine.allowed import require_allowed
from lit_guide.engine.config.parser import SUGGESTED
from lit_guide.engine.errors import ConfigError

PACKAGE = __name__.split(".")[0]
# The kinds of classes that a configuration may name of torch, Lightning and the engine.
KINDS = (*SUGGESTED, nn.Module, Profiler, Accelerator, CheckpointIO, ClusterEnvironment, LayerSync, Precision)

REFUSED = (LambdaCallback, ThroughputMonitor, SpikeDetection)  # two take functions; the third's file may be a link that leads out


def check_named(value: Any, key: str = "") -> None:
    """See that a parsed configuration names classes alone, of the kinds there are.

    The parser has seen to it that a class is of the kind that its key takes, where the key is typed. Where it is not, such as in
    `model.network_args`, nothing is built, and what looks as if it were to be is refused.
    All of these are refused by a ConfigError.
    """
    if isinstance(value, Namespace) and "class_path" in value:
        require_allowed(value.class_path, key)
        cls = resolve_name(value.class_path)
        _check_class(cls, value.class_path, key)
        takes = inspect.signature(cls).parameters
        for name, argument in (vars(value.init_args) if "init_args" in value else {}).items():
            if name not in takes or argument is not takes[name].default:  # what is not named by a configuration may be anything
                check_named(argument, f"{key}.{name}")
        check_named(value.get("dict_kwargs"), key)
    elif isinstance(value, Mapping | Namespace):
        items = vars(value) if isinstance(value, Namespace) else value
        if "class_path" in items:
            raise ConfigError(f"{key}: class_path stands where no class is taken.")
        for name, argument in items.items():
            check_named(argument, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple | set):
        for argument in value:
            check_named(argument, key)
    elif inspect.isroutine(value) or isinstance(value, partial | type):
        _check_class(value, getattr(value, "__qualname__", repr(value)), key)


def _check_class(found: Any, path: str, key: str) -> None:
    if not isinstance(found, type):
        raise ConfigError(f"{key}: {path} is a function: a configuration names classes only.")
    owner = f"{found.__module__}."
    if owner.startswith(f"{PACKAGE}.engine."):
        fits = issubclass(found, KINDS) and "run_dir" not in inspect.signature(found).parameters  # `fit` gives it its own
    elif owner.startswith(("torch.", "lightning.")):
        fits = issubclass(found, KINDS) and found not in REFUSED
    else:  # it may be named by way of a module that imports it
        fits = True
        require_allowed(found.__module__, key)
    if not fits or (issubclass(found, LightningModule) and key != "model"):  # as a loss, its own arguments would go unseen
        raise ConfigError(f"{key}: {path} is no class that a configuration may name.")
