"""Which modules a configuration or a checkpoint may name classes of: nothing else is ever imported."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from jsonargparse import set_parsing_settings

from lit_guide.engine.errors import ConfigError
from lit_guide.engine.machine import also_typed, command

PACKAGE = __name__.split(".")[0]
ALWAYS = (
    "torch.optim",
    "torch.nn",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    PACKAGE,
)
_typed: list[str] = []  # by --allow
_command: list[str] = []  # what was typed, for an error that says how a package may be allowed


def allow(packages: list[str], typed: Sequence[str] = ()) -> None:
    """Let this command, and no other, import from these packages too: those that `--allow` names on the command line.

    Args:
        packages: their names.
        typed: the command line, its command first; empty where this is called from Python.

    Raises:
        ConfigError: what is named is no package that can be imported.
    """
    for package in packages:
        try:
            import_module(package)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"--allow {package}: it can't be imported ({error}). Install it, or name the package.") from None
    _typed[:], _command[:] = packages, typed
    also_typed[:] = [word for package in packages for word in ("--allow", package)]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=importable(), instantiate_subclass_spec_in_any=False)
    set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning lets any value be fetched from an address


def importable() -> list[str]:
    """The modules and packages whose classes may be named."""
    return [*ALWAYS, *_typed]


def how_to_allow(path: str) -> str:
    """What to type so that a class that was refused is taken."""
    package = path.partition(".")[0]
    typed = command(*_command, "--allow", package) if _command else f"{__name__}.allow([{package!r}])"
    return f"If you trust {package}: {typed}"


def is_allowed(path: str) -> bool:
    """Whether a dotted path lies in one of them."""
    return any(path == name or path.startswith(f"{name}.") for name in importable())


def require_allowed(path: str, key: str) -> None:
    """Refuse a dotted path that may not be imported by a ConfigError that says how it may; `key` is what named it."""
    if not is_allowed(path):
        raise ConfigError(
            f"{key}: {path} may not be imported: only classes of {', '.join(importable())} are. {how_to_allow(path)}"
        )


def import_class(path: str, base: type, key: str) -> type[Any]:
    """The class that a dotted path names.

    Args:
        path: such as my_project.mlp.MLP.
        base: what it must be a subclass of.
        key: what named it, for the message.

    Raises:
        ConfigError: the path may not be imported, there is nothing there, or it is no such class.
    """
    require_allowed(path, key)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:  # a file of one's own that is being written raises anything
        raise ConfigError(f"{key}: {path} can't be imported: {type(error).__name__}: {error}.") from error
    if found is None:
        raise ConfigError(f"{key}: there is no {path}.")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key}: {path} is no subclass of {base.__name__}.")
    if inspect.isabstract(found):
        raise ConfigError(f"{key}: {path} lacks {', '.join(sorted(getattr(found, '__abstractmethods__', ())))}: add it.")
    return found


def path_of(cls: type) -> str:
    """The name under which a checkpoint keeps a class: bare where it is torch's or the engine's, else its dotted path."""
    ours = cls.__module__.startswith(("torch.", f"{PACKAGE}.engine."))
    return cls.__qualname__ if ours else f"{cls.__module__}.{cls.__qualname__}"
