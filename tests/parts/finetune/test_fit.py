"""Fine-tuning as a user does it: from a model of some digits to others, of which there are few images."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lit_guide import DigitsData, LitClassifier
from lit_guide.engine.run.checkpoint import read_checkpoint
from tests.conftest import Run

QUIET = ["--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false", "--accelerator", "cpu"]
NO_EXPORT = [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
FOLDER = Path(__file__).parents[3] / "configs"
ADAMW = ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.003"]
RANKS = ["--devices", "2", "--strategy", "ddp"]
RECIPE = ["--config", FOLDER / "arrays.yaml", *QUIET, *NO_EXPORT]
MARGIN = 0.08  # by which a test accuracy of fine-tuning is better after five epochs, mean of three draws of images


@pytest.fixture(name="digits", scope="module")
def all_digits() -> tuple[np.ndarray, np.ndarray]:
    data = DigitsData()
    source = data.source
    pairs = [source.dataset[index] for index in range(len(source.labels_N))]
    return np.stack([image.numpy() for image, _ in pairs]), source.labels_N


def written(path: Path, digits: tuple[np.ndarray, np.ndarray], classes: range, each: int | None = None, seed: int = 0) -> Path:
    """An .npz of some digits: with `each`, so many of each to train on and to validate with, and all others for the test."""
    image_NCHW, label_N = digits
    rng, rows, splits = np.random.default_rng(seed), list[int](), list[str]()
    for label in classes:
        some = rng.permutation(np.flatnonzero(label_N == label)).tolist()
        few, val = (len(some) * 7 // 10, len(some) // 10) if each is None else (each, each)
        rows += some
        splits += ["train"] * few + ["val"] * val + ["test"] * (len(some) - few - val)
    names = [f"digit {label}" for label in classes]
    np.savez(path, images=image_NCHW[rows], labels=label_N[rows] - classes.start, class_names=names, split=splits)
    return path


@pytest.fixture(name="old", scope="module")
def model_of_the_first_five(digits, tmp_path_factory) -> Path:
    """The best.ckpt of a run on the digits 0 to 4."""
    from lit_guide.cli import main

    folder = tmp_path_factory.mktemp("old")
    path = written(folder / "first.npz", digits, range(5))
    words = [*RECIPE, "--data.path", path, "--trainer.max_epochs", "8", "--run_dir", folder / "run"]
    assert main(["fit", *map(str, words)]) == 0
    return folder / "run/checkpoints/best.ckpt"


@pytest.mark.slow
def test_five_images_of_a_class_are_enough_from_there(run: Run, digits, old: Path, tmp_path: Path) -> None:
    gains = []
    for seed in range(3):
        path = written(tmp_path / f"few{seed}.npz", digits, range(5, 10), each=5, seed=seed)
        accuracy = {}
        for name, more in {"scratch": [], "tuned": ["--model.weights", old, "--model.layer_decay", "0.8"]}.items():
            words = ["fit", *RECIPE, "--data.path", path, "--trainer.max_epochs", "5", "--run_dir", tmp_path / f"{name}{seed}"]
            outcome = run(*words, "--data.batch_size", "8", *ADAMW, *more)
            assert outcome.code == 0, outcome.err
            accuracy[name] = json.loads((tmp_path / f"{name}{seed}/results.json").read_text())["test"]["accuracy"]
        gains.append(accuracy["tuned"] - accuracy["scratch"])
    assert np.mean(gains) > MARGIN, gains


@pytest.mark.parametrize("step", [5, 6, 7, 13])
def test_a_run_that_goes_on_equals_one_that_was_not_interrupted(
    run: Run, digits, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before, at and after the end of the frozen epochs (step 6), with shares of the rate and a schedule, to the bit."""
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=8)
    words = ["fit", *RECIPE, "--config", FOLDER / "finetune.yaml", "--model.weights", old, "--data.path", path]
    words += ["--model.layer_decay", "0.8", "--data.batch_size", "16", "--trainer.max_epochs", "5", "--model.freeze_epochs", "2"]
    assert run(*words, "--run_dir", "whole").code == 0
    training_step = LitClassifier.training_step

    def stopped(self: LitClassifier, batch, batch_idx: int):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "training_step", stopped)
        assert run(*words, "--run_dir", "cut").code == 143
    outcome = run("fit", "--run", "cut")
    assert outcome.code == 0, outcome.err
    whole, parted = (read_checkpoint(f"{name}/checkpoints/last.ckpt") for name in ("whole", "cut"))
    assert parted["global_step"] == whole["global_step"] == 15
    assert not [name for name, value in whole["state_dict"].items() if not torch.equal(parted["state_dict"][name], value)]


