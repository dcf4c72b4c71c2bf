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

from lit_guide.engine.config.arguments import RECIPES, SHORT_FORMS, shipped_folders
from lit_guide.engine.errors import ConfigError, warn
from lit_guide.engine.machine import expanded
from lit_guide.engine.run import runs
from lit_guide.engine.run.settings import read_settings

# Arguments whose text is a place, however it looks; of any other, text that could lead out of a folder, or is an address.
IS_PLACE = re.compile(r"(^|_)(dir|dirpath|path|root|folder|location|uri|url|host)s?$")
ONLINE = ("CometLogger", "LitLogger", "MLFlowLogger", "NeptuneLogger", "WandbLogger")  # they send to whom the environment names
LEADS_OUT = re.compile(r"^[~/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|://")


def told(args: Sequence[str], typed: Sequence[str]) -> list[tuple[str, str]]:
    """(key, text) of what the command line itself says: its flags, and the recipes of this project that it names."""
    words = [word if "=" in word else f"{word}={after}" for word, after in pairwise([*typed, ""]) if word.startswith("-")]
    said = [(flag.strip("-+").replace(".init_args", ""), text) for flag, _, text in (word.partition("=") for word in words)]
    said += [(SHORT_FORMS[key], text) for key, text in said if key in SHORT_FORMS]
    for path in (
        Path(word.partition("=")[2] or after) for word, after in pairwise([*args, ""]) if word.partition("=")[0] in RECIPES
    ):
        if {*path.resolve().parents} & {*shipped_folders()}:
            said += [(key.removeprefix("."), text) for key, _, text in texts(read_settings(path), "", classes=True)]
    return said


def is_said(key: str, value: str, said: Collection[tuple[str, str]]) -> bool:
    """Whether the command line gives a key this value: by its flag, or in the text of a flag above it."""
    near = [(flag, given) for flag, text in said for given in (text, expanded(text)) if f"{key}.".startswith(f"{flag}.")]
    return any(value == given if flag == key else value in given for flag, given in near)


def check_places(config: Namespace, said: Collection[tuple[str, str]], training: bool) -> None:
    """Refuse what a run would write elsewhere, whom it would ask, and what it would download, where nobody typed it.

    What only helps is left out instead: a folder for a cache, and leave to download a set. `said` is what `told` gave, `training`
    whether a run is trained from its beginning. Raises a ConfigError that says what to type.
    """
    for key, value in untyped(config.trainer, "trainer", said):
        raise ConfigError(f"{key} is {value}, in a file. Where a run writes to, or connects to, is typed: --{key} {value}")
    given = config.trainer.logger
    for one in given if isinstance(given, list) else [given]:
        name = str(one.get("class_path", "")).rpartition(".")[2] if isinstance(one, Namespace) else ""
        if name in ONLINE and not one.get("init_args.offline") and not is_said("trainer.logger.class", name, said):
            raise ConfigError(f"trainer.logger is {name}, in a file. What sends figures away is typed: --trainer.logger {name}")
    data, model = config.get("data.init_args") or {}, config.get("model.init_args") or {}
    if (folder := data.get("cache_dir")) is not None and not is_said("data.cache_dir", str(folder), said):
        warn(f"data.cache_dir stands in a file, so it is not used. To use it: --data.cache_dir {folder}")
        data["cache_dir"] = None
    if data.get("download") and not any(key == "data.download" for key, _ in said):
        named = config.data.class_path.rpartition(".")[2] in [
            text.rpartition(".")[2] for key, text in said if key.startswith("data")
        ]
        data["download"] = named and all(is_said(f"data.{key}", str(data.get(key)), said) for key in ("dataset", "root"))
    weights = model.get("weights")
    if training and isinstance(weights, str) and weights.isidentifier() and not is_said("model.weights", weights, said):
        raise ConfigError(f"model.weights is {weights}, in a file. What is downloaded is typed: --model.weights {weights}")


def untyped(value: Any, key: str, said: Collection[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(key, text) of the places and addresses in a part of a configuration that the command line does not name."""
    for at, name, text in texts(value, key):
        file = name == "filename" and at.startswith("trainer.profiler")
        place = file or IS_PLACE.search(name) or LEADS_OUT.search(text)
        if place and name != "default_root_dir" and not is_said(at, text, said):
            yield at, text


def leave_out_writers(trainer: Namespace, said: Collection[tuple[str, str]]) -> None:
    """For a command that trains nothing: no logger, and no callback or profiler that would write where nobody typed it."""
    trainer.logger = False
    for key in ("callbacks", "profiler"):
        given = trainer[key] if isinstance(trainer[key], list) else [trainer[key]]
        for one in given[:]:
            if place := " ".join(next(untyped(one, f"trainer.{key}", said), ())):
                warn(f"{place} stands in a file, so what writes there is left out. To have it: --{place}")
                given.remove(one)
        trainer[key] = given if isinstance(trainer[key], list) else next(iter(given), None)


def texts(value: Any, key: str, name: str = "", classes: bool = False) -> Iterator[tuple[str, str, str]]:
    """(key, its last name, text) of all texts that a part of a configuration gives; a class's defaults left out."""
    if isinstance(value, str | PathLike):
        yield key, name, str(value)
    elif isinstance(value, Mapping | Namespace):
        items = vars(value) if isinstance(value, Namespace) else value
        takes = inspect.signature(resolve_name(items["class_path"])).parameters if "class_path" in items and not classes else {}
        for below, one in items.items():
            if below == "init_args":
                args = one if isinstance(one, Mapping) else vars(one)
                given = {arg: text for arg, text in args.items() if arg not in takes or text != takes[arg].default}
                yield from texts(given, key, classes=classes)
            elif below != "class_path" or classes:
                yield from texts(one, key if below in ("dict_kwargs", "class_path") else f"{key}.{below}", str(below), classes)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one, key, name, classes)


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
        if not folder.resolve().is_relative_to(own.resolve()) and around != own and (around / runs.BEST.parent).is_dir():
            raise ConfigError(f"{what} would write into another run, {around}. Give it another place.")
        if isinstance(writer, CSVLogger) and (folder / "metrics.csv").exists():
            raise ConfigError(f"{what} would replace {folder / 'metrics.csv'}. Give it another place, or another version.")
