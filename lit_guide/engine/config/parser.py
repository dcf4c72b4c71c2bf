"""The parser of settings: no abbreviations, and what jsonargparse's errors mean in plain words."""

import inspect
import re
from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import Any, NoReturn

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_guide.engine.allowed import how_to_allow, import_class, importable, is_allowed
from lit_guide.engine.config.arguments import CALL, SHORT_FORMS
from lit_guide.engine.config.devices import unknown
from lit_guide.engine.errors import ConfigError, did_you_mean
from lit_guide.engine.run.settings import load_yaml
from lit_guide.engine.tables import is_there
from lit_guide.engine.train.optim import subclasses

PACKAGE = __name__.split(".")[0]
# Their classes, where a name is misspelt.
SUGGESTED = (LightningModule, LightningDataModule, Optimizer, LRScheduler, Callback, Logger, Strategy)
# jsonargparse's types of numbers, in words.
RANGES = {
    "PositiveInt": "int above 0",
    "NonNegativeInt": "int of 0 or more",
    "NonNegativeFloat": "float of 0 or more",
    "ClosedUnitInterval": "float from 0 to 1",
}
usual_loader = get_loader("yaml")
set_loader("yaml", lambda text: load_yaml(text, usual_loader), (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """LightningArgumentParser that takes no abbreviations and says errors in a line, with the nearest valid name."""

    usual: type[LightningModule] | None = None  # the model where none is named

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """As YAML; the keys of the usual model stand right below `model`, as in a recipe."""
        text: str = super().dump(*args, **kwargs)
        settings = yaml.safe_load(text)
        model = settings.get("model") if isinstance(settings, dict) else None
        path = model.get("class_path") if isinstance(model, dict) else None
        if self.usual is None or path is None or import_class(path, LightningModule, "model") is not self.usual:
            return text
        settings["model"] = (model or {}).get("init_args") or {}
        header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
        return header + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ConfigError where jsonargparse would print its usage and exit."""
        if not self.exit_on_error:  # the parsers that jsonargparse makes for itself expect its own error
            super().error(message, ex)
        # What is wrong with a class of one's own: jsonargparse says of it that it is no path either.
        own = re.search(r"xpected a path but ([A-Za-z_]\w*(?:\.\w+)+) either", message)
        if own and is_allowed(own[1]) and is_there(own[1].rpartition(".")[0]):
            import_class(own[1], object, _keys_of(message))
        classes = [cls.__name__ for base in SUGGESTED for cls in subclasses(base) if not inspect.isabstract(cls)]
        told = explain(message, self._known_keys(), classes, importable(), self.prog)
        if denied := re.search(r": ([\w.]+) may not be imported", told):
            told += f" {how_to_allow(denied[1])}"
        precision = re.match(r"trainer\.precision is (\S+): expected", told)
        raise (unknown("precision", precision[1]) if precision else ConfigError(told)) from None

    def _known_keys(self) -> list[str]:
        keys = [key.replace(".init_args", "") for key in self.get_defaults(skip_validation=True).keys()]  # noqa: SIM118  # a Namespace
        for section, base in (("data", LightningDataModule), ("model", LightningModule)):
            own = [cls for cls in subclasses(base) if is_allowed(cls.__module__)]
            keys += [f"{section}.{name}" for cls in own for name in inspect.signature(cls).parameters]
        return [*keys, *SHORT_FORMS, *CALL]


def explain(message: str, known: Collection[str], classes: Collection[str], importable: Iterable[str], prog: str) -> str:
    """What a jsonargparse error means, in a line or two.

    Args:
        message: the error as jsonargparse words it, often with every branch of a Union.
        known: the configuration keys there are, for a suggestion.
        classes: names of the classes that a configuration may name, likewise.
        importable: the modules whose classes a configuration may name.
        prog: the command, whose --help is named.
    """
    outer = "".join(re.findall(r'^Parser key "([\w.]+)"', message)[:1])
    key = _keys_of(message)
    if re.search("arguments are required: data$|LightningDataModule( is abstract|' is not allowed)", message):
        return "No data were chosen: give a recipe, such as --config configs/digits.yaml."
    unknown = re.search(r"(?i)unrecognized arguments: -*([\w.+]+)|Group '([\w.]+)' does not accept option '([\w.]+)'"
                        r"|Option '([\w.]+)' is not accepted", message)  # fmt: skip
    if unknown:
        flag, group, option, nested = unknown.groups()
        name = flag or (f"{group}.{option}" if group else f"{key}.{nested}" if key else nested)
        if name in known:  # of the class that was there by default
            return f"{name} is no setting of what was chosen for {name.rpartition('.')[0]}."
        of = re.search(r"(?:given |Got value: Namespace\()class_path[ =]'([\w.]+)'(?:, init_args|:\s+Option )", message)
        if of and name.count(".") > 1:  # of a class that is named for a key
            known = [f"{name.rpartition('.')[0]}.{own}" for own in inspect.signature(import_class(of[1], object, key)).parameters]
        return f"There is no flag or key {name!r}. {did_you_mean(name, known, f'{prog} --help lists all keys.')}"
    if denied := re.search(r"Importing '(.+?)' is not allowed", message):  # it is said of what is unknown in a list too
        return f"{key}: {denied[1]} may not be imported by a configuration. It may name classes of {', '.join(importable)}."
    if lacking := re.search(r"arguments are required: ([\w, ]+)$", message, re.MULTILINE):
        return f"{key} lacks {lacking[1]}: add --{key}.{lacking[1].replace(', ', f' VALUE --{key}.')} VALUE."
    if alike := re.search(r"Multiple subclasses with name .+ ambiguity: (.+)\.$", message, re.MULTILINE):
        return f"{key}: several classes have this name: give the path, {' or '.join(filter(is_allowed, alike[1].split(', ')))}."
    no_class = re.search(r"Expected a dot import path string: (\w+)$|(?:No subclass|no class).*?'(\w+)'", message, re.MULTILINE)
    if no_class:
        name = no_class[1] or no_class[2]
        # ddp is DDPStrategy's short name: that one takes no settings.
        hint = did_you_mean(f"{name}Strategy" if key == "trainer.strategy" else name, classes)
        return f"{key}: there is no class {name!r}. {hint or f'One of your own goes by its path: {PACKAGE}.my_file.{name}.'}"
    if gone := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"{key}: there is no {gone[1]}.{gone[2]}."
    unfit = re.search(r"(?:Expected '[\w.]+' to be|Import path does not correspond to) a subclass of (?:<class ')?(\w+)", message)
    if unfit:
        named = re.search(r"Expected '([\w.]+)' to be|(?s:.*)Given value: ([\w.]+)$", message)
        return f"{key}: {named[1] or named[2] if named else 'it'} is no {unfit[1]}."
    given = re.search(r"Not of type \w+: (?:(\S+) (?:does not conform|not an? )|.*: '(.*)'$)|NestedArg\(.+, val='?(.*?)'?\)$"
                      r"|(?:Given|Got) value: (?!NestedArg)(.*)$", message, re.MULTILINE)  # fmt: skip
    nested = re.search(r"NestedArg\(key='([\w.]+)'", message)  # of a flag: the argument of a class
    expected = re.findall(r"(?:Expected (?:an? |one of )|Not of type )(.+)", message)
    if key and given and expected:
        if (nested or key != outer) and expected[-1] == "<class 'NoneType'>":
            expected.pop()  # instead of the class
        key = f"{outer}.{nested[1]}" if nested else key
        value = next(value for value in given.groups() if value is not None)
        return f"{key} is {value}: expected {', or '.join(dict.fromkeys(map(_type_name, expected)))}."
    return message.strip().split("\n  Does not validate")[0]


def _keys_of(message: str) -> str:
    """The key that a message is about, also of a class inside of another one."""
    return ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))


def _type_name(text: str) -> str:
    """What jsonargparse says of a type after "Expected a" or "Not of type", in the words of a message."""
    text = text.partition(". Got value")[0]
    text = re.sub(r"^<class '(?:.*\.)?(\w+)'>$", r"\1", re.sub(r"^(?:typing\.)?Literal\[(.*)\]$", r"\1", text))
    return {"NoneType": "null", **RANGES}.get(text.partition(":")[0], text)


def not_made(message: str) -> ConfigError | None:
    """The error for a class that could not be made, with the reason that jsonargparse gives; None where it speaks of none."""
    of = re.search(r"class_path[ =]'([\w.]+)'", message)
    why = re.search(r"(?:':\n|\n *-) +(?!Problem|Parser key|Does not|Expected a|Not a valid|a class|a dict)(.+)", message)
    return ConfigError(f"{of[1]} can't be made: {why[1].rstrip('.')}.") if of and why else None
