"""Loaders: how their processes are started. What they give is tested with each source."""

import multiprocessing
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler

from lit_guide.data import DigitsData
from lit_guide.engine.data.loaders import Split, evaluation_loader, even_batch_size

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")


@pytest.mark.parametrize(("ranks", "method"), [(1, None), (2, "forkserver")])
def test_loader_processes_of_ranks_are_not_forked_from_them(ranks: int, method: str | None) -> None:
    strategy = "auto" if ranks == 1 else "ddp"
    trainer = Trainer(accelerator="cpu", devices=ranks, strategy=strategy, logger=False, enable_checkpointing=False)
    data = DigitsData()
    split = Split(data.samples(training=False), torch.from_numpy(data.rows["val"]))
    started = evaluation_loader(split, 64, trainer, workers=1).multiprocessing_context
    if multiprocessing.get_start_method() != "fork":
        method = None
    assert (started and started.get_start_method()) == method
    assert evaluation_loader(split, 64, trainer, workers=0).multiprocessing_context is None


@pytest.mark.parametrize("ranks", [2, 3])
def test_f20_each_rank_evaluates_as_many_batches_and_together_each_sample_once(ranks: int) -> None:
    """One more batch on a rank would wait for the others in FSDP, which needs GPUs: here its batches alone."""
    for count in (*range(ranks, 20), 64 * ranks, 64 * ranks + 1, 269):
        for size in (1, 2, 6, 64):
            even = even_batch_size(count, size, ranks)
            batches = [list(BatchSampler(range(rank, count, ranks), even, drop_last=False)) for rank in range(ranks)]
            assert len({len(batch) for batch in batches}) == 1, (count, size)
            assert sorted(place for rank in batches for batch in rank for place in batch) == list(range(count))
            assert even <= size + 3, (count, size)
            if count % ranks == 0:
                assert even == size


def test_f20_ddp_keeps_the_batch_size() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    split = Split(DigitsData().samples(training=False), torch.arange(17))
    loader = evaluation_loader(split, 4, trainer, workers=0)
    assert [len(batch) for batch in loader.batch_sampler] == [4, 4, 1]


def test_a_rank_may_have_no_sample_to_evaluate() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    split = Split(DigitsData().samples(training=False), torch.arange(1))
    assert list(evaluation_loader(split, 64, trainer, workers=0).batch_sampler) == [[0]]
