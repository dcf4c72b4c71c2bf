"""Loaders: how their processes are started. What they give is tested with each source."""

import multiprocessing
import sys

import pytest
import torch
from lightning.pytorch import Trainer

from lit_guide.data import DigitsData
from lit_guide.data.loaders import Split, evaluation_loader

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