def test_it_is_said_what_was_taken_and_config_yaml_finds_the_file_again(run: Run, digits, old: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=5)
    (tmp_path / "old.ckpt").write_bytes(old.read_bytes())
    outcome = run(
        "fit", *RECIPE, "--model.weights", "old.ckpt", "--data.path", path, "--trainer.max_epochs", "1", "--run_dir", "new"
    )
    assert outcome.code == 0, outcome.err
    assert "numbers are taken; the head is new, for 5 classes, which was of 5 others." in outcome.out
    settings = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    assert settings["model"]["weights"] == str(tmp_path / "old.ckpt")
    (tmp_path / "old.ckpt").unlink()
    for command in ("test", "predict"):
        assert run(command, "--run", "new").code == 0  # their weights are the run's own
    assert run("fit", "--run", "new", "--trainer.max_epochs", "2").code == 0
    settings = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    assert settings["model"]["weights"] == str(tmp_path / "old.ckpt")  # where it began, to repeat it


def test_a_frozen_backbone_leaves_the_run_as_it_came(run: Run, digits, old: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=5)
    words = ["--model.weights", old, "--model.freeze", "backbone", "--trainer.max_epochs", "2", "--run_dir", "new"]
    assert run("fit", *RECIPE, "--data.path", path, *words).code == 0
    before, after = (read_checkpoint(file)["state_dict"] for file in (old, tmp_path / "new/checkpoints/best.ckpt"))
    changed = {name for name, value in after.items() if name.startswith("network.") and not torch.equal(value, before[name])}
    assert changed == {"network.body.head.2.weight", "network.body.head.2.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "0.1"]])
def test_two_processes_fine_tune_as_one_does(digits, old: Path, tmp_path: Path, more: list[str]) -> None:
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=8)
    words = ["fit", *RECIPE, "--config", FOLDER / "finetune.yaml", "--model.weights", old, "--data.path", path, *more]
    words += ["--trainer.max_epochs", "3", "--data.augment", "false", "--model.network_args.dropout", "0"]
    words += ["--model.freeze_epochs", "3", "--model.layer_decay", "0.9"]
    for place in (["--run_dir", "one", "--data.batch_size", "20"], ["--run_dir", "two", "--data.batch_size", "10", *RANKS]):
        command = [sys.executable, "-m", "lit_guide", *map(str, [*words, *place])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    begun = read_checkpoint(old)["state_dict"]
    one, two = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == (3 if more else 6)
    for name, value in one["state_dict"].items():
        if name.startswith("network.body.head.2"):  # the same images in each step, in another order
            assert not torch.equal(value, begun[name])
            torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-5)
        elif name.startswith("network."):
            assert torch.equal(value, begun[name]), name
            assert torch.equal(two["state_dict"][name], begun[name]), name


def test_a_run_goes_on_with_other_layers_to_learn(run: Run, digits, old: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=5)
    words = ["--model.weights", old, "--model.freeze", "backbone", "--trainer.max_epochs", "1", "--run_dir", "run"]
    assert run("fit", *RECIPE, "--data.path", path, *words).code == 0
    for epochs, more in (
        ("2", ["--model.freeze", "none"]),
        ("3", ["--model.backbone_lr", "0.1", "--model.decay_norms", "false"]),
    ):
        outcome = run("fit", "--run", "run", "--trainer.max_epochs", epochs, *more)
        assert outcome.code == 0, outcome.err
        assert "the optimizer, and its schedule, begin anew" in outcome.err
    before, after = (read_checkpoint(file)["state_dict"] for file in (old, tmp_path / "run/checkpoints/last.ckpt"))
    assert not torch.equal(before["network.body.features.0.weight"], after["network.body.features.0.weight"])
    assert "begin anew" not in run("fit", "--run", "run", "--trainer.max_epochs", "4").err


@pytest.mark.slow
def test_with_the_mean_of_weights_as_well(run: Run, digits, old: Path, tmp_path: Path) -> None:
    """Both overlays; the frozen layers are their own mean."""
    path = written(tmp_path / "few.npz", digits, range(5, 10), each=8)
    words = ["fit", *RECIPE, "--config", FOLDER / "finetune.yaml", "--config", FOLDER / "ema.yaml", "--model.weights", old]
    words += ["--data.path", path, "--trainer.max_epochs", "3", "--model.freeze_epochs", "3", "--run_dir", "run"]
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    before, after = (read_checkpoint(file)["state_dict"] for file in (old, tmp_path / "run/checkpoints/best.ckpt"))
    for name, value in after.items():
        if name.startswith("network."):
            close = value.shape == before[name].shape and torch.allclose(value, before[name], rtol=1e-4)
            assert close != name.startswith("network.body.head.2"), name
    outcome = run("test", "--run", "run")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.layer_decay", "1.5"], "model.layer_decay"),
        (["--model.backbone_lr=-1"], "model.backbone_lr"),
        (["--model.freeze", "head"], "model.freeze"),
        (["--model.freeze_epochs", "0"], "model.freeze_epochs"),
        (["--model.weights", "none.ckpt"], "there is no file none.ckpt"),
    ],
)
def test_what_can_not_be_is_said(run: Run, words: list[str], message: str) -> None:
    outcome = run("fit", "--config", FOLDER / "digits.yaml", *QUIET, *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
