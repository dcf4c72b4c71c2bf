"""The DataLoaders of a split: which samples a process gets, in which order, and what its loader processes do.

The order of training batches is a function of the seed, the epoch and the place in it, and of nothing else: no random state is
kept, so a run goes on exactly where it stopped, whatever loader processes had fetched ahead.

Shapes: B images a batch, S samples of a split.
"""

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, WeightedRandomSampler, default_collate

from lit_guide.engine.errors import SIGNALS

SAMPLES, STEP = 0, 1  # what a seed is for: the samples of a batch as a loader makes them, or what the device does with it


class Places(NamedTuple):
    """A training batch: the places of its samples in the split, and the seed of what is drawn in making them."""

    seed: int
    places: list[int]


@dataclass(eq=False)
class TrainBatches(Sampler[Places]):
    """The training batches of one process, each epoch in an order of its own; no sample comes twice in an epoch.

    An epoch's order is cut into steps, and each of them into a batch for every process. The last batches may be smaller; they are
    left out where a process would get fewer than two samples, since BatchNorm can't train on one.
    """

    count: int  # samples in the split
    batch_size: int  # of one process
    rank: int  # which process this is
    world_size: int  # of how many
    weight_S: NDArray[np.float64] | None  # draw with replacement, with these probabilities (S = count); None: each sample once
    epoch: int  # where to begin
    start: int  # batches of that epoch to leave out, because they were trained on before
    fixed: bool  # keep the order of epoch 0, so that its first batches can be learnt by heart
    shifted: tuple[int, int] = (0, 0)  # an epoch, and how many samples later its batches begin: it began with other batches

    @property
    def sampler(self) -> "TrainBatches":
        """Itself: Lightning calls `set_epoch` on `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go over to an epoch; `start` holds for the one that it was given with."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.batches_of(self.count)

    @property
    def step(self) -> int:
        """Samples of a batch of all processes."""
        return self.batch_size * self.world_size

    def batches_of(self, samples: int) -> int:
        """Batches that so many samples make."""
        full, rest = divmod(samples, self.step)
        return full + (rest // self.world_size >= 2 or (full == 0 and rest >= self.world_size))

    def __iter__(self) -> Iterator[Places]:
        order_S = self.order(self.epoch)
        for batch in range(self.start, len(self)):
            yield self.batch(order_S, self.epoch, batch)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch, in their order, over all processes."""
        random_numbers = np.random.default_rng((run_seed(), 0 if self.fixed else epoch))
        if self.weight_S is None:
            return random_numbers.permutation(self.count)
        return random_numbers.choice(self.count, size=self.count, p=self.weight_S / self.weight_S.sum())

    def begin(self, epoch: int, batch: int) -> int:
        """How many samples of an epoch come before a batch."""
        return batch * self.step + (self.shifted[1] if epoch == self.shifted[0] else 0)

    def batch(self, order_S: NDArray[np.int64], epoch: int, batch: int) -> Places:
        """This process's part of a step."""
        begin = self.begin(epoch, batch)
        places = order_S[begin : begin + self.step][self.rank :: self.world_size].tolist()
        return Places(seed_of(run_seed(), epoch, batch, self.rank, SAMPLES), places)


def run_seed() -> int:
    """The seed of the run, `seed_everything`; 0 where that is false."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_of(*key: int) -> int:
    """A seed of 64 bits for a key such as (seed, epoch, batch, rank): NumPy's SeedSequence mixes the parts."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_step(epoch: int, batch: int, rank: int) -> None:
    """Seed what the device draws in a training step, in augmentation and dropout, by its place in the run."""
    seed_all(seed_of(run_seed(), epoch, batch, rank, STEP))


def seed_all(seed: int) -> None:
    """Seed the global generators: torch's on the CPU and on the devices in use, NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks all kinds of device first, which takes 0.1 ms
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


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


def shuffled_loader(split: Split, batch_size: int, weight_S: NDArray[np.float64] | None, workers: int) -> DataLoader[Any]:
    """A loader of batches in any order, or drawn by weight: outside of a run."""
    last_is_one = len(split) > batch_size and len(split) % batch_size == 1  # BatchNorm can't train on one image
    sampler = None if weight_S is None else WeightedRandomSampler(weight_S.tolist(), len(split))
    which = {"batch_size": batch_size, "drop_last": last_is_one, "shuffle": sampler is None, "sampler": sampler}
    return loader(split, None, workers, **which)


def evaluation_loader(split: Split, batch_size: int, trainer: Trainer | None, workers: int) -> DataLoader[Any]:
    """A loader of this process's share of the samples, in order, each of them once."""
    if trainer is None or trainer.world_size == 1:
        return loader(split, trainer, workers, batch_size=batch_size)
    if isinstance(trainer.strategy, FSDPStrategy):
        batch_size = even_batch_size(len(split), batch_size, trainer.world_size)
    # Lightning's sampler for this refuses a process that gets no sample, and torch's counts some samples twice.
    share = Split(split.dataset, split.row_S[trainer.global_rank :: trainer.world_size])
    return loader(share, trainer, workers, batch_size=batch_size)


def even_batch_size(count: int, batch_size: int, world_size: int) -> int:
    """A batch size near `batch_size` with which shares that differ by one sample are as many batches.

    FSDP talks in each forward pass: one more of them would wait for the other processes for ever. DDP does not, and keeps its
    batch size: with another one the last bits of the logits may be others than those of one process.
    """
    share, more = divmod(count, world_size)
    if not (more and share):
        return batch_size
    return next(size for size in chain(range(batch_size, 1, -1), range(2, share + 2)) if share % size)


def loader(split: Split, trainer: Trainer | None, workers: int, **which: Any) -> DataLoader[Any]:
    """A loader of batches that are sampled as `which` says, in the words of torch's DataLoader."""
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
