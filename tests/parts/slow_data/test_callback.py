import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import Dataset

from lit_guide import fit
from lit_guide.data import DataModule
from lit_guide.engine.data.source import Source
from lit_guide.model import LitClassifier
from lit_guide.parts.slow_data import callback
from lit_guide.parts.slow_data.callback import SlowData
from tests.conftest import FAST, Run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


class Slow(Dataset):
    """Images of noise, of which each takes a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.full((1, 8, 8), index, dtype=torch.uint8), index % 2


class SlowSource(DataModule):
    """Takes `seconds` for each image in the loader, and `on_device` for each batch after it."""

    cache = "none"

    def __init__(self, seconds: float = 0.0, on_device: float = 0.0, **kwargs):
        super().__init__(batch_size=4, val_fraction=0.1, test_fraction=0.1, augment=False, **kwargs)
        self.seconds, self.on_device = seconds, on_device

    def load(self):
        return Source(Slow(self.seconds), np.arange(40) % 2, ["even", "odd"])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        time.sleep(self.on_device)
        return super().on_after_batch_transfer(batch, dataloader_idx)


def train(tmp_path, slow_data, data, epochs=2):
    """Fit for some epochs of 8 batches."""
    seed_everything(0, verbose=False)
    model = LitClassifier(data.class_names, data.input_shape, [0.5], [0.5], network_args={"widths": [2]})
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[slow_data],
        default_root_dir=tmp_path,
        log_every_n_steps=50,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        logger=False,
    )
    trainer.fit(model, datamodule=data)


def test_waiting_for_data_is_told_once_with_the_flag_to_raise(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lit_guide.engine.machine.usable_cores", lambda: 6)
    monkeypatch.setattr(callback, "BATCHES", 5)
    train(tmp_path, SlowData(share=0.05, seconds=0.02), SlowSource(0.005))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-guide")]
    assert len(told) == 1
    assert re.fullmatch(
        r"lit-guide: training waited \d of \d s \(\d+%\) for data. "
        r"Load with more processes: --data.num_workers 6 \(now 0\).",
        told[0],
    )
    monkeypatch.setattr("lit_guide.engine.machine.usable_cores", lambda: 1)
    train(tmp_path, SlowData(share=0.05, seconds=0.02), SlowSource(0.02, num_workers=1), epochs=1)
    assert "All cores load already: decode each image once with --data.cache ram" in capsys.readouterr().err


def test_work_on_the_device_and_short_waits_are_not_told(tmp_path, capsys):
    train(tmp_path, SlowData(seconds=0.05), SlowSource(on_device=0.02))
    train(tmp_path, SlowData(), SlowSource(0.005))
    assert "waited" not in capsys.readouterr().err


def test_the_first_batch_of_an_epoch_is_not_waited_for(tmp_path):
    slow_data = SlowData()
    train(tmp_path, slow_data, SlowSource(0.002))
    # 8 batches of 4 images, 2 epochs.
    assert 2 * 7 * 4 * 0.002 <= slow_data.waited < slow_data.seconds


DIGITS = ["fit", "--config", "configs/digits.yaml", *FAST]


def test_its_thresholds_are_flags_and_stand_in_the_configuration(run: Run) -> None:
    done = run(*DIGITS, "--run_dir", "run", "--slow_data.share", "0", "--slow_data.seconds", "0")
    assert done.code == 0
    assert re.search(r"lit-guide: training waited \d+ of \d+ s \(\d+%\) for data\.", done.err)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["slow_data"] == {"share": 0.0, "seconds": 0.0}
    assert run(*DIGITS, "--slow_data.share", "2").code == 2


def test_a_project_without_the_part_reads_a_configuration_that_has_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("old.yaml").write_text("slow_data:\n  share: 0.5\n  seconds: 5.0\n")
    monkeypatch.setattr(fit, "CALLBACKS", {"slow_data": "lit_guide.parts.slow_data_of_old.callback:SlowData"})
    done = run(*DIGITS, "--config", "old.yaml", "--run_dir", "run")
    assert done.code == 0
    assert "slow_data in the configuration is of the part slow_data_of_old, which this project does not have" in done.err
    assert "slow_data" not in yaml.safe_load(Path("run/config.yaml").read_text())
