import csv
import json
import os
import re
import subprocess
import sys

import pytest
from lightning.pytorch import Trainer, seed_everything

from lit_guide.data import DigitsData
from lit_guide.engine.train.metrics import MetricsCSV
from lit_guide.engine.train.progress import ProgressBar
from lit_guide.model import LitClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


def fit(run_dir, **trainer_args):
    seed_everything(0, verbose=False)
    data = DigitsData(batch_size=64)
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network_args={"widths": [4]})
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "limit_train_batches": 4,
            "logger": MetricsCSV(run_dir),
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "callbacks": [ProgressBar()],
            **trainer_args,
        }
    )
    trainer.fit(model, data)
    return trainer


def epochs_of(run_dir):
    """What metrics.csv says of each epoch."""
    epochs = {}
    with (run_dir / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            figures = {k: float(v) for k, v in row.items() if v and k not in ("epoch", "step", "train/loss_step")}
            epochs.setdefault(int(row["epoch"]), {}).update(figures)
    return epochs


def lines_of(out):
    """Epoch number and figures of each line that is printed."""
    lines = [line for line in out.splitlines() if line.strip()]
    found = [re.fullmatch(r"epoch (\d+)/(\d+)  (.*)", line) for line in lines]
    assert all(found), lines
    return [(int(m[1]), int(m[2]), {k: float(v) for k, v in re.findall(r"(\S+) (\d+\.\d{4})(?:  |$)", m[3])}) for m in found]


def test_where_there_is_no_terminal_each_epoch_prints_one_line_of_its_own_figures(tmp_path, capsys):
    fit(tmp_path)
    lines = lines_of(capsys.readouterr().out)
    epochs = epochs_of(tmp_path)
    assert [(number, of) for number, of, _ in lines] == [(1, 3), (2, 3), (3, 3)]
    losses = set()
    for number, _, figures in lines:
        recorded = epochs[number - 1]
        assert list(figures) == ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
        assert figures == pytest.approx({name: recorded[name] for name in figures}, abs=5.1e-5)
        losses.add((figures["train/loss"], figures["val/loss"]))
    assert len(losses) == 3  # the epochs do differ


def test_without_validation_the_line_has_the_training_figures(tmp_path, capsys):
    fit(tmp_path, max_epochs=2, limit_val_batches=0)
    lines = lines_of(capsys.readouterr().out)
    assert [number for number, _, _ in lines] == [1, 2]
    assert all(list(figures) == ["train/loss", "train/accuracy"] for _, _, figures in lines)


def test_an_epoch_that_was_not_validated_prints_no_earlier_epochs_figures(tmp_path, capsys):
    fit(tmp_path, max_epochs=3, check_val_every_n_epoch=2)
    lines = lines_of(capsys.readouterr().out)
    assert ["val/loss" in figures for _, _, figures in lines] == [False, True, False]


def test_a_run_by_steps_says_no_wrong_number_of_epochs(tmp_path, capsys):
    fit(tmp_path, max_epochs=-1, max_steps=8)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split()[:2] for line in lines] in ([["epoch", "1"], ["epoch", "2"]], [["epoch", "1/2"], ["epoch", "2/2"]])


TERMINAL = """
import json, time, warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import Trainer
from lit_guide.engine.train import progress
from lit_guide.engine.train.progress import ProgressBar
from lit_guide.data import DigitsData
from lit_guide.model import LitClassifier

class Counting(ProgressBar):
    reads = 0

    def get_metrics(self, *args):
        self.reads += 1
        return super().get_metrics(*args)

torch.set_num_threads(1)
data = DigitsData(batch_size=2, rotate=0.0)
for interval in (progress.INTERVAL, 0.0):
    progress.INTERVAL = interval
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network_args={"widths": [2]})
    bar = Counting()
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=400, limit_val_batches=0, logger=False,
                      enable_checkpointing=False, enable_model_summary=False, callbacks=[bar])
    started = time.perf_counter()
    trainer.fit(model, data)
    print("END", json.dumps([time.perf_counter() - started, bar.reads]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_in_a_terminal_the_bar_is_drawn_about_ten_times_a_second():
    import fcntl  # not on Windows
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
        environment.pop(name, None)
    command = [sys.executable, "-c", TERMINAL]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, env=environment)
    os.close(slave)
    text = b""
    with os.fdopen(master, "rb", buffering=0) as terminal:
        while True:
            try:
                some = terminal.read(65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not some:
                break
            text += some
    assert process.wait(timeout=60) == 0
    shown, *_ = text.decode().partition("END")
    (seconds, reads), (_, reads_without_limit) = (json.loads(found) for found in re.findall(r"END (\[.*?\])", text.decode()))
    drawn = shown.count("Epoch 0")  # each drawing writes the bar's line anew
    assert 3 <= drawn <= 10 * seconds + 10
    assert 3 <= reads <= 10 * seconds + 10  # reading a metric stops the device
    assert reads_without_limit >= 400  # so it was fast enough to exceed the limit
    assert "400/400" in shown  # the last state is drawn
    assert "epoch 1/1" not in shown  # the line of a log file


def test_nothing_is_drawn_where_there_is_no_terminal(tmp_path, capsys):
    fit(tmp_path, max_epochs=1)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "Epoch 0" not in captured.out
