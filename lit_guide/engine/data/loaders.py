"""The DataLoaders of a split: which samples a process gets, and what its loader processes do.

Shapes: B images a batch, S samples of a split.
"""

import multiprocessing
import os
import signal
import threading
from itertools import chain
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler, default_collate

from lit_guide.engine.data.samplers import Places, TrainBatches, seed_all
from lit_guide.engine.errors import SIGNALS


class Split(Dataset[Any]):
    """The samples of one split, by their place in it; the rows are a tensor, which workers share."""

    def __init__(self, dataset: Dataset[tuple[Tensor, Tensor]], row_S: Tensor) -> None:
        self.dataset, self.row_S = dataset, row_S

    def __len__(self) -> int:
        return len(self.row_S)

    def __getitems__(self, places: list[int] | Places) -> Any:
        """The batch of these places: what a DataLoader asks for. In training its random numbers are of its own seed."""
        if isinstance(places, Places):
            seed_all(places.seed)
            places = places.places
        rows = self.row_S[places].tolist()
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch(rows)
        return default_collate([self.dataset[row] for row in rows])


def training_loader(split: Split, batches: TrainBatches, trainer: Trainer, workers: int) -> DataLoader[Any]:
    """A loader of a run's training batches."""
    return _loader(split, trainer, workers, batch_sampler=batches)


def shuffled_loader(split: Split, batch_size: int, weight_S: NDArray[np.float64] | None, workers: int) -> DataLoader[Any]:
    """A loader of batches in any order, or drawn by weight: outside of a run."""
    last_is_one = len(split) > batch_size and len(split) % batch_size == 1  # BatchNorm can't train on one image
    sampler = None if weight_S is None else WeightedRandomSampler(weight_S.tolist(), len(split))
    which = {"batch_size": batch_size, "drop_last": last_is_one, "shuffle": sampler is None, "sampler": sampler}
    return _loader(split, None, workers, **which)


def evaluation_loader(split: Split, batch_size: int, trainer: Trainer | None, workers: int) -> DataLoader[Any]:
    """A loader of this process's share of the samples, in order, each of them once."""
    if trainer is None or trainer.world_size == 1:
        return _loader(split, trainer, workers, batch_size=batch_size)
    if isinstance(trainer.strategy, FSDPStrategy):
        batch_size = even_batch_size(len(split), batch_size, trainer.world_size)
    # Lightning's sampler for this refuses a process that gets no sample, and torch's counts some samples twice.
    share = Split(split.dataset, split.row_S[trainer.global_rank :: trainer.world_size])
    return _loader(share, trainer, workers, batch_size=batch_size)


def even_batch_size(count: int, batch_size: int, world_size: int) -> int:
    """A batch size near `batch_size` with which shares that differ by one sample are as many batches.

    FSDP talks in each forward pass: one more of them would wait for the other processes for ever. DDP does not, and keeps its
    batch size: with another one the last bits of the logits may be others than those of one process.
    """
    share, more = divmod(count, world_size)
    if not (more and share):
        return batch_size
    return next(size for size in chain(range(batch_size, 1, -1), range(2, share + 2)) if share % size)


def _loader(split: Split, trainer: Trainer | None, workers: int, **which: Any) -> DataLoader[Any]:
    return DataLoader(
        split,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=_context(trainer) if workers else None,
        worker_init_fn=_begin,
        pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        collate_fn=_ready_batch,
        **which,
    )


def _context(trainer: Trainer | None) -> BaseContext | None:
    """How loader processes are started: by a server of their own where this process talks to other ranks, else as usual.

    A fork copies the locks of gloo's and NCCL's threads, some of them locked: about one child in 200 hung before its first line.
    """
    if trainer is None or trainer.world_size == 1 or multiprocessing.get_start_method() != "fork":
        return None
    from multiprocessing import forkserver, resource_tracker  # here: Windows has no use for them

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by each of them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:  # what is started here never takes a signal to all processes: it ends when those that use it are gone
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which the tracker's start undid
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _ready_batch(batch: Any) -> Any:
    """Collate for `Split`, which gives batches already."""
    return batch


def _begin(worker: int) -> None:
    """Let a loader process outlive a signal to all processes, since training ends after a whole step, but not its rank."""
    for number in SIGNALS:
        signal.signal(number, _leave_soon if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_rank, daemon=True).start()


def _end_with_rank() -> None:
    """Leave no process behind a killed rank: torch looks at the parent process, which may be the server, and that lives on."""
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def _leave_soon(number: int, frame: object) -> None:
    """A loader that is not needed any more is ended by this signal too, so it is not ignored, only given time."""
    timer = threading.Timer(10, os._exit, [0])
    timer.daemon = True
    timer.start()
