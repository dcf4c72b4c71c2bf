"""How a command ends early: by a failure that a user can cause, or a signal. What jsonargparse's errors mean in plain words.

`cli.main` prints the message and exits with `exit_code`.
"""

import os
import re
import signal
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches

# jsonargparse's types of numbers, in words.
RANGES = {
    "PositiveInt": "int above 0",
    "NonNegativeInt": "int of 0 or more",
    "NonNegativeFloat": "float of 0 or more",
    "ClosedUnitInterval": "float from 0 to 1",
}
# What asks a run to stop; SIGUSR1 is the warning of a scheduler. Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class UserError(Exception):
    """The run failed: the message says what happened, where, and what to do next."""

    exit_code = 1


class ConfigError(UserError):
    """The command or the configuration is wrong; nothing has been run or written."""

    exit_code = 2


class Stopped(SystemExit):
    """The run was stopped by a signal, and what could be saved is saved.

    Args:
        number: of the signal. SIGUSR1, the warning of a scheduler, ends as SIGTERM does.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))
        self.name = signal.Signals(number).name


def is_first() -> bool:
    """Whether this is the first of the processes that a run has on this machine, or the only one: the one that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def warn(message: str) -> None:
    """Say what the user should know and may leave as it is; in a run of several processes, once."""
    if is_first():
        print(f"lit-guide: {message}", file=sys.stderr)


def explain(message: str, known: Collection[str], classes: Collection[str], importable: Iterable[str], prog: str) -> str:
    """What a jsonargparse error means, in a line or two.

    Args:
        message: the error as jsonargparse words it, often with every branch of a Union.
        known: the configuration keys there are, for a suggestion.
        classes: names of the classes that a configuration may name, likewise.
        importable: the modules whose classes a configuration may name.
        prog: the command, whose --help is named.
    """
    key = "".join(re.findall(r'^Parser key "([\w.]+)"', message)[:1])
    denied = re.search(r"Importing '(.+?)' is not allowed", message)
    if denied:
        return f"{key}: {denied[1]} may not be imported by a configuration. It may name classes of {', '.join(importable)}."
    unknown = re.search(r"(?i)unrecognized arguments: -*([\w.+]+)|Group '([\w.]+)' does not accept option '([\w.]+)'"
                        r"|Option '([\w.]+)' is not accepted", message)  # fmt: skip
    if unknown:
        flag, group, option, nested = unknown.groups()
        name = flag or (f"{group}.{option}" if group else f"{key}.{nested}" if key else nested)
        if name in known:  # of the class that was there by default
            return f"{name} is no setting of what was chosen for {name.rpartition('.')[0]}."
        near = get_close_matches(name, set(known), n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]}?" if near else f"{prog} --help lists all keys."
        return f"There is no flag or key {name!r}. {hint}"
    if message.endswith("arguments are required: data") or "DataModule is abstract" in message:
        return "No data were chosen: give a recipe, such as --config configs/digits.yaml."
    no_class = re.search(r"Expected a dot import path string: (\w+)$|(?:No subclass|no class).*?'(\w+)'", message, re.MULTILINE)
    if no_class:
        name = no_class[1] or no_class[2]
        lower = [c.lower() for c in classes]
        # ddp is DDPStrategy's short name: that one takes no settings.
        near = get_close_matches(name.lower(), lower, n=1) or [c for c in lower if c == f"{name.lower()}strategy"]
        hint = f" Did you mean {next(c for c in classes if c.lower() == near[0])}?" if near else ""
        return f"{key}: there is no class {name!r}.{hint}"
    given = re.search(r"Not of type \w+: (?:(\S+) (?:does not conform|not an? )|.*: '(.*)'$)|NestedArg\(.+, val='?(.*?)'?\)$"
                      r"|(?:Given|Got) value: (?!NestedArg)(.*)$", message, re.MULTILINE)  # fmt: skip
    # The key of an argument, where the first one is that of a class.
    nested = re.search(r"\n +Parser key \"([\w.]+)\"|NestedArg\(key='([\w.]+)'", message)
    expected = re.findall(r"(?:Expected (?:an? |one of )|Not of type )(.+)", message)
    if key and given and expected:
        if nested and expected[-1] == "<class 'NoneType'>":
            expected.pop()  # instead of the class
        key = ".".join([key, *filter(None, nested.groups() if nested else ())])
        value = next(value for value in given.groups() if value is not None)
        return f"{key} is {value}: expected {', or '.join(dict.fromkeys(map(_type_name, expected)))}."
    return message.strip().split("\n  Does not validate")[0]


def _type_name(text: str) -> str:
    """What jsonargparse says of a type after "Expected a" or "Not of type", in the words of a message."""
    text = text.partition(". Got value")[0]
    text = re.sub(r"^<class '(?:.*\.)?(\w+)'>$", r"\1", re.sub(r"^(?:typing\.)?Literal\[(.*)\]$", r"\1", text))
    return {"NoneType": "null", **RANGES}.get(text.partition(":")[0], text)
