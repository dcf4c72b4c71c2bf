"""Tables of the story: name -> "module:object". What a project does not carry is not there, and nothing breaks."""

from collections.abc import Mapping
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any


def is_there(path: str) -> bool:
    """Whether the module of "module:object" is in this project; it is not imported."""
    try:
        return find_spec(path.partition(":")[0]) is not None
    except ModuleNotFoundError:  # not even the folder is there
        return False


def load(table: Mapping[str, str]) -> dict[str, Any]:
    """Name -> object, of the entries whose module is there."""
    return {name: resolve_name(path) for name, path in table.items() if is_there(path)}


def gone(table: Mapping[str, str]) -> dict[str, str]:
    """Name -> part, of the entries whose module is not there: the folder below `parts`."""
    return {name: path.split(".")[2] for name, path in table.items() if not is_there(path)}
