"""How a command ends early: by a failure that a user can cause, or a signal.

`cli.main` prints the message and exits with `exit_code`.
"""

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TextIO

# What asks a run to stop; SIGUSR1 is the warning of a scheduler. Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
# Controls, what turns the direction of writing, and bytes that are no UTF-8; the joiners of Persian and of emoji stay.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


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


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str, keep: str = "", encoding: str = "utf-8") -> str:
    """Text that does nothing to a screen: escapes for control characters not in `keep`, and what it can't show."""
    harmless = UNPRINTABLE.sub(lambda one: one[0] if one[0] in keep else one[0].encode("unicode_escape").decode(), text)
    return harmless.encode(encoding, "backslashreplace").decode(encoding)


def say(message: str, file: TextIO | None = None) -> None:
    """Print lines of `printable` text."""
    print(printable(message, keep="\n"), file=file)


def warn(message: str) -> None:
    """Say what the user should know and may leave as it is; in a run of several processes, once."""
    if is_first():
        say(f"lit-guide: {message}", sys.stderr)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from or while handling, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def did_you_mean(given: str, known: Iterable[str], otherwise: str = "", most: int = 1) -> str:
    """A hint for a misspelt name: the nearest valid ones, in any case of letters, or what else to say."""
    spelt = {name.lower(): name for name in known}
    near = [spelt[name] for name in get_close_matches(given.lower(), spelt, n=most)]
    return f"Did you mean {' or '.join(near)}?" if near else otherwise
