"""Earlier names of modules: saved configurations, and code written for an earlier version, go on importing them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.split(".")[0]
# Before version 0.2 -> since then.
MOVED = {
    "callbacks": "engine.train",
    "callbacks.checkpoint": "engine.train.checkpoints",
    "callbacks.export": "export",
    "callbacks.report": "engine.train.metrics",
    "callbacks.summary": "engine.train.progress",
    "data.augment": "engine.data.module",
    "data.base": "engine.data.module",
    "data.cache": "parts.cache.copies",
    "data.files": "engine.photos.dataset",
    "data.loaders": "engine.data.loaders",
    "data.photos": "engine.photos.module",
    "data.samplers": "engine.data.loaders",
    "data.splits": "engine.data.source",
    "data.transforms": "engine.photos.crops",
    "errors": "engine.errors",
    "optim": "engine.train.optim",
    "callbacks.guards": "parts.guards.callback",
    **{f"callbacks.{name}": f"engine.train.{name}" for name in ("progress", "stop")},
    **{f"data.{name}": f"engine.photos.{name}" for name in ("decode", "examine")},
}


class Moved(MetaPathFinder, Loader):
    """Finds a module under its earlier name: it is the same object as under the new one."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A specification for the names of `MOVED`, and for no others."""
        package, _, module = name.partition(".")
        return ModuleSpec(name, self, is_package=module == "callbacks") if package == PACKAGE and module in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that it is now."""
        module = import_module(f"{PACKAGE}.{MOVED[spec.name.partition('.')[2]]}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run; it keeps its own specification."""
        module.__spec__ = self._spec


def remember() -> None:
    """Let imports find what was moved."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
