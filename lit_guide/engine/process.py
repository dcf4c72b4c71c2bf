"""This process among others: it ends with the one that started it, leaves at Ctrl-C, and says little of Lightning's own."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    "You passed in a `val_dataloader` but have no",  # a model of one's own need not validate
    "You defined a `validation_step` but have no",  # nor have the data to
    "Image size .* exceeds limit",  # Pillow's; decode judges the size, and says which file
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.9 and later
)


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
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in UNFIT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def leave_group() -> None:
    """Take leave of the other processes of the run: gloo's threads would end a process that is leaving with an error."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
