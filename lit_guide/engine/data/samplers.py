"""Which samples a process gets, and in which order: a function of the seed, the epoch and the place in it, and of nothing else.

No random state is kept, so a run goes on exactly where it stopped, whatever loader processes had fetched ahead.
"""

import os
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

SAMPLES, STEP = 0, 1  # what a seed is for: the samples of a batch as a loader makes them, or what the device does with it


class Places(NamedTuple):
    """A training batch: the places of its samples in the split, and the seed of what is drawn in making them."""

    seed: int
    places: list[int]


class TrainBatches(Sampler[Places]):
    """The training batches of one process, each epoch in an order of its own; no sample comes twice in an epoch.

    An epoch's order is cut into steps, and each of them into a batch for every process. The last batches may be smaller; they are
    left out where a process would get fewer than two samples, since BatchNorm can't train on one.

    Args:
        count: samples in the split.
        batch_size: samples of a batch.
        seed: of the run; all processes must have the same.
        rank: the number of this process.
        world_size: how many processes there are.
        weight_S: draw with replacement, with these probabilities (S = count); None for each sample once.
        epoch: where to begin.
        start: batches of that epoch to leave out, because they were trained on before.
        fixed: keep the order of epoch 0, so that its first batches can be learnt by heart.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weight_S: NDArray[np.float64] | None = None,
        epoch: int = 0,
        start: int = 0,
        fixed: bool = False,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size, self.weight_S = rank, world_size, weight_S
        self.epoch, self.start, self.fixed = epoch, start, fixed

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
        full, rest = divmod(self.count, self.batch_size * self.world_size)
        return full + (rest // self.world_size >= 2 or (full == 0 and rest >= self.world_size))

    def __iter__(self) -> Iterator[Places]:
        order_S = self.order(self.epoch)
        for batch in range(self.start, len(self)):
            yield self.batch(order_S, self.epoch, batch)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch, in their order, over all processes."""
        random_numbers = np.random.default_rng((self.seed, 0 if self.fixed else epoch))
        if self.weight_S is None:
            return random_numbers.permutation(self.count)
        return random_numbers.choice(self.count, size=self.count, p=self.weight_S / self.weight_S.sum())

    def batch(self, order_S: NDArray[np.int64], epoch: int, batch: int) -> Places:
        """This process's part of a step."""
        step = self.batch_size * self.world_size
        places = order_S[batch * step : (batch + 1) * step][self.rank :: self.world_size].tolist()
        return Places(seed_of(self.seed, epoch, batch, self.rank, SAMPLES), places)


def run_seed() -> int:
    """The seed of the run, `seed_everything`; 0 where that is false."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_of(*key: int) -> int:
    """A seed of 64 bits for a key such as (seed, epoch, batch, rank): NumPy's SeedSequence mixes the parts."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators: torch's on the CPU and on the devices in use, NumPy's and Python's."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks all kinds of device first, which takes 0.1 ms
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
