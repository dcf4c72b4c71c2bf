"""Ending a run from outside: Ctrl-C, SIGTERM, and SIGUSR1, which SLURM sends before a job's time is up."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from lit_guide.engine.errors import SIGNALS, Stopped, is_first


class Stop(Callback):
    """Turns a signal into the wish to stop after a whole step, on which all processes of the run agree.

    `LastCheckpoint` saves then, and raises `Stopped`; in a run that saves nothing this callback does. Where nothing is being
    trained, and at a second Ctrl-C, a signal raises `Stopped` at once.
    """

    def __init__(self) -> None:
        self.received, self.agreed = 0, 0  # the signal that this process got, and the one that all stop on
        self._training = self._saves = False
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._vote: tuple[Any, Tensor] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over for a while."""
        self.install()
        try:
            yield
        finally:
            for number, before in self._before.items():
                signal.signal(number, before)
            self._before = {}

    def install(self) -> None:
        """Take the signals over, from Lightning too: its handler waits for the other processes inside of the signal."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._on_signal)
                self._before.setdefault(number, before)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._training or (self.received and number == signal.SIGINT):
            raise Stopped(number)
        if not self.received and is_first():
            again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
            told = f"{signal.Signals(number).name}: stopping after this step.{again}"
            os.write(2, f"\nlit-guide: {told}\n".encode())  # not print: it may be in one
        self.received = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the step to end."""
        self._training, self._saves = True, bool(trainer.checkpoint_callbacks)
        self.install()
        if trainer.world_size > 1 and self._group is None and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")  # asking over NCCL would wait for the GPU

    on_sanity_check_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop here where nothing is to be saved."""
        if not self._saves and (number := self.vote(trainer)):
            raise Stopped(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal ends the run at once: all is saved."""
        self._training = False
        if not self._saves and (number := self.vote(trainer, at_once=True)):
            raise Stopped(number)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, where there was nothing to train."""
        self._count()
        self._training = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over again: each call of the trainer installs Lightning's handler."""
        self.install()

    on_test_start = on_predict_start = on_validation_start

    def vote(self, trainer: Trainer, at_once: bool = False) -> int:
        """The signal that all processes stop on, 0 for none. Each of them must ask at the same places.

        The answer is that to the vote before, which is there by now; `at_once` waits for this one's.
        """
        if trainer.world_size == 1:
            return self.received
        self._count()
        if not self.agreed:
            ballot = torch.tensor(self.received)
            self._vote = distributed.all_reduce(ballot, distributed.ReduceOp.MAX, self._group, async_op=True), ballot
            if at_once:
                self._count()
        return self.agreed

    def _count(self) -> None:
        if self._vote is not None:
            work, ballot = self._vote
            work.wait()
            self._vote = None
            self.agreed = max(self.agreed, int(ballot))
