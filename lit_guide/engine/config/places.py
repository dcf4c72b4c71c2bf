"""Places outside of a run, addresses and downloads: taken where the command line names them, never from a file."""

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from lit_guide.engine.config.arguments import RECIPES, shipped_folders
from lit_guide.engine.errors import ConfigError, warn
from lit_guide.engine.machine import expanded
from lit_guide.engine.run import runs

# Arguments whose text is a place, however it looks; of any other, text that could lead out of a folder, or is an address.
IS_PLACE = re.compile(r"(^|_)(dir|dirpath|path|root|folder|location|uri|url|host)s?$")
LEADS_OUT = re.compile(r"^[~/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|://")


def told(args: Sequence[str], typed: Sequence[str]) -> set[str]:
    """What the command line itself says: its words, what stands in them, and in the recipes of this project that it names."""
    named = [Path(path) for flag, path in pairwise(args) if flag in RECIPES]
    own = [path.read_text(encoding="utf-8") for path in named if {*path.resolve().parents} & {*shipped_folders()}]
    values = [word.partition("=")[2] for word in typed if "=" in word]
    parts = [part for text in (*typed, *own) for part in re.split(r"""["'{}\[\],=\s]+|:\s""", text) if part]
    return {*typed, *values, *parts, *map(expanded, (*typed, *values, *parts))}


def check_places(config: Namespace, said: Collection[str], training: bool) -> None:
    """Refuse what a run would write elsewhere, whom it would ask, and what it would download, where nobody typed it.

    What only helps is left out instead: a folder for a cache, and leave to download a set. `said` is what `told` gave, `training`
    whether a run is trained from its beginning. Raises a ConfigError that says what to type.
    """
    for key, name, value in texts(config.trainer, "trainer"):
        if name != "default_root_dir" and value not in said and (IS_PLACE.search(name) or LEADS_OUT.search(value)):
            raise ConfigError(f"{key} is {value}, in a file. Where a run writes to, or connects to, is typed: --{key} {value}")
    data, model = config.get("data.init_args") or {}, config.get("model.init_args") or {}
    if (folder := data.get("cache_dir")) is not None and str(folder) not in said:
        warn(f"data.cache_dir stands in a file, so it is not used. To use it: --data.cache_dir {folder}")
        data["cache_dir"] = None
    asked = "download", str(config.get("data.class_path")).rpartition(".")[2]  # a class that is named may do what it does
    if data.get("download") and not any(word.endswith(asked) for word in said):
        data["download"] = False
    if training and (weights := model.get("weights")) is not None and str(weights) not in said:
        raise ConfigError(f"model.weights is {weights}, in a file. What is downloaded is typed: --model.weights {weights}")


def texts(value: Any, key: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, its last name, text) of all texts that a part of a configuration gives; a class's defaults left out."""
    if isinstance(value, str | PathLike):
        yield key, name, str(value)
    elif isinstance(value, Mapping | Namespace):
        items = vars(value) if isinstance(value, Namespace) else value
        takes = inspect.signature(resolve_name(items["class_path"])).parameters if "class_path" in items else {}
        for below, one in items.items():
            if below == "init_args":
                given = {arg: text for arg, text in vars(one).items() if arg not in takes or text != takes[arg].default}
                yield from texts(given, key)
            elif below != "class_path":
                yield from texts(one, key if below == "dict_kwargs" else f"{key}.{below}", str(below))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one, key, name)


def with_home(value: Any) -> Any:
    """A setting, and all settings in it, `expanded`: which of them are paths, only the classes know that take them."""
    if isinstance(value, list | tuple):
        return type(value)(map(with_home, value))
    for key in vars(value) if isinstance(value, Namespace) else value if isinstance(value, dict) else ():
        value[key] = with_home(value[key])
    return expanded(value) if isinstance(value, str) else value


def refuse_other_runs(writers: Iterable[Any], own: Path) -> None:
    """Refuse loggers, callbacks and profilers that would write into another run than `own`, or over figures, by a ConfigError.

    They say where by `log_dir`, `save_dir` or `dirpath`, if anywhere.
    """
    for writer in writers:
        places = (getattr(writer, name, None) for name in ("log_dir", "save_dir", "dirpath"))
        named = (place for place in places if place and isinstance(place, str | PathLike))  # a DummyLogger has a function there
        what, folder = type(writer).__name__, Path(next(named, own)).absolute()
        around = next((path for path in (folder, *folder.parents) if (path / "config.yaml").is_file()), own)
        if around.resolve() != own.resolve() and (around / runs.BEST.parent).is_dir():
            raise ConfigError(f"{what} would write into another run, {around}. Give it another place.")
        if isinstance(writer, CSVLogger) and (folder / "metrics.csv").exists():
            raise ConfigError(f"{what} would replace {folder / 'metrics.csv'}. Give it another place, or another version.")
