"""The `lit-guide` command: which command runs, and how failures end.

No torch is imported before a command needs it.
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from lit_guide import __version__
from lit_guide.engine.errors import Stopped, UserError
from lit_guide.engine.run.runs import started_by_lightning

HELP = f"""lit-guide {__version__}: train, check and export image classifiers

usage: lit-guide COMMAND [options]

commands:
  fit        train, test and export      lit-guide fit --config configs/digits.yaml
  validate   score the validation split  lit-guide validate --run latest
  test       score the test split        lit-guide test --run latest
  predict    classify image files        lit-guide predict --run latest --images a.png some_folder/
  export     write ONNX, TorchScript     lit-guide export --run latest --formats onnx
             and torch.export files
  data       look at the images first    lit-guide data check|show --config configs/folder.yaml
  doctor     what works here, and why    lit-guide doctor
             the rest does not

lit-guide COMMAND --help lists a command's options. --version prints the version.
A device is chosen by flags: --accelerator gpu --devices 2 --strategy ddp --precision bf16-mixed
"""
CHATTER = (
    "💡",
    "`Trainer.fit` stopped",
    "Seed set",
    "[rank: ",
    "An ",  # "An exception was raised, saved checkpoint": `fit` says it in our words
    "Trainer already configured",
    "TPU available",
    "Restoring states",
    "Restored all states",
    "Loaded model weights",
    "Loading `train_dataloader`",
    "Using bfloat16 Automatic",
    "Using 16bit Automatic",
    "Initializing distributed",
    "-" * 20,
)
UNFIT_WARNINGS = (
    ".*does not have many workers.*",  # data in memory are fastest without workers
    "Experiment logs directory .* exists and is not empty",  # ours to continue: MetricsCSV keeps the file
    "Checkpoint directory .* exists and is not empty",  # likewise
    "Precision .* is not supported by the model summary",  # its sizes are in float32
    "Be aware that when using `ckpt_path`, callbacks",  # an evaluation needs no ModelCheckpoint
    "The dirpath has changed from",  # evaluating elsewhere than in the run
    "Total length of `list` across ranks is zero",  # data.val_fraction 0 means no validation
    "It is recommended to use `self.log",  # with sync_dist; what LitClassifier logs is of all processes already
    "You're resuming from a checkpoint that ended before the epoch ended",  # TrainBatches goes on at its place
    ".*smaller than the logging interval.*",  # epoch means are logged in any case
    "Image size .* exceeds limit",  # Pillow's; decode judges the size, and says which file
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.9 and later
)
COMMANDS = ("fit", "validate", "test", "predict", "export", "data", "doctor")


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: the command line without the program's name; `sys.argv` if None.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 the command or configuration is wrong, 130 Ctrl-C, 143 SIGTERM.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"lit-guide {__version__}")
        return 0
    command = args[0]
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(COMMANDS)}."
        return _fail(f"There is no command {command!r}. {hint}", 2)
    debug = os.environ.get("LIT_GUIDE_DEBUG") == "1"
    if "LOCAL_RANK" in os.environ:
        end_with_parent()
    try:
        if command == "doctor":  # runs where torch can't be imported
            from lit_guide.parts.doctor.command import doctor

            doctor(args[1:])
            return 0
        with leaving_at_ctrl_c():
            from lit_guide import fit as commands
        quiet_lightning()
        commands.COMMANDS[command](args[1:])
        commands.leave_group()
    except KeyboardInterrupt:
        return _fail("Stopped by Ctrl-C.", 128 + signal.SIGINT)
    except UserError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except Stopped as stopped:
        if started_by_lightning():
            return 0  # with another code Lightning would kill the first process, which tells
        return _fail(f"Stopped by {stopped.name}.", int(str(stopped.code)))
    except Exception as error:
        if debug:
            raise
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        # What a loader process raised comes with its traceback; the message is the last line.
        what = lines[-1] if "in DataLoader worker process" in lines[0] else lines[0]
        return _fail(f"{what}\nLIT_GUIDE_DEBUG=1 shows where it happened.", 1)
    return 0


def end_with_parent() -> None:
    """End this process when the one that started it is gone: one of several might wait for the others for half an hour."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextmanager
def leaving_at_ctrl_c() -> Iterator[None]:
    """End at once at a Ctrl-C: an exception in an import would become another one, or an abort in the C++ code of torch."""

    def leave(number: int, frame: object) -> None:
        os.write(2, b"lit-guide: Stopped by Ctrl-C.\n")
        os._exit(128 + number)

    before = signal.getsignal(signal.SIGINT)
    usual = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if usual:
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, before)


def quiet_lightning() -> None:
    """Silence Lightning's advertising, what it says of its own workings, and hints that do not apply here."""
    for module in ("pytorch.utilities.rank_zero", *(f"fabric.utilities.{name}" for name in ("rank_zero", "seed", "distributed"))):
        logging.getLogger(f"lightning.{module}").addFilter(lambda record: not record.getMessage().startswith(CHATTER))
    for message in UNFIT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _fail(message: str, exit_code: int) -> int:
    print(f"lit-guide: {message}", file=sys.stderr)
    return exit_code
