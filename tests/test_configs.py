"""Every shipped YAML that can run on a CPU is run, to the end; tests/test_parser.py parses them all."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run

DIGITS = ["--config", "configs/digits.yaml"]
ON_CPU = ["--accelerator", "cpu", "--devices", "1", "--run_dir", "run"]

pytestmark = pytest.mark.slow


def test_digits_reaches_its_accuracy(run: Run) -> None:
    outcome = run("fit", *DIGITS, *ON_CPU)
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/results.json").read_text())["test"]["accuracy"] >= 0.985


def test_arrays_learns_a_users_file(run: Run) -> None:
    images = np.random.default_rng(0).integers(0, 128, (300, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(300) % 3
    for label in range(3):
        images[labels == label, ..., label] += 100  # each class has its own colour
    np.savez("my.npz", images=images, labels=labels, class_names=["red", "green", "blue"])
    outcome = run("fit", "--config", "configs/arrays.yaml", "--data.path", "my.npz", *ON_CPU, "--trainer.max_epochs", "8")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/results.json").read_text())["test"]["accuracy"] >= 0.95


@pytest.mark.parametrize("overlay", ["warmup_cosine", "device/cpu", "debug/one_batch", "debug/profile", "debug/anomaly"])
def test_overlay_runs(run: Run, overlay: str) -> None:
    outcome = run("fit", *DIGITS, "--config", f"configs/{overlay}.yaml", *ON_CPU, "--trainer.max_epochs", "2")
    assert outcome.code == 0, outcome.err
    assert len(list(Path("run/export").iterdir())) == 3


def test_overfit_learns_its_batches_by_heart(run: Run) -> None:
    outcome = run("fit", *DIGITS, "--config", "configs/debug/overfit.yaml", *ON_CPU)
    assert outcome.code == 0, outcome.err
    last = [line for line in outcome.out.splitlines() if line.startswith("epoch ")][-1]
    assert "train/accuracy 1.0000" in last
    assert float(last.split("train/loss ")[1].split()[0]) < 0.02


def test_anomaly_names_the_operation_that_made_nan(run: Run) -> None:
    images = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)
    np.savez("my.npz", images=images, labels=np.arange(60) % 2)
    args = ["--config", "configs/arrays.yaml", "--data.path", "my.npz", "--config", "configs/debug/anomaly.yaml"]
    outcome = run("fit", *args, *ON_CPU, "--model.optimizer", "SGD", "--model.optimizer.lr", "1e30")
    assert outcome.code == 1
    assert "The operation is the one that LogSoftmaxBackward0 belongs to" in outcome.err
