"""The `lit-guide` command: a table of commands, and how failures end.

No torch is imported before a command needs it. A command whose module is not in the project is not offered.
"""

import io
import os
import signal
import sys
from pkgutil import resolve_name
from typing import NamedTuple

from lit_guide import __version__
from lit_guide.engine.errors import Stopped, UserError, did_you_mean, say
from lit_guide.engine.process import end_with_parent, leave_group, leaving_at_ctrl_c, quiet_lightning
from lit_guide.engine.run.runs import started_by_lightning
from lit_guide.engine.tables import is_there


class Command(NamedTuple):
    """Where a command is, what it does, and an example."""

    function: str  # module:function of this package, which takes the command line after the command
    does: str
    example: str


COMMANDS = {
    "fit": Command("fit:fit", "train, test and export", "--config configs/digits.yaml"),
    "validate": Command("fit:validate", "score the validation split", "--run latest"),
    "test": Command("fit:test", "score the test split", "--run latest"),
    "predict": Command("predict:predict", "classify image files", "--run latest --images a.png some_folder/"),
    "export": Command("export.command:export", "write ONNX, TorchScript ...", "--run latest --formats onnx"),
    "data": Command("parts.inspect.command:data", "look at the images first", "check|show --config FILE"),
    "doctor": Command("parts.doctor.command:doctor", "what works here, and why not", "[--json]"),
}


def commands() -> dict[str, Command]:
    """The commands that this project has."""
    full = {name: command._replace(function=f"{__package__}.{command.function}") for name, command in COMMANDS.items()}
    return {name: command for name, command in full.items() if is_there(command.function)}


def usage() -> str:
    """What `--help` prints."""
    there = [(name, command.does, command.example) for name, command in commands().items()]
    lines = [f"  {name:9} {does:29} lit-guide {name} {example}" for name, does, example in there]
    return (
        f"lit-guide {__version__}: train, check and export image classifiers\n\n"
        "usage: lit-guide COMMAND [options]\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "lit-guide COMMAND --help lists a command's options. --version prints the version.\n"
        "A device is chosen by flags: --accelerator gpu --devices 2 --strategy ddp --precision bf16-mixed\n"
    )


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: the command line without the program's name; `sys.argv` if None.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the command or configuration is wrong, 130 Ctrl-C, 143 SIGTERM.
    """
    sys.stdout = sys.stdout or io.StringIO()  # closed by who called: there is nobody to tell
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the screen has no characters for is no reason to end
        sys.stdout.reconfigure(errors="backslashreplace")
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"lit-guide {__version__}")
        return 0
    known = commands()
    if args[0] not in known:
        hint = did_you_mean(args[0], known, f"Use one of {', '.join(known)}.")
        return fail(f"There is no command {args[0]!r}. {hint}", 2)
    debug = os.environ.get("LIT_GUIDE_DEBUG") == "1"
    if "LOCAL_RANK" in os.environ:
        end_with_parent()
    try:
        with leaving_at_ctrl_c():
            function = resolve_name(known[args[0]].function)
        quiet_lightning()
        function(args[1:])
        leave_group()
    except KeyboardInterrupt:
        return fail("Stopped by Ctrl-C.", 128 + signal.SIGINT)
    except UserError as error:
        if debug:
            raise
        return fail(str(error), error.exit_code)
    except Stopped as stopped:
        if started_by_lightning():
            return 0  # with another code Lightning would kill the first process, which tells
        return fail(f"Stopped by {stopped.name}.", int(str(stopped.code)))
    except Exception as error:
        if debug:
            raise
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        # What a loader process raised comes with its traceback; the message is the last line.
        what = lines[-1] if "in DataLoader worker process" in lines[0] else lines[0]
        return fail(f"{what}\nLIT_GUIDE_DEBUG=1 shows where it happened.", 1)
    return 0


def fail(message: str, exit_code: int) -> int:
    """Say why a command ends early, within bounds: a file from elsewhere may hold any text."""
    say(f"lit-guide: {message[:20_000]}", sys.stderr)
    return exit_code
