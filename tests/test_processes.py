"""What only real processes show: two DDP ranks over gloo, signals, and the console script."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_guide.data import DigitsData
from tests.conftest import Run

COMMAND = [sys.executable, "-m", "lit_guide"]
DIGITS = ["--config", "configs/digits.yaml", "--accelerator", "cpu"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]

pytestmark = pytest.mark.slow


def call(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.skipif(sys.platform == "win32", reason="the gloo build for Windows needs a network name that CI lacks")
def test_two_ddp_ranks_train_together_and_leave_one_run(tmp_path: Path) -> None:
    ddp = ["--config", "configs/device/ddp.yaml", "--accelerator", "cpu", "--devices", "2", "--trainer.max_epochs", "3"]
    done = call("fit", *DIGITS, *ddp, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs" / "digits").iterdir()
    falling = losses(run_dir)
    assert len(falling) == 3
    assert falling[2] < 0.7 * falling[0] < 10
    results = json.loads((run_dir / "results.json").read_text())
    assert results["device"]["devices"] == 2
    assert results["steps"] == 3 * 10  # 1168 images in batches of 64 on two ranks
    assert len(results["exports"]) == 3
    # Each image once, though two ranks get uneven shares of 359.
    assert sum(map(sum, results["test"]["confusion_matrix"])) == 359
    again = call("fit", "--run", str(run_dir), "--trainer.max_epochs", "4", *NO_EXPORT, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(losses(run_dir)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_f04_f30_a_signal_saves_and_ends_with_its_exit_code(tmp_path: Path, name: str, code: int) -> None:
    args = [*COMMAND, "fit", *DIGITS, "--trainer.max_epochs", "1000", "--run_dir", "run", *NO_EXPORT]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would its children
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=unbuffered
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 3"):
                process.send_signal(getattr(signal, name))
                break
        rest = process.stdout.read()
    assert process.returncode == code
    assert "Traceback" not in rest
    assert "lit-guide fit --run" in rest
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 3 * 19
    done = call("fit", "--run", "run", "--trainer.max_steps", str(step + 5), *NO_EXPORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_lightnings_advertising_is_not_shown(tmp_path: Path) -> None:
    done = call("fit", *DIGITS, "--config", "configs/debug/one_batch.yaml", *NO_EXPORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [words for words in ("Tip", "litlogger", "litmodels", "Warning") if words in done.stdout + done.stderr]


def test_a_message_on_the_screen_is_not_a_traceback(tmp_path: Path) -> None:
    done = call("fit", *DIGITS, "--trainer.max_epoch", "2", cwd=tmp_path)
    assert done.returncode == 2
    told = "There is no flag or key 'trainer.max_epoch'. Did you mean trainer.max_epochs?"
    assert done.stderr == f"lit-guide: {told}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="as above")
def test_f20_two_ranks_score_and_predict_17_samples_exactly_as_one_process_does(run: Run, trained: Path, tmp_path: Path) -> None:
    source, rows = DigitsData().source, DigitsData().rows
    few = [rows["train"][:40], rows["val"][:17], rows["test"][:17]]
    split = np.repeat(["train", "val", "test"], [len(part) for part in few])
    image_NCHW = np.stack([source.dataset[row][0].numpy() for row in np.concatenate(few)])
    labels_N = source.labels_N[np.concatenate(few)]
    labels_N[::3] = (labels_N[::3] + 1) % 10  # so that some of the answers are wrong
    np.savez(tmp_path / "few.npz", images=image_NCHW, labels=labels_N, split=split, class_names=source.class_names)
    # Batches of 4: one process has 5 of them, the last of 1; two ranks have 3 of up to 9 and 2 of 8 samples.
    args = ["--ckpt_path", str(trained / "checkpoints/best.ckpt"), "--data", "ArraysData", "--data.path", "few.npz"]
    args += ["--data.batch_size", "4", "--accelerator", "cpu"]
    for command in ("validate", "test", "predict"):
        assert run(command, *args, "--devices", "1", "--run_dir", "one").code == 0
        done = call(command, *args, "--devices", "2", "--strategy", "ddp", "--run_dir", "two", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / run_dir / "results.json").read_text()) for run_dir in ("one", "two"))
    assert (one["device"]["devices"], two["device"]["devices"]) == (1, 2)
    for name in ("val", "test"):
        assert two[name] == one[name]
        assert 0.3 < two[name]["accuracy"] < 0.9
        counted = np.array(two[name]["confusion_matrix"]).sum(axis=1).tolist()
        assert counted == np.bincount(labels_N[split == name], minlength=10).tolist()
    predictions = (tmp_path / "two/predictions.csv").read_text()
    assert predictions == (tmp_path / "one/predictions.csv").read_text()
    assert len(predictions.splitlines()) == 1 + 17


@pytest.mark.skipif(sys.platform == "win32", reason="as above")
def test_training_means_cover_both_ranks(tmp_path: Path) -> None:
    """With a rate of 0 the two epochs see one model: the mean over two ranks is that of one process."""
    frozen = [
        "--model.optimizer.lr",
        "0",
        "--data.augment",
        "false",
        "--trainer.max_epochs",
        "1",
        "--trainer.num_sanity_val_steps",
        "0",
    ]
    frozen += ["--model.network_args.dropout", "0", "--data.batch_size", "1168", "--model.scheduler", "null"]
    one = call("fit", *DIGITS, *frozen, "--run_dir", "one", *NO_EXPORT, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    ddp = ["--devices", "2", "--strategy", "ddp", "--trainer.sync_batchnorm", "false"]
    two = call("fit", *DIGITS, *frozen, *ddp, "--run_dir", "two", *NO_EXPORT, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    # BatchNorm sees half of the images on each rank, so the figures agree to a few thousandths, not exactly.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=5e-3)
