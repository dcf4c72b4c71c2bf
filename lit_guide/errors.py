"""The two kinds of failure that a user can cause, and what jsonargparse's errors mean in plain words.

`cli.main` prints the message and exits with `exit_code`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class LitGuideError(Exception):
    """The run failed: the message says what happened, where, and what to do next."""

    exit_code = 1


class ConfigError(LitGuideError):
    """The command or the configuration is wrong; nothing has been run or written."""

    exit_code = 2


def explain(message: str, known: Iterable[str], importable: Iterable[str]) -> str:
    """What a jsonargparse error means, in a line or two.

    Args:
        message: the error as jsonargparse words it, often with every branch of a Union.
        known: the configuration keys there are, for a suggestion.
        importable: the modules whose classes a configuration may name.
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
        near = get_close_matches(name, set(known), n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]}?" if near else "lit-guide fit --help lists all keys."
        return f"There is no flag or key {name!r}. {hint}"
    if message.startswith('Key "data" is required') or "Key 'data' is required" in message:
        return "No data were chosen: give a recipe, such as --config configs/digits.yaml."
    expected = ", or ".join(dict.fromkeys(re.findall(r"Expected (?:a |one of )?<?(?:class )?'?([^>'\n:]+)", message)))
    given = re.search(r"Given value: (.*)", message)
    if key and given and expected:
        return f"{key} is {given[1]}: expected {expected}."
    return message.strip().split("\n  Does not validate")[0]
